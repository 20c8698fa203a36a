"""Examples of a task to rows of a batch.

An example is a record after the task's preprocessors: a dict with `inputs` and `targets` (int32 arrays), `id`, `error`
and texts. How a task's examples become a batch is an object of the task, its `Rows`: `TextRows` makes a
`vadapter.base.batch.Batch`, and another task may have its own (see `vadapter.data.scenes.labels`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from vadapter.base.batch import Batch
from vadapter.data.rows.prompts import MEDIA_ID
from vadapter.data.rows.sizes import Layout, check_lengths
from vadapter.data.rows.vocabulary import TextVocabulary

Example = dict[str, Any]
Arrays = dict[str, np.ndarray]  # of a row, or of the rows of a batch
_FIELDS = tuple(f.name for f in dataclasses.fields(Batch) if f.name != "media")


@dataclasses.dataclass(frozen=True)
class Token:
    """A token of a row, to be shown. `kind`: `text`, `special` (start, end, turns), `visual` (a medium's) or `cut`."""

    text: str
    weight: float = 0.0
    kind: str = "text"


class Rows(Protocol):
    """How a task's examples become a batch.

    Attributes:
        batch_type: class of the batches. Tasks with the same one, and with media of one shape, share batches.
        vocabulary: of the text; None where the rows have none.
        outputs: the features that an example must have, arrays of integers.
    """

    batch_type: ClassVar[type]
    outputs: ClassVar[tuple[str, ...]]

    @property
    def vocabulary(self) -> TextVocabulary | None: ...

    def check(self, layout: Layout) -> None:
        """Raises `UserError` where such rows cannot be made."""

    def row(self, example: Example, layout: Layout) -> Arrays:
        """Returns the arrays of an example's row, without media."""
        ...

    def batch(self, arrays: Arrays, media: np.ndarray, valid: np.ndarray) -> Any:
        """Makes a batch.

        Args:
            arrays: of all its rows, with the batch as first axis.
            media: uint8 [B, M, F, h, w, 3].
            valid: bool [B]; the other rows carry no weight.
        """
        ...

    def shown(self, example: Example, arrays: Arrays) -> tuple[list[Token], list[Token]]:
        """Returns the tokens of a row, those of its prompt and those to predict, for a person to look at."""
        ...


def lay_out(
    inputs: Sequence[int] | np.ndarray,
    targets: Sequence[int] | np.ndarray,
    layout: Layout,
    bos_id: int | None = None,
    closing: int = 0,
) -> Arrays:
    """Lays out a prompt, its visual tokens and its targets in one row.

        [bos] prompt before <visual tokens, R a medium> prompt after | targets, eos last | padding

    Text that is too long is cut at its end, prompts after the visual tokens and before the tokens that close them; a
    visual token never is.

    Args:
        inputs: ids of the prompt, with a `MEDIA_ID` a medium.
        targets: ids of the text to predict, with its end.
        layout: of the row.
        bos_id: id of the first slot, which counts among `inputs`; None or negative is 0, the pad id.
        closing: tokens at the end of a prompt that are kept when it is cut: what ends a turn of a chat.

    Returns:
        The fields of a `Batch` for one row, without media, and `truncated`, how many tokens were cut. A target that is
        cut has no end token, so nothing says that the text ends there.
    """
    prompt, cut = _prompt(np.asarray([max(bos_id or 0, 0), *inputs], np.int32), layout, closing)
    every = np.asarray(targets, np.int32)
    kept = every[: layout.lengths["targets"]]
    text = prompt if layout.for_decoding else np.concatenate([prompt, kept])
    visual = text == MEDIA_ID
    total, room = layout.row_length, layout.lengths["targets"]
    steps = np.zeros_like(kept) if layout.for_decoding else np.arange(len(kept), dtype=np.int32)
    weights = np.full(len(kept), 0.0 if layout.for_decoding else 1.0, np.float32)
    return {
        "tokens": _padded(np.where(visual, 0, text), total),
        "segment_ids": _padded(np.ones(len(text), np.int32), total),
        "positions": _padded(np.arange(len(text), dtype=np.int32), total),
        "media_index": _padded(np.where(visual, np.cumsum(visual) - 1, -1), total, -1),
        "target_positions": _padded(len(prompt) - 1 + steps, room),
        "target_ids": _padded(kept, room),
        "target_weights": _padded(weights, room),
        "truncated": np.asarray(cut + (0 if layout.for_decoding else len(every) - len(kept)), np.int32),
    }


def _prompt(inputs: np.ndarray, layout: Layout, closing: int) -> tuple[np.ndarray, int]:
    """Returns the prompt with each marker widened to R slots of `MEDIA_ID`, and how many tokens were cut."""
    room = layout.lengths["inputs"]
    marker = inputs == MEDIA_ID
    ordinal = np.cumsum(~marker)
    closing = min(closing, room - 1)
    keep = marker | (ordinal <= room - closing) | (ordinal > ordinal[-1] - closing)
    repeats = np.where(marker, layout.num_visual_tokens, 1)
    return np.repeat(inputs[keep], repeats[keep]), len(inputs) - int(np.count_nonzero(keep))


def _padded(values: np.ndarray, length: int, fill: int = 0) -> np.ndarray:
    """`values` at the start of `length` slots. Of a prompt with too many media the end is lost; `batch` refuses it."""
    row = np.full(length, fill, values.dtype if values.dtype == np.float32 else np.int32)
    row[: len(values)] = values[:length]
    return row


@dataclasses.dataclass(frozen=True)
class TextRows:
    """Rows of text with media, of examples with `inputs` and `targets`: a `Batch`."""

    vocabulary: TextVocabulary
    batch_type: ClassVar[type] = Batch
    outputs: ClassVar[tuple[str, ...]] = ("inputs", "targets")

    def check(self, layout: Layout) -> None:
        check_lengths(layout.lengths)

    def row(self, example: Example, layout: Layout) -> Arrays:
        words = self.vocabulary
        return lay_out(example["inputs"], example["targets"], layout, words.bos_id, words.num_closing)

    def batch(self, arrays: Arrays, media: np.ndarray, valid: np.ndarray) -> Batch:
        weights = arrays["target_weights"] * valid[:, None].astype(np.float32)
        fields: dict[str, Any] = {k: arrays[k] for k in _FIELDS} | {"target_weights": weights, "media": media}
        return Batch(**fields)

    def shown(self, example: Example, arrays: Arrays) -> tuple[list[Token], list[Token]]:
        room, size = len(arrays["target_ids"]), len(example["targets"])
        prompt = self._prompt(arrays)
        if (cut := int(arrays["truncated"]) - max(size - room, 0)) > 0:
            prompt.append(Token(f"{cut} tokens are cut", kind="cut"))
        pairs = zip(arrays["target_ids"][: min(size, room)], arrays["target_weights"], strict=False)
        target = [dataclasses.replace(self._token(i), weight=float(weight)) for i, weight in pairs]
        return prompt, target + ([Token(f"{size - room} tokens are cut", kind="cut")] if size > room else [])

    def _prompt(self, arrays: Arrays) -> list[Token]:
        """The prompt's tokens, with the visual ones of a medium as one."""
        found: list[Token] = []
        visual = 0
        for i in range(int(arrays["target_positions"][0]) + 1):
            if arrays["media_index"][i] >= 0:
                visual += 1
                continue
            if visual:
                found.append(Token(f"{visual} visual tokens", kind="visual"))
            visual = 0
            found.append(self._token(arrays["tokens"][i]))
        return found + ([Token(f"{visual} visual tokens", kind="visual")] if visual else [])

    def _token(self, i: int) -> Token:
        """A token by its own text; control tokens by their names."""
        text, special = self.vocabulary.written(int(i))
        return Token(text, kind="special" if special else "text")


def stacked(rows: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
    """Returns the arrays of a batch of the arrays of its rows."""
    return {k: np.stack([row[k] for row in rows]) for k in rows[0]}
