"""`import_weights` from Python. What it writes is also tested through the command, in tests/cli/test_import.py."""

import dataclasses
import json

import pytest

from tests.weights import families
from vadapter.base.errors import UserError
from vadapter.weights.importer import import_weights


@pytest.fixture
def gemma3(tmp_path):
    return families.write_folder("gemma3", tmp_path / "gemma3")


def test_it_says_what_it_wrote(gemma3, tmp_path):
    seen, out = [], tmp_path / "out"
    done = import_weights(gemma3, out, part="decoder", progress=lambda now, total: seen.append((now, total)))
    assert (done.folder, done.kind) == (str(out), "huggingface")
    assert (done.family, done.part) == ("gemma3", "decoder")
    assert (done.dtype, done.bytes, done.prompt_format) == ("bfloat16", 2 * done.parameters, "gemma")
    assert seen == sorted(seen) and seen[-1] == (done.bytes, done.bytes)
    record = json.loads((out / "import.json").read_text())
    assert record.pop("source") == {"name": "gemma3", "files": ["config.json", "model.safetensors"]}
    assert str(tmp_path) not in json.dumps(record)
    fields = dataclasses.asdict(done)
    del fields["folder"]
    assert record == json.loads(json.dumps(fields))
    # What gin has to do with it is the command's.
    assert {path.name for path in out.iterdir()} == {"checkpoint_0", "sha256.json", "import.json"}


def test_more_files_are_written_before_the_folder_has_its_name(gemma3, tmp_path):
    out = tmp_path / "out"

    def more(imported):
        assert not out.exists()
        return {"notes.txt": f"{imported.family} in {imported.folder}"}

    import_weights(gemma3, out, part="encoder", more_files=more)
    assert (out / "notes.txt").read_text() == f"siglip in {out}"

    def fails(imported):
        raise KeyError

    with pytest.raises(KeyError):
        import_weights(gemma3, tmp_path / "other", part="encoder", more_files=fails)
    assert {path.name for path in tmp_path.iterdir()} == {"gemma3", "out"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"part": "vision"}, "part 'vision' is unknown; expected encoder or decoder"),
        ({"part": None}, "Choose with part: encoder or decoder"),
        ({"dtype": "bfloat16"}, "dtype 'bfloat16' is unknown; expected bf16 or f32"),
        ({"variant": "gemma3_4b"}, "leave out variant 'gemma3_4b'"),
        ({"tokenizer": "x.model"}, "x.model is no tokenizer"),
    ],
)
def test_a_wrong_argument_is_explained_without_the_command_line(gemma3, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        import_weights(gemma3, tmp_path / "out", **{"part": "decoder", **changes})
    assert "--" not in str(error.value)
    assert not (tmp_path / "out").exists()
