"""Batches of pictures with labels, which the demo's vision encoder is pretrained on."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from vadapter.base.batch import LabelledImages
from vadapter.data.rows.converters import Arrays, Example, Token
from vadapter.data.rows.preprocessors import Preprocessor, preprocessor
from vadapter.data.rows.sizes import Layout


@preprocessor
@dataclasses.dataclass(frozen=True)
class Labels(Preprocessor):
    """Keeps `labels`, int32 [G], and nothing of the text."""

    def example(self, record: Mapping[str, Any], vocabulary: Any = None) -> Example:
        kept = ("id", "choice", "error", "media")
        labels = np.asarray(record["labels"], np.int32)
        return {**{key: record[key] for key in kept if key in record}, "labels": labels}


@dataclasses.dataclass(frozen=True)
class LabelRows:
    """Rows of one image with `labels`: `LabelledImages`."""

    batch_type: ClassVar[type] = LabelledImages
    outputs: ClassVar[tuple[str, ...]] = ("labels",)

    @property
    def vocabulary(self) -> None:
        """There is no text."""

    def check(self, layout: Layout) -> None:
        del layout

    def row(self, example: Example, layout: Layout) -> Arrays:
        del layout
        return {"labels": example["labels"]}

    def batch(self, arrays: Arrays, media: np.ndarray, valid: np.ndarray) -> LabelledImages:
        labels = np.where(valid[:, None], arrays["labels"], -1).astype(np.int32)
        rows: Any = (media[:, 0, 0], labels, valid.astype(np.float32))
        return LabelledImages(*rows)

    def shown(self, example: Example, arrays: Arrays) -> tuple[list[Token], list[Token]]:
        return [], [Token(str(label), float(label >= 0)) for label in example["labels"]]
