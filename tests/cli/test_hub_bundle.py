"""`--bundle hf:owner/name`: what is fetched of a bundle on the hub, from a stand-in on this machine."""

import json

import pytest

from tests import tiny_bundle
from tests.weights import hub_server
from tests.weights.hub_server import COMMIT
from vadapter.cli.main import main

constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture
def server(tmp_path, monkeypatch):
    with hub_server.serve() as server:
        hub_server.take_for_the_hub(server, monkeypatch, tmp_path)
        yield server


def infer(bundle, out):
    status = main(["infer", "--bundle", str(bundle), "--media", "data/samples/two.png", "--out", str(out)])
    return status, json.loads(out.read_text())["text"] if status == 0 else None


def test_a_bundle_of_the_hub_answers_as_its_folder_does(server, tmp_path, monkeypatch):
    folder = tiny_bundle.write_bundle(tmp_path, lengths={"inputs": 40, "targets": 8})
    (folder / "modeling_evil.py").write_text("raise SystemExit(7)")
    (folder / "pytorch_model.bin").write_text("pickle")
    server.models["owner/owl"] = folder
    expected = infer(folder, tmp_path / "a.jsonl")
    assert expected[0] == 0
    assert infer(f"hf:owner/owl@{COMMIT}", tmp_path / "b.jsonl") == expected
    assert {*server.fetched()} == {"bundle.json", "adapter.safetensors"}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(server.requests)
    assert infer(f"hf:owner/owl@{COMMIT}", tmp_path / "c.jsonl") == expected
    assert len(server.requests) == asked


def test_what_is_no_bundle_is_said(server, tmp_path, capsys):
    def says(bundle):
        assert infer(bundle, tmp_path / "out.jsonl")[0] == 2
        return capsys.readouterr().err

    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    server.models["owner/other"] = other
    assert "has no bundle.json" in says("hf:owner/other")
    assert "is not on" in says("hf:owner/none")
    assert "no revision 'v9'" in says("hf:owner/other@v9")
    assert "Expected a model of Hugging Face's hub as" in says("hf:owl")
    assert "names a GGUF file" in says("hf:owner/other/model.gguf")
