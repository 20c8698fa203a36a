"""`vadapter import`: what it writes, that gin files describe the model, and that a failure leaves nothing behind."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import gin
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests import saved
from tests.weights import families
from vadapter.base import fingerprints, trees
from vadapter.cli.main import main
from vadapter.models import variants
from vadapter.models.decoder import DecoderConfig
from vadapter.models.positions import RopeScaling
from vadapter.models.vit import ViTConfig
from vadapter.recipes import gin_front, gin_text
from vadapter.weights import store
from vadapter.weights.checkpoint import open_checkpoint
from vadapter.weights.files_safetensors import SafetensorsFiles
from vadapter.weights.recognise import recognise

gin_front.register([ViTConfig, DecoderConfig, RopeScaling], [variants.encoder, variants.decoder])
TOKENIZER = {
    "tokenizer.json": '{"model": 1}',
    "tokenizer_config.json": '{"eos_token": "x"}',
    "generation_config.json": "{}",
    "special_tokens_map.json": "{}",
}


@pytest.fixture(autouse=True)
def clean_gin():
    yield
    gin.clear_config()


@pytest.fixture
def siglip(tmp_path) -> Path:
    return families.write_folder("siglip_vision", tmp_path / "siglip")


@pytest.fixture
def llama(tmp_path) -> Path:
    folder = families.write_folder("llama3", tmp_path / "llama")
    for name, content in TOKENIZER.items():
        (folder / name).write_text(content)
    return folder


def run(source: Path, out: Path, *more: str) -> int:
    return main(["import", f"--source={source}", f"--out={out}", *more])


def resolved(name: str, *files: Path, bindings=()) -> ViTConfig | DecoderConfig:
    """What an experiment gets for `encoder`, `tiny/decoder` or `large/decoder`."""
    gin_front.parse_gin([str(file) for file in files], bindings)
    scope, _, function = name.rpartition("/")
    with gin.config_scope(scope or None):
        return gin.get_configurable(function)()


def params_of(source: Path, part: str | None = None) -> dict[str, np.ndarray]:
    _, params, found = families.load(open_checkpoint(str(source)), part)
    return {f"{found.part}/{path}": x for path, x in trees.flatten(params).items()}


# ---- what it writes


def test_a_vision_encoder(siglip, tmp_path, capsys):
    out = tmp_path / "new" / "weights"
    assert run(siglip, out, "--dtype=f32") == 0
    assert {path.name for path in out.iterdir()} == {"checkpoint_0", "sha256.json", "encoder.gin", "import.json"}
    wanted = params_of(siglip)
    found = saved.load_params(str(out))
    assert found.keys() == wanted.keys()
    for path, x in wanted.items():
        np.testing.assert_array_equal(found[path], x)
    assert fingerprints.load(str(out), 0) == {path: fingerprints.of_array(x) for path, x in wanted.items()}
    count = sum(x.size for x in wanted.values())
    record = json.loads((out / "import.json").read_text())
    expected = {
        "kind": "huggingface",
        "family": "siglip",
        "part": "encoder",
        "source": {"name": "siglip", "files": ["config.json", "model.safetensors"]},
        "dtype": "float32",
        "parameters": count,
        "bytes": 4 * count,
        "tokenizer": {},
    }
    assert expected.items() <= record.items()
    fields = {name: tuple(x) if isinstance(x, list) else x for name, x in record["config"].items()}
    assert ViTConfig(**fields) == resolved("encoder", out / "encoder.gin")
    assert f"siglip (encoder) into {out}: {count:,} parameters" in capsys.readouterr().out


def test_a_decoder_with_its_tokenizer_in_bf16(llama, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(llama, out) == 0
    wanted = params_of(llama)
    found = saved.load_params(str(out))
    assert found.keys() == wanted.keys()
    assert any(path.startswith("decoder/layers/") for path in found)
    for path, x in wanted.items():
        np.testing.assert_array_equal(found[path], x.astype(ml_dtypes.bfloat16))
    assert {path.name for path in out.glob("*.gin")} == {"tiny.gin", "large.gin"}
    assert {path.name: path.read_text() for path in (out / "tokenizer").iterdir()} == TOKENIZER
    record = json.loads((out / "import.json").read_text())
    assert record["tokenizer"] == {name: hashlib.sha256(x.encode()).hexdigest() for name, x in TOKENIZER.items()}
    assert "tokenizer" not in capsys.readouterr().out


def test_a_note_about_the_source_is_printed(tmp_path, capsys):
    source = families.write_folder("gemma2", tmp_path / "gemma2")
    tensors = families.tensors("gemma2")
    save_file({**tensors, "lm_head.weight": 2 * tensors["model.embed_tokens.weight"]}, source / "model.safetensors")
    assert run(source, tmp_path / "out") == 0
    assert "its lm_head.weight differs" in capsys.readouterr().out
    assert resolved("large/decoder", tmp_path / "out" / "large.gin").tied_head is False


def test_both_parts_of_one_source(tmp_path, capsys):
    source = families.write_folder("gemma3", tmp_path / "gemma3")
    assert run(source, tmp_path / "a") == 2
    assert "Choose with part: encoder or decoder" in capsys.readouterr().err
    for part, gin_file in (("encoder", "encoder.gin"), ("decoder", "large.gin")):
        assert run(source, tmp_path / part, f"--part={part}") == 0
        assert (tmp_path / part / gin_file).exists()
        assert saved.load_params(str(tmp_path / part)).keys() == params_of(source, part).keys()
    assert "No tokenizer lies beside the source" in capsys.readouterr().out


def test_an_import_needs_neither_tensorflow_nor_seqio(siglip, tmp_path):
    code = (
        "import sys; from vadapter.cli.main import main; status = main(sys.argv[1:]);"
        "sys.exit(status or len(sys.modules.keys() & {'tensorflow', 'seqio', 'torch', 'transformers'}))"
    )
    argv = [sys.executable, "-c", code, "import", f"--source={siglip}", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# ---- gin files


def all_configs():
    for name in families.FAMILIES:
        source = families.opened(families.config(name), families.tensors(name))
        for part in ("encoder", "decoder") if name == "gemma3" else (None,):
            yield f"{name} {part}", recognise(source, part).config
    yield from ((name, variants.encoder(name)) for name in variants.ENCODERS)
    yield from ((name, variants.decoder(name)) for name in variants.DECODERS)


def test_gin_files_describe_every_model(tmp_path):
    for name, config in all_configs():
        files = gin_text.gin_files(config, '/a "b"/c', f"vadapter import\n\n{name}")
        assert files.keys() == ({"encoder.gin"} if isinstance(config, ViTConfig) else {"tiny.gin", "large.gin"})
        for file, text in files.items():
            (tmp_path / file).write_text(text)
            made = file.removesuffix(".gin")
            made = made if made == "encoder" else f"{made}/decoder"
            assert resolved(made, tmp_path / file) == config, name
            assert gin.query_parameter(f"{file.removesuffix('.gin').upper()}_WEIGHTS/macro.value") == '/a "b"/c'
            assert text.startswith(f"# vadapter import\n#\n# {name}\n")


def test_gin_files_leave_to_the_run_what_is_the_run_s_and_win_over_its_variant(tmp_path):
    config = variants.decoder("llama3.2_1b")
    config = dataclasses.replace(config, dtype="float32", remat="full")
    (tmp_path / "tiny.gin").write_text(gin_text.gin_files(config, "/a", "")["tiny.gin"])
    recipe = ["decoder.remat = 'dots'", "tiny/decoder.variant = 'gemma3_1b'"]
    (tmp_path / "recipe.gin").write_text("\n".join(recipe))
    found = resolved("tiny/decoder", tmp_path / "recipe.gin", tmp_path / "tiny.gin")
    assert found == dataclasses.replace(config, remat="dots", dtype="bfloat16")


def test_gin_files_name_the_folder_absolutely(llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(llama, Path("out")) == 0
    text = (tmp_path / "out" / "large.gin").read_text()
    assert f'LARGE_WEIGHTS = "{tmp_path}/out"' in text
    assert text.startswith(f"# vadapter import --source={llama} --out=out")


# ---- tokenizers


@pytest.mark.parametrize("given", ["file", "folder", "imported", "spiece"])
def test_a_tokenizer_from_elsewhere(tmp_path, given):
    source = families.write_folder("llama3", tmp_path / "llama")
    elsewhere = tmp_path / "elsewhere"
    inner = elsewhere / "tokenizer" if given == "imported" else elsewhere
    inner.mkdir(parents=True)
    name = {"file": "any.model", "spiece": "spiece.model"}.get(given, "tokenizer.json")
    (inner / name).write_text("tokens")
    path = elsewhere / name if given == "file" else elsewhere
    assert run(source, tmp_path / "out", f"--tokenizer={path}") == 0
    wanted = "tokenizer.model" if given in ("file", "spiece") else "tokenizer.json"
    assert [x.name for x in (tmp_path / "out" / "tokenizer").iterdir()] == [wanted]
    assert (tmp_path / "out" / "tokenizer" / wanted).read_text() == "tokens"


@pytest.mark.parametrize("path", ["none.json", "empty", "tokenizer.txt"])
def test_what_is_no_tokenizer_is_refused(llama, tmp_path, path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "tokenizer.txt").write_text("")
    assert run(llama, tmp_path / "out", f"--tokenizer={tmp_path / path}") == 2
    assert path in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_vision_encoder_takes_no_tokenizer(siglip, tmp_path, capsys):
    assert run(siglip, tmp_path / "out", "--tokenizer=a.json") == 2
    assert "a vision encoder reads no text" in capsys.readouterr().err


# ---- what goes wrong


def damage_config(folder: Path, **changes) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


BAD = {
    "truncated": (truncate, "model.safetensors is no complete safetensors file"),
    "pickles": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "pytorch_model.bin: PyTorch pickles are not read",
    ),
    "unknown": (lambda folder: damage_config(folder, model_type="bert"), "bert"),
    "no_config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "too_deep": (lambda folder: damage_config(folder, num_hidden_layers=9), "missing"),
    "too_wide": (lambda folder: damage_config(folder, intermediate_size=999), "mis-shaped"),
    "broken": (lambda folder: (folder / "config.json").write_text("{"), "config.json is no JSON"),
    "empty": (
        lambda folder: [path.unlink() for path in folder.iterdir()],
        "holds no weights of a known kind",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_source_is_explained_and_nothing_is_left(llama, tmp_path, name, capsys):
    change, message = BAD[name]
    change(llama)
    assert run(llama, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error and str(llama) in error
    assert list(tmp_path.iterdir()) == [llama]


def test_a_full_disk_is_noticed_first(llama, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    assert run(llama, tmp_path / "out") == 2
    assert "GB free" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [llama]


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (OSError, None)])
def test_an_interrupt_leaves_nothing_and_the_next_import_works(llama, tmp_path, monkeypatch, error, status):
    reads = []

    def read(self, name, start=0, stop=None):
        reads.append(name)
        if len(reads) == 5:
            raise error
        return whole(self, name, start, stop)

    whole = SafetensorsFiles.read
    monkeypatch.setattr(SafetensorsFiles, "read", read)
    if status is None:
        with pytest.raises(error):
            run(llama, tmp_path / "out")
    else:
        assert run(llama, tmp_path / "out") == status
    assert list(tmp_path.iterdir()) == [llama]
    assert run(llama, tmp_path / "out") == 0


def test_a_killed_import_is_cleared_away_by_the_next(llama, tmp_path):
    left = tmp_path / ".out.importing" / "importing" / "params"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    assert run(llama, tmp_path / "out") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"llama", "out"}
    assert "importing" not in {path.name for path in (tmp_path / "out").iterdir()}


def test_a_folder_in_use_is_left_alone(llama, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run(llama, tmp_path / "empty") == 0
    assert run(llama, tmp_path / "empty") == 2
    assert "holds weights that were imported before" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    assert run(llama, tmp_path / "mine") == 2
    assert "holds other files (notes.txt)" in capsys.readouterr().err
    assert run(llama, tmp_path / "mine" / "notes.txt") == 2
    assert "is a file" in capsys.readouterr().err
    assert (tmp_path / "mine" / "notes.txt").read_text() == "kept"
