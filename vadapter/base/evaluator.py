"""What the training loop and the evaluators agree on, so that neither needs to import the other."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vadapter.base.array_types import PyTree


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """What one evaluation found.

    Attributes:
        scalars: numbers by name, such as `{"loss": 0.36, "cider": 81.2}`. They become TensorBoard scalars and a line of
            `curve.jsonl`.
        images: pictures to show with the text to draw under each: (uint8 [h, w, 3], caption).
        records: one JSON-serialisable dict an example, such as its references and prediction.
        intervals: draws the 95% bootstrap intervals of scalars, by their names. It takes a while, so training does not.
        explanations: what scalars are, in a few words, by the part of their names that follows the evaluator's or the
            benchmark's.
        facts: says what the scalars depend on, JSON-serialisable; asked for by reports only.
        notes: sentences that belong beside the scalars.
    """

    scalars: dict[str, float]
    images: list[tuple[np.ndarray, str]] = dataclasses.field(default_factory=list)
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    intervals: Callable[[], dict[str, tuple[float, float]]] = dict
    explanations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    facts: Callable[[], dict[str, Any]] = dict
    notes: Sequence[str] = ()


@runtime_checkable
class Evaluator(Protocol):
    """Measures a model. The training loop calls it at intervals and at the end; `vadapter eval` calls it alone.

    Attributes:
        name: a file-name-safe name, such as `val` or `caption`.
        every_steps: steps between two calls; None takes the loop's own interval, 0 means at the end only.

    One may also have `scalar_names`, the names of the scalars that it gives, `*` standing for what only the data say. A
    run that looks for its best checkpoint then knows before it trains that its metric is among them.
    """

    name: str
    every_steps: int | None

    def __call__(self, params: PyTree) -> EvalResult:
        """Evaluates the whole (trainable and frozen) nested dict of parameters, which lie on the device."""
        ...


def whole_names(evaluator: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Scores or intervals by their whole names: `cider` of the evaluator `generation` is `generation/cider`."""
    return {k if "/" in k else f"{evaluator}/{k}": v for k, v in values.items()}
