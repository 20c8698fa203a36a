"""Evaluators of the loss: on a data set, and with other images than the right ones.

With several processes each holds its part of a global batch. The jitted `loss_sums` returns sums over the *global*
batch, the same on all processes, so that nothing is gathered here.

Of losses only the sums of batches are known. So intervals resample batches, and there must be `MIN_BATCHES` of them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from vadapter.base.array_types import PyTree
from vadapter.base.batch import Batch
from vadapter.base.evaluator import EvalResult
from vadapter.evaluation import bootstrap
from vadapter.evaluation.bootstrap import Intervals

Row = Mapping[str, Any]
Batches = Callable[[], Iterator[tuple[Batch, Sequence[Row]]]]


class Sums(Protocol):
    """Sums over the targets of a global batch, as the loss functions return them."""

    @property
    def loss_sum(self) -> Any: ...
    @property
    def weight_sum(self) -> Any: ...
    @property
    def correct_sum(self) -> Any: ...


LossFn = Callable[[PyTree, Any], Sums]
MIN_BATCHES = 20
_BLANK = 127  # mid-grey, which most encoders see as zero
_LOSSES = {
    "loss": "nats a target token",
    "accuracy": "share of right ones among the next tokens",
    "perplexity": "exp of the loss",
}
_TINY = {"tiny_loss": "the tiny LM's own loss, with its factor, nats a target token"}
_RELIANCE = {
    "reliance/right": "loss with the right image, nats a token",
    "reliance/shuffled": "loss with another example's image",
    "reliance/blank": "loss with a grey image",
    "reliance/shuffled_gap": "loss that another example's image adds",
    "reliance/blank_gap": "loss that a grey image adds",
}
TOO_FEW = "too few records: none had another image in its batch"


def perplexity(loss_sum: float, weight_sum: float) -> float:
    """exp of the mean loss (nats a target token); inf where that overflows, nan for no tokens."""
    if weight_sum <= 0:
        return math.nan
    try:
        return math.exp(loss_sum / weight_sum)
    except OverflowError:
        return math.inf


def _means(totals: np.ndarray) -> tuple[float, float]:
    """(mean loss, accuracy) of [loss_sum, weight_sum, correct_sum]; nan where nothing was counted."""
    loss, weight, correct = (float(t) for t in totals)
    return (loss / weight, correct / weight) if weight > 0 else (math.nan, math.nan)


def _sums(loss_sums: LossFn, params: PyTree, batch: Any, tiny: bool = False) -> np.ndarray:
    sums: Any = loss_sums(params, batch)
    found = [sums.loss_sum, sums.weight_sum, sums.correct_sum, *([sums.tiny_sum] if tiny else [])]
    return np.array([float(x) for x in found], np.float64)


@dataclasses.dataclass
class LossEvaluator:
    """Mean loss (nats a target token), accuracy of the next token, and perplexity.

    Attributes:
        loss_sums: jitted `(params, batch on the device) -> sums over the global batch`.
        batches: gives an iterator of (batch with numpy leaves, its rows); always the same examples.
        put: puts a batch on the device.
        name, every_steps: see `vadapter.base.evaluator.Evaluator`.
        tiny: whether `loss_sums` also gives `LossSums.tiny_sum`, which is shown as `tiny_loss`.
    """

    loss_sums: LossFn
    batches: Batches
    put: Callable[[Batch], Any]
    name: str = "val"
    every_steps: int | None = None
    tiny: bool = False

    @property
    def scalar_names(self) -> Sequence[str]:
        """See `vadapter.base.evaluator.Evaluator`."""
        return (*_LOSSES, *(_TINY if self.tiny else ()), "target_tokens")

    def __call__(self, params: PyTree) -> EvalResult:
        """Scalars `loss`, `accuracy`, `perplexity` and `target_tokens`, with intervals of the first three; and
        `tiny_loss`, see `tiny`."""
        found = [_sums(self.loss_sums, params, self.put(batch), self.tiny) for batch, _ in self.batches()]
        sums = _stacked(found, (3 + self.tiny,))
        totals = sums.sum(axis=0)
        loss, accuracy = _means(totals[:3])
        scalars = {
            "loss": loss,
            "accuracy": accuracy,
            "perplexity": perplexity(totals[0], totals[1]),
            "target_tokens": float(totals[1]),
        }
        if self.tiny:
            scalars["tiny_loss"] = totals[3] / totals[1] if totals[1] > 0 else math.nan

        def scores(drawn: np.ndarray) -> np.ndarray:
            loss = drawn[:, 0] / drawn[:, 1]
            return np.stack([loss, drawn[:, 2] / drawn[:, 1], np.exp(loss)], axis=1)

        intervals = functools.partial(_batch_intervals, sums, tuple(_LOSSES), scores)
        return EvalResult(scalars, intervals=intervals, explanations=_LOSSES | (_TINY if self.tiny else {}))


@dataclasses.dataclass
class RelianceEvaluator:
    """Image reliance: the loss with the right, a shuffled and a blank image, on the same rows and targets.

    A model that reads its images does worse without the right one; gaps near zero mean that it answers from the text
    alone. The shuffled image is another row's of the same batch, and never one with the same pixels (two questions
    about one scene share their image). Rows for which the batch has no other image, and rows without an image, count
    in none of the three.

    Attributes: as of `LossEvaluator`.
    """

    loss_sums: LossFn
    batches: Batches
    put: Callable[[Batch], Any]
    name: str = "reliance"
    every_steps: int | None = None

    @property
    def scalar_names(self) -> Sequence[str]:
        """See `vadapter.base.evaluator.Evaluator`."""
        return tuple(_RELIANCE)

    def __call__(self, params: PyTree) -> EvalResult:
        """Scalars `reliance/right`, `/shuffled`, `/blank` (mean losses), `/shuffled_gap` and `/blank_gap` (the
        shuffled and the blank loss less the right one). None, and a note, where no row counts."""
        found = []
        for batch, rows in self.batches():
            right = np.asarray(batch.media)
            if right.shape[1] == 0:
                continue
            source = other_image(right, usable_rows(batch, rows))
            weights = np.where(source[:, None] >= 0, batch.target_weights, 0.0)
            sums = []
            for media in (right, right[np.maximum(source, 0)], np.full_like(right, _BLANK)):
                variant: Any = dataclasses.replace(batch, media=media, target_weights=weights)
                sums.append(_sums(self.loss_sums, params, self.put(variant)))
            found.append(np.stack(sums))
        of_batches = _stacked(found, (3, 3))
        totals = of_batches.sum(axis=0)
        if not totals[0, 1] > 0:
            return EvalResult({}, notes=[TOO_FEW])
        right, shuffled, blank = (_means(t)[0] for t in totals)
        values = (right, shuffled, blank, shuffled - right, blank - right)

        def scores(drawn: np.ndarray) -> np.ndarray:
            right, shuffled, blank = (drawn[:, 3 * i] / drawn[:, 3 * i + 1] for i in range(3))
            return np.stack([right, shuffled, blank, shuffled - right, blank - right], axis=1)

        # A draw has the same batches with each image.
        intervals = functools.partial(_batch_intervals, of_batches.reshape(-1, 9), tuple(_RELIANCE), scores)
        return EvalResult(dict(zip(_RELIANCE, values, strict=True)), intervals=intervals, explanations=_RELIANCE)


def _stacked(sums: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    return np.stack(sums) if sums else np.zeros((0, *shape))


def _batch_intervals(sums: np.ndarray, names: Sequence[str], scores: Callable[[np.ndarray], np.ndarray]) -> Intervals:
    """Intervals by name, with batches [n, k] resampled; none where too few batches have anything to count."""
    counted = sums[sums[:, 1] > 0]
    if len(counted) < MIN_BATCHES:
        return {}
    bounds = bootstrap.bootstrap_sums(counted, scores)
    return {name: (float(low), float(high)) for name, (low, high) in zip(names, bounds.T, strict=True)}


def usable_rows(batch: Batch, rows: Sequence[Row]) -> np.ndarray:
    """Bool [B]: rows that are valid and have a target in the loss."""
    valid = np.array([bool(row.get("valid", True)) for row in rows], bool)
    return valid & (np.asarray(batch.target_weights) > 0).any(axis=1)


def other_image(media: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Finds for each row the next usable row, going round, whose media are not the same pixels.

    Args:
        media: uint8 [B, M, F, h, w, C].
        usable: bool [B].

    Returns:
        int [B]: the other row, or -1 where the row is not usable or no other image exists.
    """
    order = np.flatnonzero(usable)
    content = {int(row): media[row].tobytes() for row in order}
    source = np.full(len(usable), -1)
    for at, row in enumerate(order):
        for other in np.roll(order, -at)[1:]:
            if content[int(other)] != content[int(row)]:
                source[row] = other
                break
    return source
