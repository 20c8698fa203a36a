"""Places of a text where two tokenisers begin a piece at the same character, to fit a map between two LMs on."""

import dataclasses
import io
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from vadapter.base import local_files
from vadapter.base.errors import UserError
from vadapter.data.order.config import LoaderConfig
from vadapter.data.order.loader import Loader
from vadapter.data.rows.sizes import Sizes
from vadapter.data.rows.text_vocabulary import TextVocabulary

TEXT_LENGTH = 64  # tokens of a text that are read
_PATIENCE = 20  # batches without a new text, after which the training data have been seen


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Positions in texts.

    Attributes:
        tokens: ids of one tokeniser, each text after its start token, int32 [N, T], padded with 0.
        text: of each position, the row of `tokens`, int32 [P].
        slot: of each position, the slot that has read the text up to a character, int32 [P].
        piece: of each position, the id that the other tokeniser has for what begins at that character, int32 [P].
    """

    tokens: np.ndarray
    text: np.ndarray
    slot: np.ndarray
    piece: np.ndarray


def pieces(text: str, vocabulary: TextVocabulary) -> tuple[list[int], list[int]]:
    """Returns the ids of a text as an answer has them, without its end, and the character at which each begins.

    A piece that begins within a character, or whose place cannot be told from the decoded text, has -1.
    """
    ids = vocabulary.answer(text)[:-1][: TEXT_LENGTH - 1]
    begins = [0]
    for count in range(1, len(ids)):
        before = vocabulary.decode(ids[:count]).lstrip()
        begins.append(len(before) if text.startswith(before) else -1)
    return ids, begins[: len(ids)]


def pair(texts: Iterable[str], reader: TextVocabulary, speaker: TextVocabulary, wanted: int) -> Pairs:
    """Pairs what one LM has read with what another says next.

    Args:
        texts: any number; read until there are enough positions.
        reader: tokeniser of the LM that reads.
        speaker: tokeniser of the LM whose next piece is wanted.
        wanted: positions.

    Returns:
        At most `wanted` positions. The start token is left out: an LM rests its attention there, so its hidden state is
        that of no word.
    """
    rows: list[list[int]] = []
    found: list[tuple[int, int, int]] = []
    for text in texts:
        plain = " ".join(text.split())
        ids, begins = pieces(plain, reader)
        said, starts = pieces(plain, speaker)
        next_piece = {start: piece for piece, start in zip(said, starts, strict=True) if start >= 0}
        shared = [(len(rows), i, next_piece[at]) for i, at in enumerate(begins) if i and at in next_piece]
        if shared:
            rows.append([reader.bos_id or 0, *ids])
            found += shared
        if len(found) >= wanted:
            break
    text, slot, piece = np.asarray(found[:wanted], np.int32).reshape(-1, 3).T
    tokens = np.zeros((len(rows), max(map(len, rows), default=1)), np.int32)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)] = ids
    return Pairs(tokens, text, slot, piece)


def texts_of(data: LoaderConfig, sizes: Sizes) -> Iterator[str]:
    """Yields the different texts that are to be predicted, in the order of training; the same on every host.

    The media of each batch are read as well, as training reads them. Ends when many batches bring no new text.

    Args:
        data: what the run trains on.
        sizes: what its model takes.
    """
    loader = Loader(data, sizes)
    seen: set[str] = set()
    stream: Any = loader.batches()
    vocabulary, idle = loader.vocabulary, 0
    try:
        for batch in stream:
            before = len(seen)
            for ids, weights in zip(batch.target_ids, batch.target_weights, strict=True):
                text = vocabulary.decode(ids[weights > 0]).strip()
                if text and text not in seen:
                    seen.add(text)
                    yield text
            idle = idle + 1 if len(seen) == before else 0
            if idle == _PATIENCE:
                return
    finally:
        stream.close()


def lines_of(path: str) -> Iterator[str]:
    """Yields the lines of a text file that have text. Raises `UserError` where it cannot be read."""
    try:
        with io.TextIOWrapper(local_files.open_file(path), encoding="utf-8", errors="replace") as file:
            yield from filter(None, map(str.strip, file))
    except OSError as e:
        raise UserError(
            f"Handoff.texts: {path} cannot be read ({e.strerror or e}). Give a text file, one text a line, or "
            "leave it out."
        ) from e
