"""The text of a row once more, in the ids of a tiny LM that stands in the adapter: for its own loss in training."""

import dataclasses
from collections.abc import Mapping

from vadapter.data.rows.converters import TINY, Arrays, Example, TextRows
from vadapter.data.rows.sizes import Layout
from vadapter.data.rows.text_vocabulary import TextVocabulary


@dataclasses.dataclass(frozen=True)
class TinyWriter:
    """Writes the fields of `vadapter.base.batch.Text`.

    Attributes:
        vocabulary: of the tiny LM, with the prompt format of its stage 1.
        num_visual_tokens: slots of a medium, by its frames.
    """

    vocabulary: TextVocabulary
    num_visual_tokens: Mapping[int, int]

    def row(self, rows: TextRows, example: Example, layout: Layout, frames: int) -> Arrays:
        """Lays out a row.

        Args:
            rows: of the task.
            example: by the task's preprocessors, with this vocabulary.
            layout: of the decoder's row; the lengths of text are the same.
            frames: of each medium.

        Returns:
            The arrays, each with `TINY` before its name.
        """
        layout = dataclasses.replace(layout, num_visual_tokens=self.num_visual_tokens[frames])
        found = dataclasses.replace(rows, vocabulary=self.vocabulary).row(example, layout)
        return {TINY + name: x for name, x in found.items()}
