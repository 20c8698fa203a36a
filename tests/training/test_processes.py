"""Training in several processes, each with some of the devices, on this machine."""

import json

import numpy as np
import pytest

from tests.training import processes, small
from vadapter.cli.main import main
from vadapter.training import checkpoints


def losses(folder):
    rows = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if row["split"] == "train"}, len(rows)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Losses of the run that the others are compared with: one process, one device."""
    folder = tmp_path_factory.mktemp("alone")
    processes.train(folder / "whole", devices=1)
    return losses(folder / "whole")[0]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Folder of the runs of two processes, and what each of them found."""
    folder = tmp_path_factory.mktemp("two")
    processes.run_processes(2, ["tests.training.processes", "two", str(folder)])
    return folder, [json.loads((folder / f"two-{i}.json").read_text()) for i in range(2)]


def same(found, expected):
    assert found
    np.testing.assert_allclose(list(found.values()), [expected[step] for step in found], rtol=1e-5)


@pytest.mark.parametrize("layout", ["tensor", "slices"])
def test_two_processes_have_the_losses_of_one(two, alone, layout):
    found, lines = losses(two[0] / layout)
    assert lines == len(found) == 3
    same(found, alone)


def test_each_process_reads_its_own_rows(two):
    _, (a, b) = two
    whole = small.batch(0)["x"].tolist()
    assert (a["share"], b["share"]) == ([0, 2], [1, 2])
    assert a["rows"] + b["rows"] == whole
    assert a["gathered"] == b["gathered"] == whole


def test_processes_that_are_told_to_stop_agree_on_the_step(two):
    folder, (a, b) = two
    assert a["taken"] == b["taken"]
    assert a["taken"]["interrupted"]
    assert checkpoints.steps(str(folder / "taken")) == [a["taken"]["step"]]


def test_a_checkpoint_is_written_once_and_goes_on_with_any_number_of_processes(two, alone):
    folder = two[0]
    assert [p.name for p in (folder / "cut").glob("checkpoint*")] == ["checkpoint_4"]
    assert processes.train(folder / "cut", dies_at=7, devices=8, data=2, fsdp=2, tensor=2) is None
    assert checkpoints.steps(str(folder / "cut")) == [6]
    processes.run_processes(4, ["tests.training.processes", "four", str(folder)])
    found, lines = losses(folder / "cut")
    assert lines == len(found) == processes.STEPS
    same(found, alone)
    assert json.loads((folder / "cut/done.json").read_text())["step"] == processes.STEPS


def test_the_command_line_in_two_processes(tmp_path):
    """A language model on the text of the scenes, with the real loader and evaluation."""
    settings = [
        "--gin_file=experiments/scenes_tiny.gin",
        f"--gin.DATA_DIR={str(tmp_path / 'data')!r}",
        "--gin.TRAIN_STEPS=2",
        "--gin.BATCH_SIZE=8",
        "--gin.TrainConfig.log_every=1",
        "--gin.TrainConfig.tensorboard=False",
        "--gin.OptimizerConfig.warmup_steps=1",
        "--gin.val/LoaderConfig.eval_limit=12",
        *(f"--gin.ScenesConfig.{split}=16" for split in ("train", "validation", "test", "video_train", "video_eval")),
        *(f"--gin.ScenesConfig.{split}=32" for split in ("text_train", "text_eval")),
    ]
    folders = {count: tmp_path / str(count) for count in (1, 2)}
    train = lambda count: ["train", *settings, f"--gin.MODEL_DIR={str(folders[count])!r}"]  # noqa: E731
    two = processes.run_processes(2, ["vadapter", *train(2), "--gin.MeshConfig.fsdp=2"], devices=2)
    assert main(train(1)) == 0
    assert "step 2/2" in two[0]
    assert "step 2/2" not in two[1]
    one, both = (json.loads((folder / "done.json").read_text()) for folder in folders.values())
    assert both["evals"]["val"] == pytest.approx(one["evals"]["val"], rel=1e-4)
    found, lines = losses(folders[2])
    assert list(found) == [1, 2]
    assert lines == 3
    np.testing.assert_allclose(list(found.values()), list(losses(folders[1])[0].values()), rtol=1e-4)
