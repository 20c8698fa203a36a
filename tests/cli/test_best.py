"""Checkpoints by name, from the command line: the best, the average, and all that are kept."""

import json

import pytest

from vadapter.cli.main import main

SMALL = [
    "--gin_file=experiments/scenes_vit.gin",
    "--gin_file=runs/best.gin",
    "--gin.TRAIN_STEPS=6",
    "--gin.EVAL_EVERY=2",
    "--gin.BATCH_SIZE=8",
    "--gin.OptimizerConfig.warmup_steps=0",
    "--gin.val/LoaderConfig.eval_limit=8",
    "--gin.TrainConfig.tensorboard=False",
    *(f"--gin.ScenesConfig.{split}=16" for split in ("train", "validation", "test", "video_train", "video_eval")),
    *(f"--gin.ScenesConfig.{split}=16" for split in ("text_train", "text_eval")),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(MODEL_DIR, the arguments that trained it)."""
    folder = tmp_path_factory.mktemp("best")
    given = [*SMALL, f"--gin.DATA_DIR={str(folder / 'data')!r}", f"--gin.MODEL_DIR={str(folder / 'run')!r}"]
    given += ["--gin.TrainConfig.keep_checkpoints=None", "--gin.TrainConfig.ema_decay=0.5"]
    assert main(["train", *given]) == 0
    return folder / "run", given


def test_eval_of_every_checkpoint_is_the_curve_of_the_training(trained, tmp_path):
    run, _ = trained
    assert main(["eval", f"--model_dir={run}", "--step=all", f"--output={tmp_path}"]) == 0
    found = [json.loads(line) for line in (tmp_path / "evaluations/curve.jsonl").read_text().splitlines()]
    curve = [json.loads(line) for line in (run / "curve.jsonl").read_text().splitlines()]
    curve = [line for line in curve if line["split"] == "val"]
    assert [line["step"] for line in found] == [line["step"] for line in curve] == [2, 4, 6]
    for line, same in zip(found, curve, strict=True):
        assert line.items() <= same.items()
    assert json.loads((tmp_path / "evaluations/checkpoint_4/metrics.json").read_text())["scores"]


def test_the_best_and_the_average_are_named(trained, tmp_path):
    run, _ = trained
    best = json.loads((run / "best.json").read_text())

    def loss(*options):
        assert main(["eval", f"--model_dir={run}", *options, f"--output={tmp_path}"]) == 0
        content = json.loads((tmp_path / "metrics.json").read_text())
        return content["scores"]["val/loss"], content["checkpoint"]

    assert loss("--step=best") == (best["value"], f"{run} at step {best['step']}")
    assert loss("--step=best", "--ema")[0] == best["value"]  # as the run evaluated
    assert loss("--step=best", "--no-ema")[0] != best["value"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            ["--gin.BEST_METRIC='val/cider'"],
            "'val/cider', which no evaluation of the run gives. The metrics that there",
        ),
        (["--gin.BEST_MODE='lowest'"], "BestConfig.mode is 'lowest'; expected 'min'"),
        (["--gin.PATIENCE=0"], "BestConfig.patience is 0; expected 1 or more"),
        (["--gin.EVAL_EVERY=0"], "measured at the end of the run only"),
        (["--gin.TrainConfig.ema_decay=0.9"], "is finished, at step 6, with other settings"),
    ],
)
def test_wrong_settings_are_explained(trained, changes, words, capsys):
    assert main(["train", *trained[1], *changes]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("step", ["bset", "-1", "all"])
def test_a_step_that_is_none_is_explained(trained, step, tmp_path, capsys):
    assert main(["infer", f"--model_dir={trained[0]}", f"--step={step}", "--media=data/samples/one.jpg"]) == 2
    assert f"The step is {step!r}; expected a number, or 'best'" in capsys.readouterr().err
