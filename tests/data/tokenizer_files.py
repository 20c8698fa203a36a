"""Small real tokenisers of the families, in the official formats."""

import io
import json
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

_TEXTS = (
    "a big red square at the top left and a small blue ring",
    "what colour is the ring ? yellow, green, and not red",
    "Describe the following: one two three user model assistant",
)
_SPECIAL = {
    "gemma": ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
    "llama2": ("<unk>", "<s>", "</s>"),
    "qwen": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "llama3": (
        *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>"),
        *("<|end_header_id|>", "<|eot_id|>"),
    ),
}
_CONFIG = {
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>"},
    "llama2": {"bos_token": {"content": "<s>"}, "eos_token": {"content": "</s>"}},
    "qwen": {"bos_token": None, "eos_token": "<|endoftext|>"},
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
}


def write_tokenizer(folder: Path | str, family: str) -> Path:
    """Writes tokenizer.json and tokenizer_config.json of a small tokeniser; less than 400 ids.

    Args:
        folder: made if needed.
        family: gemma (pieces with byte fallback), llama2 (the same, with a space put before texts), qwen or llama3
            (byte level, special tokens at the end, "!" is id 0).

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made = _byte_level(family) if family in ("qwen", "llama3") else _pieces(family)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(_CONFIG[family]))
    return folder


def _byte_level(family: str) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(_TEXTS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet))
    made.add_special_tokens(list(_SPECIAL[family]))
    if family == "qwen":
        made.add_tokens(["<think>", "</think>", "<tool_call>", "<|fim_prefix|>", "<table>"])
    return made


def _pieces(family: str) -> Tokenizer:
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator(_TEXTS, trainers.BpeTrainer(vocab_size=120))
    state = json.loads(trained.to_str())["model"]
    pieces = [*_SPECIAL[family], *(f"<0x{byte:02X}>" for byte in range(256)), *state["vocab"]]
    merges = [tuple(merge) for merge in state["merges"]]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if family == "llama2" else replace
    strip = [decoders.Strip(" ", 1, 0)] if family == "llama2" else []
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    made.add_special_tokens(list(_SPECIAL[family]))
    return made


def write_sentencepiece(path: Path | str, family: str) -> Path:
    """Writes a SentencePiece model like that of `gemma` (turns as user-defined pieces) or of `llama2`."""
    model = io.BytesIO()
    gemma = family == "gemma"
    ids = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3} if gemma else {"unk_id": 0, "bos_id": 1, "eos_id": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TEXTS * 4),
        model_writer=model,
        model_type="bpe",
        vocab_size=360,
        byte_fallback=True,
        add_dummy_prefix=not gemma,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=["<start_of_turn>", "<end_of_turn>"] if gemma else [],
        minloglevel=2,
        **ids,
    )
    Path(path).write_bytes(model.getvalue())
    return Path(path)
