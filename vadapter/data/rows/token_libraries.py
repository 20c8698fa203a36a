"""The two kinds of vocabularies: SentencePiece models and Hugging Face's `tokenizer.json`.

`vocabulary.load_vocabulary` opens them.
"""

import functools

import sentencepiece
import tokenizers

from vadapter.base import local_files
from vadapter.base.errors import UserError
from vadapter.data.rows import formats, token_files
from vadapter.data.rows.text_vocabulary import TextVocabulary, locate

# What families call their tokens, for tokenisers that do not say.
_BOS = ("<bos>", "<s>", "<|begin_of_text|>")
_EOS = ("<eos>", "</s>", "<|end_of_text|>", "<|endoftext|>")
# Families without a start token begin a row with the token that parted their documents in pretraining.
_SEPARATOR = ("<|endoftext|>",)


class SentencePieceVocabulary(TextVocabulary):
    """A SentencePiece model."""

    def __init__(self, path: str, prompt_format: str = formats.PLAIN):
        file = locate(path)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(local_files.content_of(file))
        except Exception as e:  # the library raises several types
            raise UserError(f"Expected a SentencePiece model in {file}; it cannot be read as one ({e}).") from e
        super().__init__(path, prompt_format)

    def __str__(self) -> str:
        return f"the SentencePiece model {locate(self.path)}"

    @property
    def vocab_size(self) -> int:
        return self._processor.get_piece_size()

    @property
    def unk_id(self) -> int | None:
        return _none_if_negative(self._processor.unk_id())

    @property
    def _special(self) -> tuple[int | None, int | None]:
        return _none_if_negative(self._processor.bos_id()), _none_if_negative(self._processor.eos_id())

    def token_id(self, token: str) -> int | None:
        i = self._processor.piece_to_id(token)
        return i if self._processor.id_to_piece(i) == token else None

    def _token(self, i: int) -> str:
        return self._processor.id_to_piece(i)

    def _library_ids(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def _text(self, ids: list[int]) -> str:
        return self._processor.decode(ids)


class TokenizerVocabulary(TextVocabulary):
    """A `tokenizer.json` of the library `tokenizers`; its special tokens are read from the files beside it too."""

    def __init__(self, path: str, prompt_format: str = formats.PLAIN):
        file = locate(path)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(local_files.content_of(file))
        except Exception as e:  # the library raises `Exception` itself
            raise UserError(
                f"Expected a tokenizer.json of Hugging Face in {file}; it cannot be read as one ({e})."
            ) from e
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # special tokens in a text are ordinary text
        self._size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if not self._size:
            raise UserError(f"Expected a tokenizer.json with tokens in {file}; it has none. Take another file.")
        self._named = token_files.named(file.parent)
        super().__init__(path, prompt_format)

    def __str__(self) -> str:
        return f"the tokenizer {locate(self.path)}"

    @property
    def vocab_size(self) -> int:
        return self._size

    @functools.cached_property
    def rows(self) -> int:
        # No text becomes a special token, so some may lie behind the table: Gemma 3's `<image_soft_token>` does.
        special = {i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        plain = {i for i in self._tokenizer.get_vocab(with_added_tokens=True).values() if i not in special}
        written = (self.bos_id, self.eos_id, *map(self.token_id, self.format.tokens))
        return 1 + max(plain.union(i for i in written if i is not None))

    @functools.cached_property
    def _special(self) -> tuple[int | None, int | None]:
        bos = self._first_of(self._named.get("bos_token"), *_BOS, *_SEPARATOR)
        return bos, self._first_of(self._named.get("eos_token"), *_EOS)

    def _first_of(self, *tokens: str | None) -> int | None:
        ids = (self.token_id(token) for token in tokens if token)
        return next((i for i in ids if i is not None), None)

    def token_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def _token(self, i: int) -> str:
        return self._tokenizer.id_to_token(i) or ""

    def _library_ids(self, text: str) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as e:  # the library raises `Exception` itself, as where a vocabulary names no unknown token
            raise UserError(
                f"The tokenizer {locate(self.path)} cannot write the text {text[:100]!r}: {e}. Take one that writes "
                "any text."
            ) from e

    def _added(self) -> list[str]:
        return [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def _none_if_negative(i: int) -> int | None:
    return None if i < 0 else i
