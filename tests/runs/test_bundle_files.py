import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

from tests.models import small
from vadapter.base import paths
from vadapter.base.errors import UserError
from vadapter.models.classifier import ClassifierConfig
from vadapter.runs import bundle, description
from vadapter.runs.bundle import Backbone
from vadapter.runs.description import Description, Text

TEXT = Text(
    vocabulary="../tokenizer",
    sha256="5e" * 32,
    lengths={"inputs": 32, "targets": 16},
    prompts={"caption": "Describe <media> | briefly."},
)
DESCRIPTION = Description(
    model=small.vlm("paper", num_frames=2),
    text=TEXT,
    resize="crop",
    frozen_dtype="float32",
    training={"steps": 7, "trainable": ["adapter/(a|b)/.*"], "evals": {"val": {"loss": 1.25}}},
)
BACKBONES = (
    Backbone({"encoder": 1000}, "../vit", 3, (("(encoder/.*)", r"\1"),), "ab" * 32),
    Backbone({"decoder": 2000}, "gs://bucket/large", 0, (("(decoder/.*)", r"\1"),), "cd" * 32),
)
ARRAYS = {
    "adapter/lm/layers/kernel": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "adapter/lm/scale": np.array(2.5, np.float32),
    "adapter/front/bias": np.arange(5).astype(ml_dtypes.bfloat16),
}


def export(folder, **changes):
    given = dict(step=7, backbones=BACKBONES, frozen=["adapter/front/bias"])
    return bundle.write(str(folder), DESCRIPTION, ARRAYS, **{**given, **changes})


def test_a_bundle_comes_back_as_it_was_written(tmp_path):
    written = export(tmp_path / "made/bundle")
    assert sorted(p.name for p in (tmp_path / "made").rglob("*")) == [
        "README.md",
        "adapter.safetensors",
        "bundle",
        "bundle.json",
    ]
    read = bundle.read(str(tmp_path / "made/bundle"))
    assert read == written
    assert (read.description, read.backbones, read.step) == (DESCRIPTION, BACKBONES, 7)
    assert read.frozen == ("adapter/front/bias",)
    arrays = read.arrays()
    assert list(arrays) == sorted(ARRAYS)
    for path, x in ARRAYS.items():
        assert (arrays[path].dtype, arrays[path].shape) == (x.dtype, x.shape)
        np.testing.assert_array_equal(arrays[path], x)


def test_the_card_says_what_is_inside_and_what_is_needed(tmp_path):
    export(tmp_path / "owl")
    card = (tmp_path / "owl/README.md").read_text()
    assert (
        "| adapter | Perceiver (1 deep, 4 queries), then a Decoder (16 wide, 2 deep); read-out slots | 18 | yes |"
        in card
    )
    assert "| encoder | ViT (32 wide, 2 deep) | 1,000 | no |" in card
    for backbone in BACKBONES:
        assert backbone.sha256 in card
    for words in ("--bundle=owl --encoder=DIR --decoder=DIR", "No licence", "| evals/val/loss | 1.25 |"):
        assert words in card
    rows = [line for line in card.splitlines() if line.startswith("|")]
    columns = [row.replace("\\|", "").count("|") for row in rows]
    assert set(columns) <= {3, 5, 6}, rows


def test_a_bundle_that_is_there_is_not_overwritten(tmp_path):
    export(tmp_path / "bundle")
    before = (tmp_path / "bundle/bundle.json").read_bytes()
    with pytest.raises(UserError, match="bundle is there already"):
        export(tmp_path / "bundle", step=8)
    assert (tmp_path / "bundle/bundle.json").read_bytes() == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file is there already"):
        export(tmp_path / "file")


def test_nothing_is_left_where_writing_fails(tmp_path):
    with pytest.raises(TypeError):
        bundle.write(
            str(tmp_path / "bundle"), dataclasses.replace(DESCRIPTION, training={"x": object()}), ARRAYS, step=1
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "changed", "removed"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    file = tmp_path / "bundle/adapter.safetensors"
    opened = export(tmp_path / "bundle")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(content if damage == "changed" else content[:-10])
    with pytest.raises(UserError, match="missing" if damage == "removed" else f"{opened.sha256}; it now has "):
        bundle.read(str(tmp_path / "bundle")).arrays()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.update(format=2, vadapter="9.1"), "format 2; this version .* reads the format 1.*9.1"),
        (lambda r: r.pop("backbones"), "not as vadapter .* writes it .'backbones'"),
        (lambda r: r.pop("text"), "not as vadapter writes it"),
        (lambda r: r["text"].update(casing="lower"), "not as vadapter writes it .*casing"),
        (lambda r: r["model"].update(experts=8), "experts"),
    ],
)
def test_what_this_version_cannot_read_is_refused(tmp_path, change, words):
    export(tmp_path / "bundle")
    file = tmp_path / "bundle/bundle.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match=words):
        bundle.read(str(tmp_path / "bundle"))
    file.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        bundle.read(str(tmp_path / "bundle"))
    with pytest.raises(UserError, match="A bundle was expected in .*vadapter export"):
        bundle.read(str(tmp_path))


def test_a_run_is_described_in_its_folder(tmp_path):
    description.save(str(tmp_path), DESCRIPTION)
    assert description.load(str(tmp_path)) == DESCRIPTION
    classifier = Description(ClassifierConfig(small.vit(), (3,)))
    description.save(str(tmp_path), classifier)
    assert description.load(str(tmp_path)) == classifier
    with pytest.raises(UserError, match="no model.json, which vadapter train writes"):
        description.load(str(tmp_path / "empty"))


def test_paths_are_kept_when_a_description_moves():
    moved = DESCRIPTION.moved("runs/stage2", "out/bundle")
    assert moved.text.vocabulary == "../../runs/tokenizer"
    assert moved.moved("out/bundle", "runs/stage2") == DESCRIPTION
    shipped = dataclasses.replace(DESCRIPTION, text=dataclasses.replace(TEXT, vocabulary=""))
    assert shipped.moved("a", "b/c") == shipped
    assert paths.resolve(paths.relative("gs://bucket/run", "out"), "out") == "gs://bucket/run"
