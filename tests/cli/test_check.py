"""`vadapter check` from the command line: exit status, files and what is printed."""

import json

import pytest

from tests.data.files import picture
from vadapter.base import exit_codes
from vadapter.cli.main import main

MODEL = ["--gin_file=experiments/own_stage1.gin", "--gin.ENCODER_WEIGHTS='none'", "--gin.TINY_WEIGHTS='none'"]


@pytest.fixture
def photos(tmp_path):
    for i, name in enumerate(("a", "b", "c")):
        picture(tmp_path / f"{name}.png", (80 * i, 10, 200))
    write(tmp_path, "train", {"image": "a.png", "caption": "a field"}, {"image": "b.png", "caption": "a lake"})
    write(tmp_path, "validation", {"image": "c.png", "caption": "a <b>bold</b> sea"})
    return tmp_path


def write(folder, split, *records):
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def check(folder, *arguments):
    files = [f"--gin.{s.upper()}_JSONL={str(folder / s) + '.jsonl'!r}" for s in ("train", "validation")]
    return main(["check", *MODEL, *files, f"--output={folder / 'out'}", *arguments])


def report(folder):
    return json.loads((folder / "out" / "check.json").read_text())


def test_good_data_exit_with_0_and_write_the_files(photos, capsys, monkeypatch):
    monkeypatch.chdir(photos)
    assert check(photos) == 0
    assert "Nothing would spoil a run." in capsys.readouterr().out
    found = report(photos)
    assert found["ok"] and not found["problems"]
    assert [(t["split"], t["training"], t["checked"]) for t in found["tasks"]] == [
        ("train", True, 2),
        ("validation", False, 1),
    ]
    page = (photos / "out" / "check.html").read_text()
    assert page.count("<img src=") == 3 and "<b>bold" not in page
    assert sorted(p.name for p in photos.iterdir()) == sorted(
        ["a.png", "b.png", "c.png", "out", "train.jsonl", "validation.jsonl"]
    )


def test_the_sizes_are_the_models(photos):
    assert check(photos) == 0
    assert {task["visual_tokens"] for task in report(photos)["tasks"]} == {36}
    assert {task["targets"]["room"] for task in report(photos)["tasks"]} == {64}


def test_corrupt_media_exit_with_1_and_are_named(photos, capsys):
    (photos / "b.png").write_bytes(b"")
    assert check(photos) == exit_codes.NO
    printed = capsys.readouterr().out
    assert "SPOILS A RUN" in printed and "b.png" in printed
    assert [(p["kind"], p["spoils"]) for p in report(photos)["problems"]] == [("corrupt", True)]
    assert check(photos, "--gin.LoaderConfig.max_bad_share=0.6") == 0


def test_overlap_exits_with_1_and_one_split_alone_does_not(photos, capsys):
    write(photos, "validation", {"image": "a.png", "caption": "a field", "id": "the same"})
    assert check(photos) == exit_codes.NO
    assert "the same" in capsys.readouterr().out
    assert check(photos, "--split=train") == 0


def test_lines_that_are_left_out_are_named(photos, capsys):
    write(photos, "train", {"image": "a.png", "caption": "a field"}, {"image": "b.png", "caption": " "})
    assert check(photos, "--gin.jsonl_task.max_bad_share=0.5") == 0
    assert "train.jsonl:2: 'caption' is empty" in capsys.readouterr().out
    assert [(p["kind"], p["count"]) for p in report(photos)["problems"]] == [("opening", 1)]


def test_names_that_a_terminal_would_obey_are_escaped(photos, capsys):
    """Found as: the screen was cleared by a name in a JSONL file; a name that is no UTF-8 was a traceback."""
    odd = [{"image": "x\x1b[2J.png", "caption": "x"}, {"image": "\udcff.png", "caption": "x"}]
    odd += [{"image": "a.png", "caption": "a field", "id": "i\x1b\nd"}, {"caption": "x", "a\x1b": 1}]
    write(photos, "train", *odd)
    assert check(photos, "--gin.jsonl_task.max_bad_share=0.9") == exit_codes.NO
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    for name in (r"x\x1b[2J.png", r"\udcff.png", r"i\x1b\nd"):
        assert name in said.out + (photos / "out" / "check.html").read_text()


def test_too_long_texts_only_exit_with_1(photos, capsys):
    assert check(photos, "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 1}") == exit_codes.NO
    assert "TASK_FEATURE_LENGTHS" in capsys.readouterr().out


def test_a_users_mistake_exits_with_2(photos, capsys):
    assert check(photos, "--split=holdout") == 2
    assert "train, validation" in capsys.readouterr().err
    assert check(photos, "--limit=-1") == 2
    assert check(photos, "--gin.VOCABULARY='nowhere'") == 2
    assert main(["check", "--gin_file=nowhere.gin"]) == 2
    assert not (photos / "out").exists()


def test_an_experiment_without_a_model_is_refused(photos, capsys):
    train = f"--gin.TRAIN_JSONL={str(photos / 'train.jsonl')!r}"
    assert (
        main(["check", "--gin_file=runs/eval.gin", "--gin_file=data/jsonl.gin", train, "--gin.VOCABULARY='scenes'"])
        == 2
    )
    assert "MODEL = None" in capsys.readouterr().err


def test_a_warm_up_longer_than_the_run_is_told_before_the_data_are_read(photos, capsys):
    assert check(photos, "--gin.TRAIN_STEPS=30", "--gin.OptimizerConfig.warmup_steps=50") == exit_codes.USER
    assert "The warm-up of 50 steps must be shorter than the run of 30 steps" in capsys.readouterr().err
    assert not (photos / "out").exists()
