"""A vocabulary as a tokenizer.json that gives the same ids, with marks for pictures and videos."""

import dataclasses
import json
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from vadapter.base import local_files
from vadapter.base.errors import UserError
from vadapter.data.rows import vocabulary as vocabularies
from vadapter.data.rows.text_vocabulary import TextVocabulary
from vadapter.sharing.chat_template import IMAGE, VIDEO

_SPACE = "\u2581"


@dataclasses.dataclass(frozen=True)
class Exported:
    """A tokenizer as it is written.

    Attributes:
        tokenizer: puts nothing before a text but the token that begins a row.
        start: text of that token.
        end: text of the token that ends an answer.
        leads: whether the vocabulary puts a space before a row's first text; here the template writes it.
        image_id: of `<image>`.
        video_id: of `<video>`.
    """

    tokenizer: Tokenizer
    start: str
    end: str
    leads: bool
    image_id: int
    video_id: int


def make(vocabulary: TextVocabulary) -> Exported:
    """Makes the tokenizer of a vocabulary.

    Raises:
        UserError: the vocabulary has no token that ends an answer, or is of a kind that has no tokenizer.json.
    """
    file = vocabularies.locate(vocabulary.path)
    content = local_files.content_of(file)
    made = Tokenizer.from_str(_plain(json.loads(content))) if file.suffix == ".json" else from_sentencepiece(content)
    start_id = max(vocabulary.bos_id or 0, 0)
    start, end = made.id_to_token(start_id), made.id_to_token(vocabulary.end)
    if not start or not end:
        raise UserError(f"{vocabulary} has no text for the id {start_id} or {vocabulary.end}, so no prompt says it.")
    # So that they are found in a prompt whatever stands beside them.
    made.add_special_tokens([start, end, *vocabulary.format.tokens, IMAGE, VIDEO])
    made.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", pair=f"{start} $A $B", special_tokens=[(start, start_id)]
    )
    made.no_truncation()
    made.no_padding()
    ids = made.get_vocab(with_added_tokens=True)
    return Exported(made, start, end, vocabulary.puts_space, ids[IMAGE], ids[VIDEO])


def files(exported: Exported, chat_template: str, pad_id: int, ends: tuple[int, ...]) -> dict[str, str]:
    """Returns tokenizer.json, tokenizer_config.json, generation_config.json and chat_template.jinja by name."""
    pad = exported.tokenizer.id_to_token(pad_id) or exported.end
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": exported.start,
        "eos_token": exported.end,
        "pad_token": pad,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "extra_special_tokens": {"image_token": IMAGE, "video_token": VIDEO},
        "chat_template": chat_template,
    }
    generation = {
        "bos_token_id": exported.tokenizer.token_to_id(exported.start),
        "eos_token_id": list(ends),
        "pad_token_id": exported.tokenizer.token_to_id(pad),
        "do_sample": False,
    }
    return {
        "tokenizer.json": exported.tokenizer.to_str(pretty=True),
        "tokenizer_config.json": _json(settings),
        "generation_config.json": _json(generation),
        "chat_template.jinja": chat_template,
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _plain(record: dict[str, Any]) -> str:
    """A tokenizer.json that puts no space before a text."""
    record = {**record, "truncation": None, "padding": None}
    parts = (record.get("normalizer"), record.get("pre_tokenizer"))
    for part in parts:
        for each in _steps(part):
            if each.get("type") == "Metaspace":
                each["prepend_scheme"] = "never"
                each.pop("add_prefix_space", None)
            elif each.get("type") == "ByteLevel":
                each["add_prefix_space"] = False
            elif each.get("type") == "Prepend":
                each.update({"type": "Replace", "pattern": {"String": "\0"}, "content": "\0"})
                each.pop("prepend", None)
    return json.dumps(record)


def _steps(part: Any) -> list[dict[str, Any]]:
    """The parts of a normalizer or a pre-tokenizer, those of a sequence one by one."""
    if not isinstance(part, dict):
        return []
    inner = [each for key in ("normalizers", "pretokenizers") for each in part.get(key) or ()]
    return [step for each in inner for step in _steps(each)] if inner else [part]


def from_sentencepiece(content: bytes) -> Tokenizer:
    """Makes a tokenizer of a SentencePiece model of the kinds `unigram` and `bpe`.

    Args:
        content: of the file.

    Raises:
        UserError: the model is of another kind.
    """
    from sentencepiece import sentencepiece_model_pb2 as protos

    model: Any = protos.ModelProto.FromString(content)  # pyright: ignore[reportAttributeAccessIssue]
    pieces, kinds = [(p.piece, p.score) for p in model.pieces], [p.type for p in model.pieces]
    unknown, byte_fallback = model.trainer_spec.unk_id, model.trainer_spec.byte_fallback
    steps: list[Any] = []
    if charsmap := model.normalizer_spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(charsmap))
    if model.normalizer_spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if model.trainer_spec.model_type == 1:
        made = Tokenizer(models.Unigram(pieces, unknown, byte_fallback))
        made.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="never")
    elif model.trainer_spec.model_type == 2:
        ids = {piece: i for i, (piece, _) in enumerate(pieces)}
        merges = _merges(pieces, ids)
        unk = pieces[unknown][0]
        made = Tokenizer(models.BPE(ids, merges, unk_token=unk, byte_fallback=byte_fallback, fuse_unk=True))
    else:
        raise UserError(
            "The vocabulary is a SentencePiece model of words or characters, which tokenizer.json does not have. "
            "Export a model whose vocabulary is of the kind unigram or bpe."
        )
    made.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if model.normalizer_spec.add_dummy_prefix else []
    made.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    control, own = [p for (p, _), kind in zip(pieces, kinds, strict=True) if kind == 3], 4
    made.add_special_tokens([*control, *([pieces[unknown][0]] if unknown >= 0 else [])])
    made.add_tokens([AddedToken(p, normalized=False) for (p, _), k in zip(pieces, kinds, strict=True) if k == own])
    return made


def _merges(pieces: list[tuple[str, float]], ids: dict[str, int]) -> list[tuple[str, str]]:
    """The merges of a BPE model, the most likely result first."""
    found: list[tuple[float, int, int, tuple[str, str]]] = []
    for piece, score in pieces:
        halves = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        found += [(-score, ids[a], ids[b], (a, b)) for a, b in halves if a in ids and b in ids]
    return [pair for *_, pair in sorted(found)]
