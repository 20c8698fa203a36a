"""Bundles of others: what is wrong with one is told in a paragraph, before anything large is made."""

import copy
import json
import os
import re

import pytest

from tests import hang
from tests.tiny_bundle import write_bundle
from vadapter.base import patterns
from vadapter.base.errors import UserError
from vadapter.runs.load import load


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def changed(written, tmp_path):
    """Gives the bundle with its bundle.json changed."""
    (tmp_path / "bundle").mkdir()
    os.link(written / "adapter.safetensors", tmp_path / "bundle/adapter.safetensors")
    record = json.loads((written / "bundle.json").read_text())

    def change(place, value):
        made = copy.deepcopy(record)
        *folders, last = place
        inner = made
        for key in folders:
            inner = inner[key]
        inner[last] = value
        (tmp_path / "bundle/bundle.json").write_text(json.dumps(made))
        return tmp_path / "bundle"

    return change


def refusal(folder):
    with hang.stopped(), pytest.raises(UserError) as error:
        load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


BACKBONE = {"parts": {"encoder": 10}, "path": "../vit", "step": 0, "rules": [["(encoder/.*)", r"\1"]], "sha256": "ab"}
WRONG = [
    (("model",), 7),
    (("model",), {"class": ["VLMConfig"]}),
    (("model", "decoder"), "x"),
    (("model", "encoder"), 0),
    (("model", "decoder", "depth"), 10**9),
    (("model", "decoder", "depth"), "many"),
    (("model", "decoder", "depth"), -1),
    (("model", "decoder", "vocab_size"), 10**30),
    (("model", "decoder", "num_heads"), 0),
    (("model", "decoder", "rope_pattern"), 1),
    (("model", "decoder", "rope_base"), float("nan")),
    (("model", "decoder", "dtype"), "float33"),
    (("model", "encoder", "image_size"), 10**6),
    (("model", "encoder", "mean"), [0.5]),
    (("model", "num_frames"), []),
    (("text",), [1]),
    (("text", "lengths"), {"inputs": 16}),
    (("text", "lengths"), {"inputs": 10**9, "targets": 16}),
    (("text", "vocabulary"), 7),
    (("preprocessing",), None),
    (("preprocessing", "resize"), 5),
    (("frozen_dtype",), []),
    (("backbones",), 3),
    (("backbones",), [3]),
    (("backbones",), [{**BACKBONE, "path": 3}]),
    (("backbones",), [{**BACKBONE, "parts": ["encoder"]}]),
    (("backbones",), [{**BACKBONE, "rules": [["(a+)+b", "x"]]}]),
    (("backbones",), [{**BACKBONE, "rules": [["(", "x"]]}]),
    (("adapter",), None),
    (("adapter", "frozen"), 5),
    (("step",), "1"),
]


@pytest.mark.parametrize(("place", "value"), WRONG, ids=lambda x: ".".join(x) if isinstance(x, tuple) else str(x)[:20])
def test_a_malformed_bundle_is_a_paragraph(changed, place, value):
    assert "bundle" in refusal(changed(place, value))


NO_BUNDLES = ["", "[", "[]", "null", "[" * 100_000, '{"format": 1}', '{"format": 1, "model": {}}', "\0"]


@pytest.mark.parametrize("text", NO_BUNDLES, ids=lambda text: text[:12])
def test_a_bundle_that_is_no_bundle_is_a_paragraph(tmp_path, text):
    (tmp_path / "bundle.json").write_text(text)
    assert "bundle.json" in refusal(tmp_path)


def test_a_pipe_in_a_bundle_is_refused(changed, tmp_path):
    folder = changed(("step",), 1)
    (folder / "adapter.safetensors").unlink()
    os.mkfifo(folder / "adapter.safetensors")
    refusal(folder)


ENDLESS = ["(a+)+b", "(a|aa)*b", "(a?a?)*b", "(.*)*", ".*" * 9 + "b", "a?" * 40 + "a" * 40, "((a{1,9}){1,9}){1,9}b"]


@pytest.mark.parametrize("pattern", ENDLESS)
def test_rules_that_could_take_without_end_are_refused(pattern):
    with pytest.raises(UserError, match="path rule"):
        patterns.check([pattern], "bundle.json")


@pytest.mark.parametrize("pattern", [r"(a)\1", "(", "x" * 2000, 7, None, "(?P<a>b)(?(a)c|d)"])
def test_odd_rules_are_refused(pattern):
    with pytest.raises(UserError, match="path rule"):
        patterns.check([pattern], "bundle.json")


@pytest.mark.parametrize(
    "pattern",
    ["(.*)", "(encoder/.*)", r"decoder/((?!embedder/).*)", r"(.+/)?layers/(\d+)/[^/]*", "adapter/(lm|front)/.*/kernel"],
)
def test_rules_as_runs_have_them_are_taken_and_end(pattern):
    patterns.check([pattern], "bundle.json")
    with hang.stopped():
        re.fullmatch(pattern, "decoder/" + "a/" * 500 + "b")
