"""Vocabularies: what a row asks of one, and where its file lies. `vocabulary` opens them.

A row is written in parts (prompt before the visual tokens, prompt after them, answer), so a vocabulary has, beside
`encode` and `decode`, `first` for text that begins a row, `more` for text that goes on in one, and `symbols` for what
stands between turns. Nothing here needs TensorFlow; `vadapter.data.seqio_tasks` makes a seqio vocabulary of one.
"""

import functools
import re
from collections.abc import Iterable

from etils import epath

from vadapter.base import resources
from vadapter.base.errors import UserError
from vadapter.base.paths import is_remote
from vadapter.data.reading.records import clean
from vadapter.data.rows import formats, token_files

SCENES = "scenes"  # names the vocabulary that comes with vadapter
_JSON = "tokenizer.json"
_FOLDER = "tokenizer"  # of a folder that `vadapter import` wrote
# How families write tokens that steer a model. A tokenizer.json does not mark all of them as special (Qwen3: thinking
# and tools), nor is all that it adds such a token: Gemma has runs of line breaks and HTML tags.
_STEERS = re.compile(r"<\|.*\|>|</?(think|tool_call|tool_response)>")
_SPACES = ("\u2581", "\u0120")  # how SentencePiece and byte-level tokenisers write a space


class TextVocabulary:
    """What both kinds of vocabularies share.

    Args:
        path: see `locate`.
        prompt_format: see `formats.choose`.

    Attributes:
        path: as given to `load`; "" for the shipped one, as `model.json` records it.
        format: how prompts and answers are written.
        pad_id: id of slots that hold nothing.
    """

    pad_id = 0

    def __init__(self, path: str, prompt_format: str):
        self.path = "" if path == SCENES else path
        # Some libraries find these in any text: user-defined pieces, and added tokens that are not special.
        steers = {token for f in formats.FORMATS.values() for token in f.tokens}
        steers.update(filter(_STEERS.fullmatch, self._added()))
        guarded = sorted(token for token in steers if self.token_id(token) in self._library_ids(token))
        self._guarded = re.compile(f"(?={'|'.join(map(re.escape, guarded))})") if guarded else None
        self.format = formats.choose(prompt_format, lambda token: self.token_id(token) is not None, str(self))

    @property
    def prompt_format(self) -> str:
        """Name of the format."""
        return self.format.name

    # What a kind of vocabulary has to give.

    def token_id(self, token: str) -> int | None:
        """Returns the id of a token, or None if there is none."""
        raise NotImplementedError

    def _library_ids(self, text: str) -> list[int]:
        """Encodes text as the library does, without start and end tokens."""
        raise NotImplementedError

    def _added(self) -> list[str]:
        """Tokens that were added to those of the training, as far as the library tells."""
        return []

    def _token(self, i: int) -> str:
        raise NotImplementedError

    def _text(self, ids: list[int]) -> str:
        raise NotImplementedError

    @property
    def _special(self) -> tuple[int | None, int | None]:
        """Ids of the start and end tokens."""
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        raise NotImplementedError

    # What every vocabulary has.

    @property
    def bos_id(self) -> int | None:
        """Id that begins a row: the start token, or what parts documents where a family has none (Qwen)."""
        return self._special[0]

    @property
    def eos_id(self) -> int | None:
        """Id that ends an answer: in a chat, that of the turn."""
        return self._special[1] if self.format.end is None else self.token_id(self.format.end)

    @functools.cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end a text, `eos_id` first; () where none does.

        A model may end a turn with the end of the text, and a generation_config.json beside the vocabulary names more.
        """
        named = token_files.end_ids(locate(self.path).parent)
        found = (self.eos_id, self._special[1], *(i for i in named if 0 <= i < self.vocab_size))
        return tuple(dict.fromkeys(i for i in found if i is not None))

    @property
    def unk_id(self) -> int | None:
        return None

    @property
    def rows(self) -> int:
        """Rows that a decoder's table needs for what is encoded here; `vocab_size` may be larger."""
        return self.vocab_size

    def encode(self, text: str) -> list[int]:
        """Encodes text that is no special token, whatever it looks like. No start and no end token is added.

        Half a surrogate pair, which JSON and a command line can hold and no tokeniser takes, is U+FFFD.
        """
        text = clean(text)
        # Cut behind the first character of each such token, so that the library does not see it whole.
        cuts = [match.start() + 1 for match in self._guarded.finditer(text)] if self._guarded else []
        first, *rest = (text[start:stop] for start, stop in zip([0, *cuts], [*cuts, None], strict=True))
        return [*self._library_ids(first), *(i for part in rest for i in self.more(part))]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids up to an end. Negative ids, and those that a larger table has, are nothing."""
        kept: list[int] = []
        for i in map(int, ids):
            if i in self.end_ids:
                break
            if 0 <= i < self.vocab_size:
                kept.append(i)
        return self._text(kept)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and (self.path, self.format) == (other.path, other.format)  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((self.path, self.format))

    def written(self, i: int) -> tuple[str, bool]:
        """Returns an id's own text, with the space that begins it, and whether it is a control token."""
        piece, text = str(self._token(i)), self._text([i])
        if i in (self.bos_id, self.eos_id) or piece in self.format.tokens:
            return piece, True
        if piece and not piece.strip("".join(_SPACES)):
            return " " * len(piece), False
        if not text.strip() or "\ufffd" in text:  # a control token or a part of a letter
            return piece, not text
        space = " " if piece.startswith(_SPACES) else ""
        return space + text.lstrip(" "), False

    def word(self, i: int) -> str:
        """Returns an id's text for people, without spaces around it: "␣" of spaces alone, "#7" where id 7 has none.
        A character that cannot be printed is the token's own name, such as "<0x13>"."""
        text = self.written(i)[0] if 0 <= i < self.vocab_size else ""
        word = text.strip(" ") if text.isprintable() else self._token(i)
        return word or ("␣" if text else f"#{i}")

    # Parts of a row.

    def first(self, text: str) -> list[int]:
        """Encodes text that begins a row or a turn."""
        return self.encode(text)

    def more(self, text: str) -> list[int]:
        """Encodes text that goes on in a row, so that nothing is put before it.

        Some models (Llama 2) put a space before whatever they encode. Behind a line break it is known where that ends.
        """
        if not text or not self.puts_space:
            return self.encode(text)
        if text.startswith(" ") and text != " ":
            return self.encode(text[1:])
        start = self.encode("\n")
        whole = self.encode("\n" + text)
        return whole[len(start) :] if whole[: len(start)] == start else self.encode(text)

    def symbols(self, text: str, first: bool = False) -> list[int]:
        """Encodes what the format puts around a prompt, its special tokens as their ids. `first` as of the methods."""
        tokens = self.format.tokens
        parts = re.split(f"({'|'.join(map(re.escape, tokens))})", text) if tokens else [text]
        ids: list[int] = []
        for part in filter(None, parts):
            known = self.token_id(part) if part in tokens else None
            encode = self.first if first and not ids else self.more
            ids += encode(part) if known is None else [known]
        return ids

    def head(self, before: str, system: str = "") -> list[int]:
        """Returns the ids of a prompt's text before the visual tokens, and of a system's text before it."""
        if system:
            return self._system(before, system)
        opening = self.symbols(self.format.before, first=True)
        if opening and before and self.format.space:
            before = f" {before}"
        return [*opening, *(self.more(before) if opening else self.first(before))]

    def _system(self, before: str, system: str) -> list[int]:
        start, stop = self.format.system
        opening = self.symbols(start, first=True)
        write = self.more if opening else self.first
        if any(token in stop for token in self.format.tokens):
            return [*opening, *write(system), *self.symbols(stop), *self.more(before)]
        return [*opening, *write(f"{system}{stop}{before}")]

    def next_head(self, before: str) -> list[int]:
        """Returns the ids of a further prompt's text, as it follows an answer, before its visual tokens."""
        start = [self.bos_id] if self.format.restarts and self.bos_id is not None else []
        return [
            *start,
            *self.symbols(self.format.again),
            *self.more(f" {before}" if self.format.space and before else before),
        ]

    def tail(self, after: str) -> list[int]:
        """Returns the ids of a prompt's text after the visual tokens."""
        return [*self.more(after), *self.symbols(self.format.between)]

    def answer(self, text: str) -> list[int]:
        """Returns the ids of an answer as it follows a prompt, with the token that ends it.

        Raises:
            UserError: the vocabulary has no such token.
        """
        text = text.strip()
        return [*self.more(f" {text}" if self.format.space else text), self.end]

    @property
    def end(self) -> int:
        """`eos_id`. A `UserError` where there is none: then no text would end."""
        if self.eos_id is None:
            raise UserError(f"Expected a vocabulary with an end token; {self} has none. Choose another vocabulary.")
        return self.eos_id

    @property
    def ends(self) -> tuple[int, ...]:
        """`end_ids`. A `UserError` where there are none: then no text would end."""
        return self.end_ids or (self.end,)

    @functools.cached_property
    def num_closing(self) -> int:
        """Tokens at the end of every prompt that close its turn."""
        return len(self.tail(""))

    @functools.cached_property
    def puts_space(self) -> bool:
        """Whether the library puts a space before whatever it encodes (Llama 2); see `more`."""
        ids = self._library_ids("x")
        return bool(ids) and self._token(ids[0]).startswith(_SPACES)


def locate(path: str) -> epath.Path:
    """Finds the file that defines a vocabulary.

    Args:
        path: the file; a folder with one; a folder that `vadapter import` wrote; or "scenes" for the 512-piece
            vocabulary that comes with vadapter, which `model.json` records as "". May be an address such as
            gs://bucket/folder. A file of yours that is called scenes is ./scenes.

    Raises:
        UserError: there is none, or it cannot be reached.
    """
    if path in ("", SCENES):
        return epath.Path(resources.folder("data")) / "scenes" / "vocabulary.model"
    try:
        return _find(epath.Path(path).expanduser())
    except UserError:
        raise
    except Exception as e:  # of many types, as the libraries of buckets have them
        if not is_remote(path):
            raise
        message = getattr(e, "message", e)
        raise UserError(f"{path} cannot be read ({message}). Correct the address, or ask for access.") from e


def _find(place: epath.Path) -> epath.Path:
    if place.is_file():
        return place
    if not place.is_dir():
        raise UserError(
            f"Expected a SentencePiece model, a {_JSON}, or a folder with one of them at {place}; found no such file. "
            "Correct the path."
        )
    folder = place / _FOLDER if (place / _FOLDER).is_dir() else place
    found = [folder / _JSON] if (folder / _JSON).is_file() else sorted(folder.glob("*.model"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "neither"
        raise UserError(
            f"Expected a {_JSON} or one SentencePiece file that ends in .model in {folder}; found {names}. Put the "
            "tokenizer there (vadapter import --tokenizer does), or give the file itself."
        )
    return found[0]
