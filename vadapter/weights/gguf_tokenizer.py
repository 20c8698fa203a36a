"""The tokenizer in the metadata of a GGUF file, as the files that Hugging Face has for it.

Two kinds are read, as BPE of the library `tokenizers`: byte-level BPE, whose merges are in the file, and BPE of
SentencePiece, whose merges follow from the scores of the pieces. How a byte-level one cuts text into words is not in
the file but has a name there; `_CUTS` has what the published tokenizers of these models do.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from vadapter.base.errors import UserError

_PREFIX = "tokenizer.ggml."
_WHOLE = "tokenizer.huggingface.json"
_SPACE = "\u2581"
# Types of tokens.
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6
_NUM_BYTES = 256
_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
# Tokens that end a text, a turn or a message.
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True)
class _Cut:
    """How text is cut into words before byte-level BPE.

    Attributes:
        pattern: regex of a word; None is GPT-2's.
        digits: digits are words of their own before that.
        whole_words: a word that is a token is that token, whatever the merges make of it.
        composed: letters and their accents are composed first (NFC).
    """

    pattern: str | None = None
    digits: bool = False
    whole_words: bool = False
    composed: bool = False


_GPT2, _DIGITS = _Cut(), _Cut(digits=True)
_LLAMA3 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_REST}"
_CUTS = {
    **dict.fromkeys(("default", "gpt-2", "gpt2", "olmo", "phi-2"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact"), _DIGITS),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral"), _Cut(_LLAMA3, whole_words=True)),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _Cut(_LLAMA3)),
    "qwen2": _Cut(_QWEN2, composed=True),
    **dict.fromkeys(("deepseek-r1-qwen", "megrez"), _Cut(_QWEN2)),
    "tekken": _Cut(_TEKKEN, whole_words=True),
}


def make(metadata: Mapping[str, Any], where: str) -> dict[str, bytes]:
    """Makes the files of a tokenizer.

    Args:
        metadata: of the GGUF file.
        where: the file, for messages.

    Returns:
        Contents of tokenizer.json, tokenizer_config.json and generation_config.json; {} where the file has none.

    Raises:
        UserError: the tokenizer is of a kind that is not read, or its parts contradict one another.
    """
    kind = str(metadata.get(f"{_PREFIX}model", "none"))
    if kind in ("none", "no_vocab"):
        return {}
    build = {"llama": _sentencepiece, "gpt2": _byte_level}.get(kind)
    if build is None:
        raise UserError(
            f"{where} has a tokenizer of the kind {kind!r}, which is not read from GGUF; llama (SentencePiece) and "
            "gpt2 (byte-level BPE) are. Give the tokenizer of the model's Hugging Face folder as `tokenizer`."
        )
    parts = _Parts(metadata, where)
    text = metadata.get(_WHOLE)  # the publisher's own tokenizer.json, which some files have
    files = {
        "tokenizer.json": text if isinstance(text, str) and text else build(parts).to_str(),
        "tokenizer_config.json": json.dumps(parts.named(), ensure_ascii=False, indent=1),
        "generation_config.json": json.dumps(parts.ends(), indent=1),
    }
    return {name: content.encode() for name, content in files.items()}


class _Parts:
    """The lists of the metadata, checked.

    Args:
        metadata: of the file.
        where: the file, for messages.

    Attributes:
        tokens: by id.
        types: of the tokens; all are ordinary where the file does not say.
    """

    def __init__(self, metadata: Mapping[str, Any], where: str):
        self._metadata, self._where = metadata, where
        self.tokens: list[str] = self.texts("tokens")
        self.types = self.numbers("token_type", np.ones(len(self.tokens), np.int32))

    def get(self, name: str, otherwise: Any = None) -> Any:
        return self._metadata.get(f"{_PREFIX}{name}", otherwise)

    def texts(self, name: str) -> list[str]:
        found = self.get(name)
        if not isinstance(found, list) or not found or not all(isinstance(x, str) for x in found):
            raise self.error(f"a list of texts in {_PREFIX}{name}", "none")
        return found

    def numbers(self, name: str, otherwise: np.ndarray | None = None) -> np.ndarray:
        found = self.get(name, otherwise)
        if not isinstance(found, np.ndarray) or len(found) != len(self.tokens):
            count = "nothing" if found is None else f"{len(found)}" if isinstance(found, np.ndarray) else repr(found)
            raise self.error(f"{len(self.tokens)} numbers in {_PREFIX}{name}, one for each token", count[:200])
        return found

    def id(self, name: str) -> int | None:
        found = self.get(name)
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < len(self.tokens):
            raise self.error(f"the id of one of {len(self.tokens)} tokens in {_PREFIX}{name}", repr(found)[:200])
        return found

    def flag(self, name: str, otherwise: bool = False) -> bool:
        found = self.get(name, otherwise)
        if not isinstance(found, int):  # 0 and 1 are flags too
            raise self.error(f"true or false in {_PREFIX}{name}", repr(found)[:200])
        return bool(found)

    def named(self) -> dict[str, Any]:
        """What tokenizer_config.json says."""
        ids = {name: self.id(key) for name, key in _NAMED.items()}
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        config |= {name: self.tokens[i] for name, i in ids.items() if i is not None}
        for name in ("add_bos_token", "add_eos_token"):
            if self.get(name) is not None:
                config[name] = self.flag(name)
        template = self._metadata.get("tokenizer.chat_template", "")
        if not isinstance(template, str):
            raise self.error("a text in tokenizer.chat_template", repr(template)[:200])
        if template:
            config["chat_template"] = template
        return config

    def ends(self) -> dict[str, Any]:
        """What generation_config.json says."""
        ends = dict.fromkeys(i for name in _ENDS if (i := self.id(name)) is not None)
        found = {"bos_token_id": self.id("bos_token_id"), "pad_token_id": self.id("padding_token_id")}
        return {name: i for name, i in found.items() if i is not None} | ({"eos_token_id": list(ends)} if ends else {})

    def of_type(self, kind: int) -> Iterator[str]:
        return (self.tokens[i] for i in np.flatnonzero(self.types == kind))

    def error(self, expected: str, found: str) -> UserError:
        return UserError(
            f"{self._where}: expected {expected} and found {found}. Give a tokenizer by itself as `tokenizer`, or take "
            "another file of this model."
        )


def _byte_level(parts: _Parts) -> Tokenizer:
    name = str(parts.get("pre", "default"))
    if name not in _CUTS:
        known = ", ".join(sorted(_CUTS))
        raise parts.error(f"{_PREFIX}pre, which says how text is cut into words, to be one of {known}", repr(name))
    cut = _CUTS[name]
    vocab = {token: i for i, token in enumerate(parts.tokens)}
    merges = [tuple(merge.split(" ")) for merge in parts.texts("merges")]
    # The library panics at some that are damaged.
    if wrong := [m for m in merges if len(m) != 2 or not {*m, "".join(m)} <= vocab.keys()]:
        raise parts.error(f"merges of two tokens to a third in {_PREFIX}merges", repr(" ".join(wrong[0]))[:200])
    tokenizer = _tokenizer(parts, vocab, merges, ignore_merges=cut.whole_words)
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if cut.digits else []
    if cut.pattern:
        steps.append(pre_tokenizers.Split(Regex(cut.pattern), "isolated"))
    space = parts.flag("add_space_prefix")
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=cut.pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if cut.composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return _with_added(tokenizer, parts, vocab)


def _sentencepiece(parts: _Parts) -> Tokenizer:
    for name in ("remove_extra_whitespaces", "precompiled_charsmap"):
        if np.any(parts.get(name, False)):
            raise parts.error(f"no {_PREFIX}{name}, which changes texts in a way that is not read", "it")
    # Runs of spaces are tokens of their own, which some files have as they are.
    tokens = [token.replace(" ", _SPACE) if not token.strip(" ") else token for token in parts.tokens]
    vocab = {token: i for i, token in enumerate(tokens)}
    # The unknown token is a control token in some files.
    unknown = parts.id("unknown_token_id")
    unknown = next(iter(np.flatnonzero(parts.types == _UNKNOWN)), None) if unknown is None else unknown
    tokenizer = _tokenizer(
        parts,
        vocab,
        list(_merges(parts, tokens, vocab)),
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=int((parts.types == _BYTE).sum()) == _NUM_BYTES,
    )
    space = parts.flag("add_space_prefix", True)
    replace = normalizers.Replace(" ", _SPACE)
    # As in Llama 2's and Mistral's own tokenizer.json, and so behind a token of the user's too.
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replace]) if space else replace
    steps: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", left=1)] if space else steps)
    return _with_added(tokenizer, parts, vocab)


def _merges(parts: _Parts, tokens: list[str], vocab: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """The merges that SentencePiece's BPE makes: of any two pieces to a third, that with the best score first.

    Pieces that the user defined come before all others, as SentencePiece takes them for whole before it merges.
    """
    scores, types = parts.numbers("scores"), parts.types
    pieces = ~np.isin(types, (_UNKNOWN, _CONTROL, _BYTE))
    order = np.lexsort((np.arange(len(tokens)), np.where(types == _USER_DEFINED, 0, -scores), types != _USER_DEFINED))
    known = {token for token, i in vocab.items() if pieces[i]}
    for i in order[pieces[order]]:
        token = tokens[i]
        for cut in range(len(token) - 1, 0, -1):
            if token[:cut] in known and token[cut:] in known:
                yield token[:cut], token[cut:]


def _tokenizer(parts: _Parts, vocab: Mapping[str, int], merges: list[Any], **options: Any) -> Tokenizer:
    try:
        return Tokenizer(BPE(vocab=dict(vocab), merges=merges, **options))
    except Exception as e:  # the library raises `Exception` itself
        raise parts.error("the parts of a tokenizer", f"others ({e})") from e


def _with_added(tokenizer: Tokenizer, parts: _Parts, vocab: Mapping[str, int]) -> Tokenizer:
    """Adds the tokens that text is searched for before it is cut. Control tokens are special."""
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [AddedToken(t, normalized=False, special=special) for t in parts.of_type(kind) if t and t in vocab]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    return tokenizer
