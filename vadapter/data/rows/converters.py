"""Examples of a task to rows of a batch.

An example is a record after the task's preprocessors: a dict with `inputs` and `targets` (int32 arrays), `id`, `error`
and texts. How a task's examples become a batch is an object of the task, its `Rows`: `TextRows` makes a
`vadapter.base.batch.Batch`, and another task may have its own (see `vadapter.data.scenes.labels`).
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from vadapter.base.batch import Batch, Text
from vadapter.data.rows.prompts import MEDIA_ID
from vadapter.data.rows.sizes import Layout, check_lengths
from vadapter.data.rows.text_vocabulary import TextVocabulary

SIZES = "sizes"
"""The feature of a conversation that says how many ids each of its turns has, see `lay_out`."""
Example = dict[str, Any]
Arrays = dict[str, np.ndarray]  # of a row, or of the rows of a batch
TINY = "tiny/"
"""Stands before the names of the arrays of a row's `Batch.tiny`, see `tiny_text`."""
_FIELDS = tuple(f.name for f in dataclasses.fields(Text))


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
    sizes: Sequence[int] | np.ndarray = (),
    last_only: bool = False,
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
        sizes: of a conversation, how many of `inputs` and how many of `targets` each of its prompts and answers has,
            in turn: prompt, answer, prompt, answer, ... It is laid out in this order. One that is too long, or has
            more media than a row, is cut behind an answer, and its first prompt and answer as above. A row for
            decoding ends with the last prompt that fits, and has room for the answers before it too.
        last_only: only the last answer of a conversation that is in the row has weight.

    Returns:
        The fields of a `Batch` for one row, without media, and `truncated`, how many tokens were cut. A target that is
        cut has no end token, so nothing says that the text ends there.
    """
    every, asked = np.asarray(targets, np.int32), np.asarray([max(bos_id or 0, 0), *inputs], np.int32)
    prompts, answers = _turns(asked, every, sizes, layout)
    rest = len(asked) + len(every) - sum(map(len, (*prompts, *answers)))
    prompts[0], cut = _prompt(prompts[0], layout, closing)
    prompts[1:] = [_widened(prompt, layout) for prompt in prompts[1:]]
    total, room = layout.row_length, layout.lengths["targets"]
    kept = [answer[:room] for answer in answers]
    cut += rest + (0 if layout.for_decoding else sum(map(len, answers)) - sum(map(len, kept)))
    last = kept[-1]
    if layout.for_decoding and len(sizes):
        total += room
    written = kept[:-1] if layout.for_decoding else kept
    parts = [part for pair in itertools.zip_longest(prompts, written) for part in pair if part is not None]
    text = np.concatenate(parts)
    visual = text == MEDIA_ID
    if layout.for_decoding:
        kept, steps, weights = last, np.full(len(last), len(text) - 1), np.zeros(len(last), np.float32)
    else:
        odd = np.repeat(np.arange(len(parts)) % 2 == 1, [len(part) for part in parts])
        kept, steps = np.concatenate(kept), np.flatnonzero(odd) - 1
        weights = np.ones(len(kept), np.float32)
        weights[: len(kept) - len(last) if last_only else 0] = 0
    return {
        "tokens": _padded(np.where(visual, 0, text), total),
        "segment_ids": _padded(np.ones(len(text), np.int32), total),
        "positions": _padded(np.arange(len(text), dtype=np.int32), total),
        "media_index": _padded(np.where(visual, np.cumsum(visual) - 1, -1), total, -1),
        "target_positions": _padded(steps.astype(np.int32), room),
        "target_ids": _padded(kept, room),
        "target_weights": _padded(weights, room),
        "truncated": np.asarray(cut, np.int32),
    }


def _turns(
    asked: np.ndarray, answered: np.ndarray, sizes: Sequence[int] | np.ndarray, layout: Layout
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns prompts and answers, as many as fit a row, and at least one of each."""
    if not len(sizes):
        return [asked], [answered]
    ends = np.asarray(sizes, np.int64).reshape(-1, 2).cumsum(axis=0)
    prompts = np.split(asked, ends[:-1, 0] + 1)  # the bos slot is in the first
    answers = np.split(answered, ends[:-1, 1])
    media = np.cumsum([np.count_nonzero(prompt == MEDIA_ID) for prompt in prompts])
    fits = (media <= layout.num_media) & (ends[:, 0] + 1 - media <= layout.lengths["inputs"])
    # A row for decoding is that of training up to its last answer.
    fits &= ends[:, 1] <= layout.lengths["targets"]
    count = max(int(np.argmin(fits)) if not fits.all() else len(fits), 1)
    # A first prompt with more media than a row is of no use, and its source says so; but no slot may name a medium that
    # is not there, since that would be no number.
    marker = prompts[0] == MEDIA_ID
    prompts[0] = prompts[0][~marker | (marker.cumsum() <= layout.num_media)]
    return prompts[:count], answers[:count]


def _prompt(inputs: np.ndarray, layout: Layout, closing: int) -> tuple[np.ndarray, int]:
    """Returns the prompt with each marker widened to R slots of `MEDIA_ID`, and how many tokens were cut."""
    room = layout.lengths["inputs"]
    marker = inputs == MEDIA_ID
    ordinal = np.cumsum(~marker)
    closing = min(closing, room - 1)
    keep = marker | (ordinal <= room - closing) | (ordinal > ordinal[-1] - closing)
    return _widened(inputs[keep], layout), len(inputs) - int(np.count_nonzero(keep))


def _widened(ids: np.ndarray, layout: Layout) -> np.ndarray:
    """The ids with each marker as R slots."""
    return np.repeat(ids, np.where(ids == MEDIA_ID, layout.num_visual_tokens, 1))


def _padded(values: np.ndarray, length: int, fill: int = 0) -> np.ndarray:
    """`values` at the start of `length` slots. Of a prompt with too many media the end is lost; `batch` refuses it."""
    row = np.full(length, fill, values.dtype if values.dtype == np.float32 else np.int32)
    row[: len(values)] = values[:length]
    return row


@dataclasses.dataclass(frozen=True)
class TextRows:
    """Rows of text with media, of examples with `inputs` and `targets`, and `sizes` of a conversation: a `Batch`.

    Attributes:
        vocabulary: of the text.
        last_only: see `lay_out`.
    """

    vocabulary: TextVocabulary
    last_only: bool = False
    batch_type: ClassVar[type] = Batch
    outputs: ClassVar[tuple[str, ...]] = ("inputs", "targets")

    def check(self, layout: Layout) -> None:
        check_lengths(layout.lengths)

    def row(self, example: Example, layout: Layout) -> Arrays:
        words = self.vocabulary
        turns = {"sizes": example.get("sizes", ()), "last_only": self.last_only}
        return lay_out(example["inputs"], example["targets"], layout, words.bos_id, words.num_closing, **turns)

    def batch(self, arrays: Arrays, media: np.ndarray, valid: np.ndarray) -> Batch:
        weights = arrays["target_weights"] * valid[:, None].astype(np.float32)
        fields: dict[str, Any] = {k: arrays[k] for k in _FIELDS} | {"target_weights": weights, "media": media}
        if TINY + "tokens" in arrays:
            own: dict[str, Any] = {k: arrays[TINY + k] for k in _FIELDS}
            fields["tiny"] = Text(**own)
        return Batch(**fields)

    def shown(self, example: Example, arrays: Arrays) -> tuple[list[Token], list[Token]]:
        room, size = len(arrays["target_ids"]), len(example["targets"])
        first = int(arrays["target_positions"][0]) + 1
        prompt = self._slots(arrays, 0, first)
        if "sizes" in example:
            cut = [Token(f"{arrays['truncated']} tokens are cut", kind="cut")] if arrays["truncated"] else []
            return prompt, self._slots(arrays, first, int(np.count_nonzero(arrays["segment_ids"]))) + cut
        if (cut := int(arrays["truncated"]) - max(size - room, 0)) > 0:
            prompt.append(Token(f"{cut} tokens are cut", kind="cut"))
        pairs = zip(arrays["target_ids"][: min(size, room)], arrays["target_weights"], strict=False)
        target = [dataclasses.replace(self._token(i), weight=float(weight)) for i, weight in pairs]
        return prompt, target + ([Token(f"{size - room} tokens are cut", kind="cut")] if size > room else [])

    def _slots(self, arrays: Arrays, start: int, stop: int) -> list[Token]:
        """The tokens of some slots with their weights as targets, visual ones in a row as one."""
        weighted = arrays["target_weights"] > 0
        weights = dict(zip(arrays["target_positions"][weighted] + 1, arrays["target_weights"][weighted], strict=True))
        found: list[Token] = []
        visual = 0
        for i in range(start, stop):
            if arrays["media_index"][i] >= 0:
                visual += 1
                continue
            if visual:
                found.append(Token(f"{visual} visual tokens", kind="visual"))
            visual = 0
            found.append(dataclasses.replace(self._token(arrays["tokens"][i]), weight=float(weights.get(i, 0.0))))
        return found + ([Token(f"{visual} visual tokens", kind="visual")] if visual else [])

    def _token(self, i: int) -> Token:
        """A token by its own text; control tokens by their names."""
        text, special = self.vocabulary.written(int(i))
        return Token(text, kind="special" if special else "text")


def stacked(rows: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
    """Returns the arrays of a batch of the arrays of its rows."""
    return {k: np.stack([row[k] for row in rows]) for k in rows[0]}
