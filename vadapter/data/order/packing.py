"""Packing: the samples of a batch, several a row, in a fixed shape.

A batch draws a fixed number of samples, `batch_size * samples`, in the order of the unpacked schedule: so it is still
made without the batches before it, and nothing is carried over. Each `window` rows share the samples that are theirs,
whichever host makes them. The longest sample goes first, into the row with the most room left.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from vadapter.base.batch import Batch
from vadapter.base.errors import UserError
from vadapter.data.order.config import PackingConfig
from vadapter.data.rows.sizes import Layout


@dataclasses.dataclass(frozen=True)
class Budgets:
    """What a packed row has room for: `PackingConfig` with the layout of a sample.

    Attributes:
        samples: drawn a row.
        tokens: slots.
        targets: slots for targets.
        media: media.
        window: rows that share their samples.
    """

    samples: int
    tokens: int
    targets: int
    media: int
    window: int


def check_kind(batch_type: type, of: str) -> None:
    """Raises `UserError` where batches hold no text: there is nothing to pack. `of` names whose they are."""
    if batch_type is not Batch:
        raise UserError(
            f"Expected rows of text to pack; those of {of} are {batch_type.__name__}. Take LoaderConfig.packing out."
        )


def budgets(packing: PackingConfig, layout: Layout, batch_size: int, hosts: int = 1) -> Budgets:
    """Returns what a row has room for.

    Args:
        packing: the settings.
        layout: of one sample.
        batch_size: rows of the global batch.
        hosts: that make the batch.

    Raises:
        UserError: a sample may not fit a row, or hosts cannot share the windows.
    """
    _at_least("samples", packing.samples, 1)
    targets, text = layout.lengths["targets"], layout.row_length - layout.visual
    default = packing.samples * layout.visual + math.ceil(packing.samples * text / 2)
    found = Budgets(
        samples=packing.samples,
        tokens=max(layout.row_length, default) if packing.tokens is None else packing.tokens,
        targets=packing.samples * targets if packing.targets is None else packing.targets,
        media=packing.samples * layout.num_media if packing.media is None else packing.media,
        window=math.gcd(4, batch_size) if packing.window is None else packing.window,
    )
    _at_least("tokens", found.tokens, layout.row_length, ", the slots of the longest sample")
    _at_least("targets", found.targets, targets, ", the targets of the longest sample")
    _at_least("media", found.media, layout.num_media, ", the media of a sample")
    _at_least("window", found.window, 1)
    rows = batch_size // hosts
    if rows % found.window:
        raise UserError(
            f"Expected rows a host in whole windows of {found.window}; found {rows}. Change PackingConfig.window, the "
            "batch size, or the number of hosts."
        )
    # Samples of text alone have no media, whatever the budget of the others.
    return found if layout.num_media else dataclasses.replace(found, media=0)


def _at_least(name: str, found: Any, least: int, why: str = "") -> None:
    if not isinstance(found, int) or isinstance(found, bool) or found < least:
        raise UserError(
            f"Expected PackingConfig.{name} to be a whole number of at least {least}{why}; found {found!r}. Raise it"
            + (", or lower LoaderConfig.lengths." if why else ".")
        )


def example(budgets: Budgets, sample: Batch) -> Batch:
    """Returns shapes of packed rows, of the shapes of as many rows of one sample each."""
    targets = dict.fromkeys(("target_positions", "target_ids", "target_weights"), (budgets.targets,))
    sizes = {**targets, "media": (budgets.media, *sample.media.shape[2:])}

    def struct(name: str) -> Any:
        x = getattr(sample, name)
        return jax.ShapeDtypeStruct((x.shape[0], *sizes.get(name, (budgets.tokens,))), x.dtype)

    return Batch(**{field.name: struct(field.name) for field in dataclasses.fields(Batch) if field.name != "tiny"})


def place(needs: np.ndarray, room: np.ndarray, rows: int) -> np.ndarray:
    """Chooses the row of each sample.

    Args:
        needs: int [n, k], what each sample takes of k budgets, the tokens first.
        room: int [k], the budgets of a row.
        rows: of the window.

    Returns:
        Int64 [n]; -1 for samples that fit in no row.
    """
    left = np.repeat(room[None], rows, axis=0)
    found = np.full(len(needs), -1, np.int64)
    for sample in np.argsort(-needs[:, 0], kind="stable"):
        fits = (left >= needs[sample]).all(axis=1)
        if fits.any():
            row = int(np.argmax(np.where(fits, left[:, 0], -1)))
            left[row] -= needs[sample]
            found[sample] = row
    return found


def pack(budgets: Budgets, samples: Batch, num_visual_tokens: int) -> tuple[Batch, int]:
    """Packs samples into rows. Those without weight are left out: they teach nothing.

    Args:
        budgets: of a row.
        samples: a row each; their number is a multiple of `window * samples`.
        num_visual_tokens: R, of a medium.

    Returns:
        The rows, and how many samples with weight found no room.
    """
    count = len(samples.tokens) // budgets.samples
    shapes = example(budgets, jax.tree.map(lambda x: x[:count], samples))
    rows = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    rows.media_index[:] = -1
    lengths = (samples.segment_ids > 0).sum(axis=1)
    # Targets are first in their row; padding behind them has no weight.
    targets = samples.target_weights.shape[1] - np.argmax(samples.target_weights[:, ::-1] > 0, axis=1)
    each = samples.media.shape[1]
    needs = np.stack([lengths, targets, np.full(len(lengths), each)], axis=1).astype(np.int64)
    room = np.asarray([budgets.tokens, budgets.targets, budgets.media], np.int64)
    weighted = samples.target_weights.sum(axis=1) > 0
    used = np.zeros((count, 4), np.int64)  # tokens, targets, media, segments
    left_over = 0
    for first in range(0, count, budgets.window):
        of = np.arange(first * budgets.samples, (first + budgets.window) * budgets.samples)
        of = of[weighted[of]]
        for sample, row in zip(of, place(needs[of], room, budgets.window), strict=True):
            if row < 0:
                left_over += 1
                continue
            _add(rows, first + int(row), used[first + row], samples, int(sample), needs[sample], num_visual_tokens)
            used[first + row] += [*needs[sample], 1]
    return rows, left_over


def _add(rows: Batch, row: int, used: np.ndarray, samples: Batch, sample: int, needs: np.ndarray, visual: int) -> None:
    """Writes a sample behind what its row holds."""
    start, first_target, first_medium, segments = (int(x) for x in used)
    length, targets, media = (int(x) for x in needs)
    slots, goals = slice(start, start + length), slice(first_target, first_target + targets)
    index = samples.media_index[sample, :length]
    rows.tokens[row, slots] = samples.tokens[sample, :length]
    rows.segment_ids[row, slots] = segments + 1
    rows.positions[row, slots] = samples.positions[sample, :length]
    rows.media_index[row, slots] = np.where(index >= 0, index + first_medium * visual, -1)
    to: Any = rows.media  # arrays on the host, of pixels or of a feature cache
    of: Any = samples.media
    to[row, first_medium : first_medium + media] = of[sample]
    rows.target_positions[row, goals] = samples.target_positions[sample, :targets] + start
    rows.target_ids[row, goals] = samples.target_ids[sample, :targets]
    rows.target_weights[row, goals] = samples.target_weights[sample, :targets]
