"""What the training loop and the evaluators agree on, so that neither needs to import the other."""

import dataclasses
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
    """

    scalars: dict[str, float]
    images: list[tuple[np.ndarray, str]] = dataclasses.field(default_factory=list)
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)


@runtime_checkable
class Evaluator(Protocol):
    """Measures a model. The training loop calls it at intervals and at the end; `vadapter eval` calls it alone.

    Attributes:
        name: a file-name-safe name, such as `val` or `caption`.
        every_steps: steps between two calls; None takes the loop's own interval, 0 means at the end only.
    """

    name: str
    every_steps: int | None

    def __call__(self, params: PyTree) -> EvalResult:
        """Evaluates the whole (trainable and frozen) nested dict of parameters, which lie on the device."""
        ...
