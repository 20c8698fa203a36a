"""Writes what `fetch.py` got as JSONL files and PNG pictures, the form that every run of vadapter reads.

python examples/open/write_data.py --raw examples/open/data/raw --out examples/open/data/sets

    captions_train.jsonl         names of emoji, drawn by two hands, with skin tones
    captions_validation.jsonl    100 other concepts
    captions_test.jsonl          150 other concepts; no hand's drawing of them is in training
    captions_unseen_hand.jsonl   200 concepts of training, drawn by a third hand
    questions_*.jsonl            questions about the same pictures (`questions.py`)
    easy_vqa_train, _test.jsonl  easy-VQA's own: coloured shapes
    all_*.jsonl                  as many captions as emoji questions as easy-VQA questions
    chats_*.jsonl                conversations about two of these pictures each (`chats.py`)

    texts.txt                    definitions of WordNet, a line each: texts for the hand-off to stage 2

Needs pillow and resvg-py. The folder appears when it is complete, or not at all.
"""

import argparse
import json
import os
import random
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import emoji
from chats import chats
from emoji import Picture
from questions import questions

SPLITS = ("train", "validation", "test", "unseen_hand")
LONGEST = 80  # characters of a caption of training: two longer ones would need more text than all others
TEXTS = 4000  # definitions

Row = dict[str, Any]


def save(pictures: Iterable[Picture], out: Path) -> None:
    """Writes the PNG files."""
    from PIL import Image

    for picture in pictures:
        path = out / address(picture)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.pixels).save(path)


def address(picture: Picture) -> str:
    """Where a picture lies, seen from the JSONL files."""
    return f"pictures/{picture.hand}/{picture.file}"


def emoji_rows(pictures: Iterable[Picture]) -> dict[str, list[Row]]:
    """Returns the rows of each JSONL file about emoji. Those of a test are in an order that a seed has drawn, so that
    the first of them are a fair sample."""
    rows: dict[str, list[Row]] = {}
    for split in SPLITS:
        mine = [p for p in pictures if p.split == split and (split != "train" or len(p.caption) <= LONGEST)]
        captions = [{"id": f"{p.hand}/{p.caption}", "image": address(p), "caption": p.caption} for p in mine]
        asked: list[Row] = []
        for hand in dict.fromkeys(p.hand for p in mine):
            for p, question, answer in questions([p for p in mine if p.hand == hand]):
                number = f"{p.hand}/{p.concept}/{question}"
                asked.append({"id": number, "image": address(p), "question": question, "answers": [answer]})
        for name, some in (("captions", captions), ("questions", asked)):
            random.Random(3).shuffle(some)
            rows[f"{name}_{split}"] = some
    return rows


def easy_vqa_rows(wheel: Path, out: Path) -> dict[str, list[Row]]:
    """Returns the rows of easy-VQA's two splits, and writes its pictures."""
    rows: dict[str, list[Row]] = {}
    with zipfile.ZipFile(wheel) as file:
        for split in ("train", "test"):
            folder = f"pictures/easy_vqa_{split}"
            (out / folder).mkdir(parents=True, exist_ok=True)
            listed = json.loads(file.read(f"easy_vqa/data/{split}/questions.json"))
            for number in sorted({number for _, _, number in listed}):
                (out / folder / f"{number}.png").write_bytes(file.read(f"easy_vqa/data/{split}/images/{number}.png"))
            rows[f"easy_vqa_{split}"] = [
                {"id": f"{split}/{i}", "image": f"{folder}/{number}.png", "question": question, "answers": [answer]}
                for i, (question, answer, number) in enumerate(listed)
            ]
            random.Random(3).shuffle(rows[f"easy_vqa_{split}"])
    return rows


def mixed(rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Returns the files `all_*`: as many rows of each kind as the smallest has, in a drawn order."""
    made = {}
    parts = {"train": ("captions", "questions", "easy_vqa"), "validation": ("captions", "questions")}
    for split, names in parts.items():
        sets = [rows[f"{name}_{split}"] for name in names]
        some = [row for found in sets for row in found[: min(map(len, sets))]]
        random.Random(4).shuffle(some)
        made[f"all_{split}"] = some
    return made


def definitions(raw: Path) -> list[str]:
    """Returns WordNet's nouns with their definitions, in a drawn order."""
    found = []
    for line in (raw / "wordnet/dict/data.noun").read_text(encoding="latin-1").splitlines():
        if not line.startswith(" "):
            fields, gloss = line.split(" | ", 1)
            word = fields.split()[4].replace("_", " ")
            found.append(f" {word}: {gloss.split(';')[0].strip()}")
    random.Random(2).shuffle(found)
    return found[:TEXTS]


def write(raw: Path, out: Path) -> dict[str, int]:
    """Writes everything, unless it is there; returns the number of rows of each file."""
    if not out.is_dir():
        partial = out.with_name(f"{out.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        pictures = emoji.pictures(raw)
        save(pictures, partial)
        rows = emoji_rows(pictures) | easy_vqa_rows(next(raw.glob("easy_vqa-*.whl")), partial)
        rows |= mixed(rows) | {f"chats_{split}": chats(rows[f"captions_{split}"]) for split in SPLITS}
        for name, some in rows.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some)
            (partial / f"{name}.jsonl").write_text(text, encoding="utf-8")
        texts = "".join(f"{text.strip()}\n" for text in definitions(raw))
        (partial / "texts.txt").write_text(texts, encoding="utf-8")
        os.replace(partial, out)
    return {path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in sorted(out.glob("*.jsonl"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", required=True, type=Path, help="what fetch.py made")
    parser.add_argument("--out", required=True, type=Path, help="the folder to write")
    args = parser.parse_args()
    for name, count in write(args.raw, args.out).items():
        print(f"{name:26} {count:7,}")


if __name__ == "__main__":
    main()
