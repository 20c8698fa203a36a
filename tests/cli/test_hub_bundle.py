"""`--bundle hf:owner/name`: what is fetched of a bundle on the hub, from a stand-in on this machine."""

import base64
import json
import threading
from pathlib import Path

import pytest

import vadapter
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


def test_a_bundle_of_the_hub_is_served_to_the_client_of_openai(server, tmp_path, monkeypatch):
    openai = pytest.importorskip("openai", reason="the client of OpenAI is not installed")
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra serve")
    pytest.importorskip("prometheus_client", reason="needs the extra serve")
    folder = tiny_bundle.write_bundle(tmp_path, lengths={"inputs": 40, "targets": 8})
    server.models["owner/owl"] = folder
    pictures = [Path("data/samples") / name for name in ("one.jpg", "two.png")]
    expected = vadapter.load(folder).caption(pictures)
    assert expected[0] != expected[1]
    found = []

    def ask(app, bound, say, **settings):
        """In the place of the server's process, which ends by a signal."""
        bound.listen()
        running = uvicorn.Server(uvicorn.Config(app, ws="none", log_level="error"))
        thread = threading.Thread(target=running.run, args=([bound],))
        thread.start()
        address = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        try:
            with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
                found.extend([each.id for each in client.models.list()])
                for picture in pictures:
                    url = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
                    part = {"type": "image_url", "image_url": {"url": url}}
                    asked = {"model": "owl", "messages": [{"role": "user", "content": [part]}]}
                    found.append(client.chat.completions.create(**asked).choices[0].message.content)
        finally:
            running.should_exit = True
            thread.join()

    monkeypatch.setattr("vadapter.serving.server.run", ask)
    assert main(["serve", f"--bundle=hf:owner/owl@{COMMIT}", "--port=0"]) == 0
    assert found == ["owl", *expected]
    assert {*server.fetched()} == {"bundle.json", "adapter.safetensors"}


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
