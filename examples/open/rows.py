"""Pictures and text rows of the pack, on the device."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from models import IMAGE_SIZE

from vadapter.base.batch import Batch, Text

LENGTH = 16  # targets of a row
SETS = ("validation", "test", "new_hand")


@dataclasses.dataclass(frozen=True)
class Pictures:
    """All pictures of a pack.

    Attributes:
        pixels: uint8 [N, h, w, 3] on the host, at `IMAGE_SIZE`.
        records: a record a picture; see `prepare.py`.
        sets: indices of the pictures of each split.
    """

    pixels: np.ndarray
    records: Sequence[Mapping[str, Any]]
    sets: Mapping[str, np.ndarray]

    def rows(
        self, text: str, prompt: Mapping[str, Sequence[int]], soft: int, answer: bool = True
    ) -> dict[str, np.ndarray]:
        """Lays out a row for each picture, as `vadapter.data.rows.converters` does.

        Args:
            text: `smollm2` or `gemma3`.
            prompt: ids `before` and `after` the visual tokens.
            soft: soft tokens of a picture.
            answer: whether the caption stands in the row; without it the row ends with its prompt.
        """
        opening, closing = list(prompt["before"]), list(prompt["after"])
        head = [*opening, *[0] * soft, *closing]
        count, total = len(self.records), len(head) + (LENGTH if answer else 0)
        rows = {
            "tokens": np.zeros((count, total), np.int32),
            "segment_ids": np.zeros((count, total), np.int32),
            "positions": np.zeros((count, total), np.int32),
            "media_index": np.full((count, total), -1, np.int32),
            "target_positions": np.zeros((count, LENGTH), np.int32),
            "target_ids": np.zeros((count, LENGTH), np.int32),
            "target_weights": np.zeros((count, LENGTH), np.float32),
        }
        rows["tokens"][:, : len(head)] = head
        rows["media_index"][:, len(opening) : len(opening) + soft] = np.arange(soft)
        for i, record in enumerate(self.records):
            ids = record["ids"][text][:LENGTH]
            end = len(head) + (len(ids) if answer else 0)
            if answer:
                rows["tokens"][i, len(head) : end] = ids
            rows["segment_ids"][i, :end] = 1
            rows["positions"][i, :end] = np.arange(end)
            rows["target_positions"][i, : len(ids)] = len(head) - 1 + np.arange(len(ids)) if answer else 0
            rows["target_ids"][i, : len(ids)] = ids
            rows["target_weights"][i, : len(ids)] = 1
        return rows


def load_pictures(pack: Path) -> Pictures:
    """Reads the pictures of a pack and resizes them, bicubic."""
    from concurrent import futures

    from PIL import Image

    def resized(x: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(x).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))

    with futures.ThreadPoolExecutor() as pool:
        pixels = np.stack(list(pool.map(resized, np.load(pack / "pictures.npz")["pixels"])))
    records = [json.loads(line) for line in (pack / "rows.json").read_text().splitlines()]
    sets = {s: np.array([i for i, r in enumerate(records) if r["split"] == s], np.int32) for s in ("train", *SETS)}
    return Pictures(pixels, records, sets)


def batch_of(rows: Mapping[str, Any], pixels: jax.Array, index: jax.Array, media: jax.Array) -> Batch:
    """Gathers a batch on the device.

    Args:
        rows: as `Pictures.rows`; and `tiny`, the same rows in the tiny LM's tokens, where it keeps its own loss.
        pixels: of all pictures.
        index: rows to take.
        media: the picture of each; other pictures than the rows' own measure how much the model looks at them.
    """
    taken = jax.tree.map(lambda x: x[index], dict(rows))
    if "tiny" in taken:
        taken["tiny"] = Text(**taken["tiny"])
    return Batch(media=pixels[media][:, None, None], **taken)


def some(train: np.ndarray, seed: int, count: int) -> np.ndarray:
    """Returns `count` of the training pictures, drawn by a seed: a smaller set lies within a larger one."""
    return np.sort(np.random.default_rng(seed).permutation(train)[:count])


def order(train: np.ndarray, seed: int, steps: int, batch: int) -> np.ndarray:
    """Returns the pictures of each step, [steps, batch]: epoch after epoch, each in an order of its own."""
    rng, drawn = np.random.default_rng(seed), []
    while sum(map(len, drawn)) < steps * batch:
        drawn.append(rng.permutation(train))
    return np.concatenate(drawn)[: steps * batch].reshape(steps, batch).astype(np.int32)
