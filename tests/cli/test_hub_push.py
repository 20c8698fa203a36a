"""`vadapter export --push` to a stand-in for the hub on this machine, and the card that goes with it."""

import json
import shutil

import pytest

from tests import tiny_bundle
from tests.weights import hub_server
from vadapter.cli.main import main
from vadapter.runs import bundle as bundles

constants = pytest.importorskip("huggingface_hub.constants")
MADE_FROM = [
    {"name": "siglip", "hub": "hf:google/siglip@v1", "commit": "ab" * 20, "family": "siglip", "license": "apache-2.0"},
    {"name": "words.gguf", "family": "llama", "sha256": "cd" * 32},
]
FIGURES = [{"name": "vqa/accuracy", "score": 0.5, "interval": [0.25, 0.75], "data": "cats", "records": 12}]


@pytest.fixture
def server(tmp_path, monkeypatch):
    with hub_server.serve() as server:
        hub_server.take_for_the_hub(server, monkeypatch, tmp_path)
        monkeypatch.setenv("HF_TOKEN", server.token)
        server.root = tmp_path / "hub"
        yield server


@pytest.fixture
def bundle(tmp_path):
    folder = tiny_bundle.write_bundle(tmp_path, "owl", lengths={"inputs": 40, "targets": 8})
    record = json.loads((folder / "bundle.json").read_text())
    record["training"] = {"made_from": MADE_FROM, "figures": FIGURES, "mixture": "cats", "license": "mit"}
    (folder / "bundle.json").write_text(json.dumps(record))
    (folder / "README.md").unlink()
    (folder / "notes.txt").write_text("mine")
    return folder


def export(*arguments):
    return main(["export", *map(str, arguments)])


def changes(server):
    return [path for method, path, _ in server.requests if method == "POST"]


def test_a_pushed_bundle_is_used_by_its_name(server, bundle, tmp_path, capsys):
    assert export("--bundle", bundle, "--push=hf:owner/owl", "--private") == 0
    assert f"{server.url}/owner/owl/commit/" in capsys.readouterr().out
    assert server.private == {"owner/owl"}
    there = server.models["owner/owl"]
    assert sorted(file.name for file in there.iterdir()) == ["README.md", "adapter.safetensors", "bundle.json"]
    out = tmp_path / "out.jsonl"
    asked = ["--media", "data/samples/two.png", "--out", str(out)]
    assert main(["infer", "--bundle", "hf:owner/owl", *asked]) == 0
    text = out.read_text()
    assert main(["infer", "--bundle", str(bundle), *asked[:2], "--out", str(tmp_path / "b.jsonl")]) == 0
    assert (tmp_path / "b.jsonl").read_text() == text


def test_the_hub_reads_the_card_and_it_says_what_is_known(server, bundle):
    from huggingface_hub import ModelCard

    export("--bundle", bundle, "--push=hf:owner/owl")
    card = ModelCard((server.models["owner/owl"] / "README.md").read_text())
    expected = {"library_name": "vadapter", "license": "mit", "base_model": ["google/siglip"]}
    assert {**card.data.to_dict(), **expected} == card.data.to_dict()
    assert "vadapter infer --bundle=hf:owner/owl --media=photo.jpg" in card.text
    assert f"| siglip | hf:google/siglip@v1 (commit `{'ab' * 20}`) | siglip | apache-2.0 |" in card.text
    assert "| words.gguf | not known | llama | not known |" in card.text
    assert "| vqa/accuracy | 0.5 | 0.25 to 0.75 | cats | 12 records |" in card.text


def test_a_card_that_somebody_edited_goes_as_it_is(server, bundle):
    export("--bundle", bundle, "--push=hf:owner/owl")
    (bundle / "README.md").write_text("my words")
    assert export("--bundle", bundle, "--push=hf:owner/owl") == 0
    assert (server.models["owner/owl"] / "README.md").read_text() == "my words"


def test_a_folder_for_transformers_takes_the_place_of_a_bundle(server, bundle, tmp_path):
    from huggingface_hub import ModelCard

    export("--bundle", bundle, "--push=hf:owner/owl")
    there = server.models["owner/owl"]
    (there / "photo.jpg").write_bytes(b"theirs")
    out = tmp_path / "out"
    assert export("--bundle", bundle, "--format=transformers", "--out", out, "--push=hf:owner/owl") == 0
    assert {file.name for file in there.iterdir()} == {"photo.jpg", *(file.name for file in out.iterdir())}
    card = ModelCard((out / "README.md").read_text())
    head = card.data.to_dict()
    assert (head["library_name"], head["license"]) == ("transformers", "mit")
    assert 'from_pretrained("owner/owl", trust_remote_code=True)' in card.text


@pytest.mark.parametrize(
    "login, says",
    [
        ({"name": "other"}, "expected the owner to be one of other"),
        ({"name": "other", "orgs": [{"name": "owner", "roleInOrg": "read"}]}, "may read owner/owl and not write"),
        ({"name": "owner", "auth": {"accessToken": {"role": "read"}}}, "may read owner/owl and not write"),
        ({"name": "owner", "auth": {"accessToken": {"role": "fineGrained"}}}, "may read owner/owl and not write"),
    ],
)
def test_who_may_not_write_is_told_before_any_work(server, bundle, tmp_path, capsys, login, says):
    server.login = login
    out = tmp_path / "out"
    assert export("--bundle", bundle, "--format=transformers", "--out", out, "--push=hf:owner/owl") == 2
    assert says in capsys.readouterr().err
    assert not out.exists() and not changes(server)


def test_a_fine_grained_token_and_a_member_of_an_organisation_may_write(server, bundle):
    scope = {"entity": {"name": "owner", "type": "org"}, "permissions": ["repo.write"]}
    token = {"role": "fineGrained", "fineGrained": {"scoped": [scope]}}
    server.login = {"name": "me", "orgs": [{"name": "owner", "roleInOrg": "write"}], "auth": {"accessToken": token}}
    assert export("--bundle", bundle, "--push=hf:owner/owl") == 0


def test_wrong_pushes_are_refused(server, bundle, tmp_path, capsys, monkeypatch):
    def says(*arguments):
        assert export(*arguments) == 2
        return capsys.readouterr().err

    at = ("--bundle", bundle)
    assert "hf:owner/name" in says(*at, "--push=owner/owl")
    assert "on the branch main" in says(*at, "--push=hf:owner/owl@v1")
    assert "--private goes with --push" in says(*at, "--private")
    assert "pushed as it is" in says(*at, "--push=hf:owner/owl", "--out", tmp_path / "out")
    assert "no name of one" in says(*at, "--push=hf:owner/owl", "--license=a licence")
    assert "Say with --out" in says("--checkpoint", tmp_path, "--push=hf:owner/owl")
    server.models["owner/owl"] = tmp_path
    assert "is public" in says(*at, "--push=hf:owner/owl", "--private")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not know the login (401)" in says(*at, "--push=hf:owner/owl")
    monkeypatch.delenv("HF_TOKEN")
    assert "Nobody is logged in" in says(*at, "--push=hf:owner/owl")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in says(*at, "--push=hf:owner/owl")
    assert not changes(server)


def test_a_damaged_bundle_is_not_pushed(server, bundle, capsys):
    (bundle / bundles.ADAPTER).write_bytes(b"cut")
    assert export("--bundle", bundle, "--push=hf:owner/owl") == 2
    assert "incomplete or was changed" in capsys.readouterr().err
    shutil.rmtree(bundle)
    assert export("--bundle", bundle, "--push=hf:owner/owl") == 2
    assert not changes(server)


def test_the_licence_of_an_imported_model_is_kept(server):
    from vadapter.weights import hub

    server.cards["owner/words"] = {"license": "gemma"}
    server.models["owner/words"] = folder = server.root / "words"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "config.json").write_text("{}")
    assert hub.fetch("hf:owner/words", lambda settings, where: None).license == "gemma"
