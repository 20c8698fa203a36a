"""`hf:owner/name`: what is fetched from the hub, what is kept, and what a user is told when it cannot be had."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vadapter
from tests.weights import families, hub_server
from tests.weights.hub_server import COMMIT
from vadapter.cli.main import main
from vadapter.weights import family as registry
from vadapter.weights import hub

constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture
def server(tmp_path, monkeypatch):
    with hub_server.serve() as server:
        hub_server.take_for_the_hub(server, monkeypatch, tmp_path)
        yield server


@pytest.fixture
def llama(server, tmp_path) -> Path:
    folder = families.write_folder("llama3", tmp_path / "served" / "llama")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md", "pytorch_model.bin"):
        (folder / name).write_text(json.dumps({"file": name}))
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_text("pickle")
    server.models["owner/llama"] = folder
    return folder


def run(source: str, out: Path, *more: str) -> int:
    return main(["import", f"--source={source}", f"--out={out}", *more])


def hashes(out: Path) -> dict:
    return json.loads((out / "sha256.json").read_text())


def same_weights(a: Path, b: Path) -> bool:
    return hashes(a) == hashes(b)


# ---- what is fetched


def test_a_model_of_the_hub_becomes_what_its_folder_becomes(llama, server, tmp_path, capsys):
    assert run("hf:owner/llama", tmp_path / "out") == 0
    assert run(str(llama), tmp_path / "by_hand") == 0
    assert same_weights(tmp_path / "out", tmp_path / "by_hand")
    source = json.loads((tmp_path / "out" / "import.json").read_text())["source"]
    wanted = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert source == {"name": "llama", "files": wanted, "hub": "hf:owner/llama", "commit": COMMIT}
    assert sorted(server.fetched()) == wanted  # no pickle, no page, no folder
    assert (tmp_path / "out" / "tokenizer" / "tokenizer.json").exists()
    assert "vadapter import --source=hf:owner/llama" in (tmp_path / "out" / "large.gin").read_text()


def test_what_the_cache_has_is_not_fetched_again(llama, server, tmp_path):
    assert run("hf:owner/llama", tmp_path / "a") == 0
    server.requests.clear()
    vadapter.import_weights("hf:owner/llama@v1", tmp_path / "b")
    assert server.fetched() == [] and len(server.requests) == 2  # the commit of the revision, and that it is kept
    assert same_weights(tmp_path / "a", tmp_path / "b")
    source = json.loads((tmp_path / "b" / "import.json").read_text())["source"]
    assert (source["hub"], source["commit"]) == ("hf:owner/llama@v1", COMMIT)


def test_an_encoder_is_fetched_without_a_tokenizer(server, tmp_path):
    folder = families.write_folder("siglip", tmp_path / "served" / "siglip")
    for name in ("tokenizer.json", "spiece.model", "preprocessor_config.json"):
        (folder / name).write_text(json.dumps({"file": name}))
    server.models["owner/siglip"] = folder
    assert run("hf:owner/siglip", tmp_path / "out") == 0
    assert sorted(server.fetched()) == ["config.json", "model.safetensors", "preprocessor_config.json"]


def sharded(folder: Path) -> None:
    """Gives the weights the name of a shard, with an index and a shard of another model."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    names = families.tensors("llama3")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {name: "model-00001-of-00001.safetensors" for name in names}})
    )
    (folder / "consolidated.safetensors").write_text("the same in another form")


def test_the_index_says_which_shards_are_fetched(llama, server, tmp_path):
    sharded(llama)
    assert run("hf:owner/llama", tmp_path / "out") == 0
    found = [name for name in server.fetched() if "safetensors" in name]
    assert found == ["model.safetensors.index.json", "model-00001-of-00001.safetensors"]


def test_a_download_that_breaks_off_goes_on_where_it_was(llama, server, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    size, server.cut = (llama / "model.safetensors").stat().st_size, 50_000
    assert size > server.cut
    assert run("hf:owner/llama", tmp_path / "out") == 0
    assert [given for _, path, given in server.requests if given] == ["bytes=50000-"]


@pytest.mark.parametrize("names", [["a-Q8_0.gguf"], ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]])
def test_a_repository_of_gguf_files_gives_the_only_model(server, tmp_path, names):
    folder = tmp_path / "served"
    folder.mkdir()
    for name in [*names, "mmproj-a.gguf", "a-MMPROJ-F16.gguf", "config.json"]:
        (folder / name).write_text(name)
    server.models["owner/gguf"] = folder
    found = hub.fetch("hf:owner/gguf", lambda settings, where: None)
    assert (os.path.basename(found.path), list(found.files)) == (names[0], names)
    assert sorted(server.fetched()) == names


def test_a_gguf_file_is_chosen_by_name(server, tmp_path, capsys):
    folder = tmp_path / "served"
    (folder / "Q4").mkdir(parents=True)
    for name in ("a-Q8_0.gguf", "Q4/a.gguf"):
        (folder / name).write_text(name)
    server.models["owner/gguf"] = folder
    assert run("hf:owner/gguf", tmp_path / "out") == 2
    assert "hf:owner/gguf/Q4/a.gguf" in capsys.readouterr().err
    found = hub.fetch("hf:owner/gguf/Q4/a.gguf@v1", lambda settings, where: None)
    assert found.path.endswith("/Q4/a.gguf") and server.fetched() == ["Q4/a.gguf"]
    assert run("hf:owner/gguf/b.gguf", tmp_path / "out") == 2
    assert "b.gguf is not in owner/gguf at main; it has Q4/a.gguf, a-Q8_0.gguf" in capsys.readouterr().err


# ---- without a network


def test_offline_the_cache_is_enough(llama, server, tmp_path, monkeypatch, capsys):
    assert run("hf:owner/llama", tmp_path / "a") == 0
    server.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert run("hf:owner/llama", tmp_path / "b") == 0
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert json.loads((tmp_path / "b" / "import.json").read_text())["source"]["commit"] == COMMIT
    assert "HF_HUB_OFFLINE" not in capsys.readouterr().out
    next((tmp_path / "cache").rglob("generation_config.json")).unlink()
    assert run("hf:owner/llama", tmp_path / "d") == 0
    assert "the cache has no generation_config.json" in capsys.readouterr().out
    assert run("hf:owner/other", tmp_path / "c") == 2
    assert "HF_HUB_OFFLINE is set, and the cache" in capsys.readouterr().err
    next((tmp_path / "cache").rglob("model.safetensors")).unlink()
    assert run("hf:owner/llama", tmp_path / "e") == 2
    assert "no safetensors" in (error := capsys.readouterr().err) and "import again with a network" in error
    assert server.requests == []


@pytest.mark.slow
def test_the_library_s_own_settings_hold(llama, server, tmp_path):
    server.models["owner/private"] = llama
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": server.token}

    def done(out: str, **more: str) -> subprocess.CompletedProcess:
        argv = [sys.executable, "-m", "vadapter", "import", "--source=hf:owner/private", f"--out={tmp_path / out}"]
        return subprocess.run(argv, capture_output=True, text=True, env={**env, **more})

    assert (done("a").returncode, done("a").returncode) == (0, 2)  # the second has no new folder
    assert (tmp_path / "home" / "hub" / "models--owner--private").is_dir()
    server.requests.clear()
    assert done("b", HF_HUB_OFFLINE="1").returncode == 0
    assert server.requests == []
    refused = done("c", HF_TOKEN="hf_wrong")
    assert refused.returncode == 2 and "or it is private" in refused.stderr and "Traceback" not in refused.stderr


def test_nothing_is_asked_for_without_such_a_name(llama, server, tmp_path):
    assert run(str(llama), tmp_path / "out") == 0
    assert server.requests == []


# ---- what goes wrong


def refused(source: str, tmp_path: Path, capsys, *more: str) -> str:
    assert run(source, tmp_path / "out", *more) == 2
    assert not (tmp_path / "out").exists()
    error = capsys.readouterr().err
    assert "Traceback" not in error and error.count("vadapter: error: ") == 1
    return error


@pytest.mark.parametrize(
    "source", ["hf:", "hf:llama", "hf:a/b/c", "hf:a/b@", "hf:owner/", "hf://owner/llama", "hf:a b/c"]
)
def test_a_malformed_name(server, tmp_path, capsys, source):
    assert "Expected a model of Hugging Face's hub as hf:owner/name" in refused(source, tmp_path, capsys)
    assert server.requests == []


def test_a_name_that_the_hub_does_not_allow(server, tmp_path, capsys):
    assert "is no name of a model that the hub has" in refused("hf:owner/a--b", tmp_path, capsys)


def test_a_model_that_is_not_there_private_or_gated(llama, server, tmp_path, capsys, monkeypatch):
    server.models |= {"owner/private": llama, "owner/gated": llama}
    assert "owner/none is not on" in refused("hf:owner/none", tmp_path, capsys)
    error = refused("hf:owner/private", tmp_path, capsys)
    assert "or it is private" in error and "HF_TOKEN" in error
    error = refused("hf:owner/gated", tmp_path, capsys)
    assert f"Accept it on {server.url}/owner/gated" in error and "HF_TOKEN" in error
    monkeypatch.setenv("HF_TOKEN", server.token)
    assert run("hf:owner/private", tmp_path / "out") == 0


def test_a_revision_that_is_not_there(llama, tmp_path, capsys):
    assert "owner/llama has no revision 'v9'" in refused("hf:owner/llama@v9", tmp_path, capsys)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_in_trouble(llama, server, tmp_path, capsys, status):
    server.answer = status
    assert f"answers {status} for hf:owner/llama. Try again later" in refused("hf:owner/llama", tmp_path, capsys)
    assert len(server.requests) == 1


def test_a_hub_that_cannot_be_reached(llama, server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    error = refused("hf:owner/llama", tmp_path, capsys)
    assert "cannot be fetched from http://127.0.0.1:9" in error and "HF_HUB_OFFLINE=1" in error


def test_a_hub_that_is_none(llama, server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", f"{server.url}/owner/llama/resolve/main/config.json?")
    assert "cannot be fetched from" in refused("hf:owner/llama", tmp_path, capsys)


def only(folder: Path, *names: str) -> None:
    for path in folder.iterdir():
        if path.name not in names and path.is_file():
            path.unlink()


def test_a_model_of_pickles(llama, server, tmp_path, capsys):
    only(llama, "config.json", "pytorch_model.bin")
    error = refused("hf:owner/llama", tmp_path, capsys)
    assert "PyTorch pickles only (original/consolidated.00.pth, pytorch_model.bin)" in error and "@refs/pr/1" in error
    assert server.fetched() == []


def test_a_repository_without_weights(llama, server, tmp_path, capsys):
    only(llama, "config.json")
    (llama / "original" / "consolidated.00.pth").unlink()
    assert "has no safetensors and no GGUF file at its top; it has config.json" in refused(
        "hf:owner/llama", tmp_path, capsys
    )


def test_several_files_without_an_index(llama, tmp_path, capsys):
    (llama / "model.safetensors").rename(llama / "a.safetensors")
    (llama / "b.safetensors").write_text("")
    assert "2 .safetensors files (a.safetensors, b.safetensors)" in refused("hf:owner/llama", tmp_path, capsys)


def test_an_index_that_names_what_is_not_there(llama, tmp_path, capsys):
    sharded(llama)
    (llama / "model-00001-of-00001.safetensors").unlink()
    assert "names model-00001-of-00001.safetensors, which is not there" in refused("hf:owner/llama", tmp_path, capsys)


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"model_type": "bert"}, (), "hf:owner/llama has the model_type 'bert'"),
        ({"model_type": "gemma3"}, (), "Choose with part: encoder or decoder"),
        ({"quantization_config": {"bits": 4}}, (), "quantization_config"),
        ({}, ("--part=encoder",), "has no encoder that can be imported; it has decoder (llama)"),
    ],
)
def test_a_model_that_cannot_be_imported_is_not_fetched(
    llama, server, tmp_path, capsys, monkeypatch, changes, more, message
):
    built_in = [(made, where) for made, where in registry._FAMILIES if where.startswith("vadapter.")]
    monkeypatch.setattr(registry, "_FAMILIES", built_in)  # another test's family may go by the names of tensors
    content = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**content, **changes}))
    assert message in refused("hf:owner/llama", tmp_path, capsys, *more)
    assert server.fetched() == ["config.json"]


def test_a_full_disk_is_noticed_before_the_download(llama, server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 5000})())
    error = refused("hf:owner/llama", tmp_path, capsys)
    assert "0.00 GB free" in error and "HF_HOME" in error
    assert "model.safetensors" not in server.fetched()


def test_without_the_library_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'vadapter[hub]'" in refused("hf:owner/llama", tmp_path, capsys)


def test_a_bare_name_of_the_hub_gets_a_hint(tmp_path, capsys):
    assert "hf:google/siglip" in refused("google/siglip", tmp_path, capsys)
