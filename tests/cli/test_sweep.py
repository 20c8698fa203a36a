"""`vadapter sweep` as it is typed: what it refuses before it trains, and a small one from gin files to the page."""

import json
import re
from pathlib import Path

import pytest

from vadapter.base import exit_codes
from vadapter.cli.main import main

RATE = "OptimizerConfig.learning_rate"
WEIGHTS = ["--gin.ENCODER_WEIGHTS='vit'", "--gin.LARGE_WEIGHTS='large'", "--gin.DATA_DIR='scenes'"]
ARMS = [
    "--arm=perceiver=experiments/scenes_perceiver.gin",
    "--arm=queries=experiments/scenes_queries.gin",
    "--arm_gin=queries:STAGE1_RUN='stage1/seed{seed}'",
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # of the trainings that a sweep starts
    return tmp_path


def test_a_dry_run_shows_the_commands_and_writes_nothing(folder, capsys):
    over = [f"--over={RATE}=1e-4,1e-3", "--over=queries:LMAdapterConfig.num_queries=8,16"]
    assert main(["sweep", "--out=out", "--dry_run", "--seeds=3,4", *ARMS, *WEIGHTS, *over]) == 0
    *commands, count = capsys.readouterr().out.splitlines()
    assert len(commands) == 2 + 4
    assert count == "6 runs choose the settings; 2 follow at those chosen."
    assert "STAGE1_RUN='\"'\"'stage1/seed3" in commands[-1]
    assert "seed3" in commands[0] and "SEED=3" in commands[0] and "STAGE1_RUN" not in commands[0]
    assert "learning_rate=1e-3,num_queries=16" in commands[-1]
    assert not any(folder.iterdir())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--arm=a=nowhere.gin"], "Arm a: The gin file nowhere.gin was not found"),
        (["--arm=a"], "expected the form --arm NAME=FILE,FILE"),
        (["--arm=a/b=experiments/scenes_perceiver.gin"], "letters, digits"),
        ([*ARMS, ARMS[0]], "different names"),
        ([*ARMS, "--gin.LEARNING_RATE=1"], "Nothing uses the macro LEARNING_RATE"),
        ([*ARMS, "--gin.STAGE1_RUN='a'"], "Arm perceiver: Nothing uses the macro STAGE1_RUN"),
        ([*ARMS, "--arm_gin=other:A=1"], "names the arm other"),
        ([*ARMS, "--arm_gin=A=1"], "names no arm"),
        ([*ARMS, "--gin.SEED=1"], "SEED was given"),
        ([*ARMS, "--over=MODEL_DIR='a'"], "MODEL_DIR was given"),
        ([*ARMS, f"--over={RATE}=1e-4,,1e-3"], "have an empty one"),
        ([*ARMS, f"--over={RATE}=1e-4,1e-4"], "different names"),
        ([*ARMS, f"--over={RATE}=fast"], "cannot be read by gin"),
        ([*ARMS, "--over=OptimizerConfig.rate=1,2"], "learning_rate"),
        ([*ARMS, "--over=PerceiverConfig.num_layers=1,2"], "Arm queries: .*does not use PerceiverConfig.num_layers"),
        ([*ARMS, "--seeds=0,one"], "expected whole numbers"),
        ([*ARMS, "--seeds=1,1"], "different names"),
        ([*ARMS, "--stop_after=100"], "one number to keep for each"),
        ([*ARMS, "--stop_after=100,50", "--keep=2,1"], "rising steps"),
        ([*ARMS, "--workers=0"], "1 or more"),
        ([*ARMS, "--test=cider"], "EVALUATION/SCALAR"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(folder, capsys, given, message):
    assert main(["sweep", "--out=out", *given, *WEIGHTS]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert re.search(message, error), error
    assert not any(folder.iterdir())


def test_gin_files_that_changed_are_refused(folder, capsys):
    """The folder of a sweep keeps what the gin files said."""
    (folder / "arm.gin").write_text('include "experiments/scenes_perceiver.gin"\nTRAIN_STEPS = 3\n')
    given = ["sweep", "--out=out", "--arm=a=arm.gin", *WEIGHTS]
    assert main(given) == exit_codes.NO  # the weights are not there: the run fails, and the sweep is begun
    assert "FAILED: vadapter: error:" in capsys.readouterr().out
    (folder / "arm.gin").write_text('include "experiments/scenes_perceiver.gin"\nTRAIN_STEPS = 4\n')
    assert main(given) == 2
    assert "'TRAIN_STEPS = 3' is now 'TRAIN_STEPS = 4'" in capsys.readouterr().err
    assert main([*given, "--seeds=1"]) == 2


@pytest.mark.slow
def test_a_sweep_from_gin_files_to_its_page(folder, capsys):
    small = ["--gin.TRAIN_STEPS=4", "--gin.BATCH_SIZE=8", "--gin.EVAL_EVERY=2", "--gin.val/LoaderConfig.eval_limit=8"]
    splits = ("train", "validation", "test", "video_train", "video_eval", "text_train", "text_eval")
    small += [f"--gin.ScenesConfig.{split}=32" for split in splits]
    small += ["--gin.DATA_DIR='scenes'", "--gin.OptimizerConfig.warmup_steps=1"]
    command = ["sweep", "--out=out", "--arm=tiny=experiments/scenes_tiny.gin", *small, "--seeds=0,1"]
    command += [f"--over={RATE}=1e-5,1e-3", "--stop_after=2", "--keep=1"]
    assert main(command) == 0, [log.read_text()[-2000:] for log in (folder / "out").rglob("log.txt")]
    lines = [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]
    assert sorted((line["status"], line["name"], line["seed"], line["steps"]) for line in lines) == [
        ("done", "learning_rate=1e-3", 0, 4),
        ("done", "learning_rate=1e-3", 1, 4),
        ("stopped", "learning_rate=1e-5", 0, 2),
    ]
    run = folder / "out" / "tiny" / "learning_rate=1e-3" / "seed0"
    done = json.loads((run / "done.json").read_text())
    found = next(line for line in lines if line["chosen"] and line["seed"] == 0)
    assert found["validation"]["last"] == done["evals"]["val"]["loss"]
    assert [step for step, _ in found["curve"]] == [2, 4]
    assert {"jax", "python", "vadapter", "commit", "device"} <= found["environment"].keys()
    assert "pause_at" not in (run / "config.gin").read_text()
    times = {path: path.stat().st_mtime_ns for path in run.parents[1].rglob("done.json")}
    assert main(command) == 0
    assert times == {path: path.stat().st_mtime_ns for path in run.parents[1].rglob("done.json")}
    assert main([*command, "--gin.BATCH_SIZE=4"]) == 2
    assert "bindings" in capsys.readouterr().err
    assert main(["report", "out", "--output=page.html"]) == 0
    assert "learning_rate=1e-3" in (folder / "page.html").read_text()
