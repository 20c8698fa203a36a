"""Training in several processes, each with some of the devices, on this machine."""

import json
import shutil
import signal
import types

import numpy as np
import pytest
from PIL import Image

from tests.tiny_bundle import write_bundle
from tests.training import processes, small
from vadapter.cli.main import main
from vadapter.runs import train
from vadapter.training import checkpoints

pytestmark = pytest.mark.slow


def curve(folder):
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


def losses(folder):
    rows = curve(folder)
    return {row["step"]: row["loss"] for row in rows if row["split"] == "train"}, len(rows)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Losses of the run that the others are compared with: one process, one device."""
    folder = tmp_path_factory.mktemp("alone")
    processes.train(folder / "whole", devices=1)
    return losses(folder / "whole")[0]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Folder of the runs of two processes, what each of them found, and what it printed.

    The run `cut` was begun by one process, on another mesh.
    """
    folder = tmp_path_factory.mktemp("two")
    assert processes.train(folder / "cut", dies_at=3, devices=8, data=2, fsdp=2, tensor=2) is None
    write_bundle(folder)
    colours = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(colours).save(folder / "picture.png")
    printed = processes.run_processes(2, ["tests.training.processes", str(folder)])
    return folder, [json.loads((folder / f"found-{i}.json").read_text()) for i in range(2)], printed


@pytest.fixture(scope="module")
def four(two, tmp_path_factory):
    """Folder of the run of four processes that goes on with `slices` of two, and what each of them found."""
    folder = tmp_path_factory.mktemp("four")
    shutil.copytree(two[0] / "slices", folder / "slices")
    processes.run_processes(4, ["tests.training.processes", str(folder)])
    return folder, [json.loads((folder / f"found-{i}.json").read_text()) for i in range(4)]


def same(found, expected):
    assert found
    np.testing.assert_allclose(list(found.values()), [expected[step] for step in found], rtol=1e-5)


def test_two_processes_have_the_losses_of_one(two, alone):
    found, lines = losses(two[0] / "slices")
    assert lines == len(found) == 3
    same(found, alone)


def test_speeds_count_each_row_once(two):
    for run, step in (("cut", 4), ("slices", 3)):  # all rows on both, and half of them on each
        row = curve(two[0] / run)[step - 1]
        assert row["examples_per_s"] / row["steps_per_s"] == pytest.approx(8)


def test_each_process_reads_its_own_rows_and_each_record_counts_once(two):
    a, b = two[1]
    assert (a["data"]["share"], b["data"]["share"]) == ([0, 2], [1, 2])
    assert a["tensor"]["share"] == b["tensor"]["share"] == [0, 1]  # all rows are on both
    wanted = [[i, y] for i, (y,) in enumerate(small.batch(0)["y"].tolist())]
    for layout in ("data", "tensor"):
        assert a[layout]["records"] == b[layout]["records"] == wanted


def test_processes_that_are_told_to_stop_agree_on_the_step(two):
    folder, (a, b), _ = two
    assert a["taken"]["step"] == b["taken"]["step"]
    assert a["taken"]["interrupted"] and b["taken"]["interrupted"]
    assert (a["taken"]["signal"], b["taken"]["signal"]) == (None, signal.SIGINT)  # Ctrl-C on one of them
    assert checkpoints.steps(str(folder / "taken")) == [a["taken"]["step"]]


def test_a_checkpoint_is_written_once_and_goes_on_with_any_number_of_processes(two, alone):
    folder = two[0]
    assert checkpoints.steps(str(folder / "cut")) == [2, 4]
    processes.train(folder / "cut", devices=1)
    found, lines = losses(folder / "cut")
    assert lines == len(found) == processes.STEPS
    same(found, alone)
    assert json.loads((folder / "cut/done.json").read_text())["step"] == processes.STEPS


def best_and_average(folder):
    """What `best.json` says, the checkpoints that are left, and the moving average of the last."""
    steps = checkpoints.steps(str(folder))
    with checkpoints.Checkpointer(str(folder), read_only=True) as checkpointer:
        average = checkpointer.read(steps[-1], checkpointer.shapes(steps[-1]), ema=True)
    return json.loads((folder / "best.json").read_text()), steps, average


def test_the_best_and_the_moving_average_of_two_processes(two, tmp_path):
    processes.train(tmp_path / "one", best=True, devices=1)
    (best, steps, average), cut, one = map(best_and_average, (two[0] / "kept", two[0] / "kept_cut", tmp_path / "one"))
    assert best["step"] == 2 and steps == [2, 8]  # the best is kept, and three that are no better end the run
    # Stopped and gone on with it is the same, bit for bit; in one process it is the same but for the order of sums.
    assert (best, steps) == cut[:2] and average.keys() == cut[2].keys() == one[2].keys()
    assert (best["step"], steps) == (one[0]["step"], one[1])
    for path, x in average.items():
        np.testing.assert_array_equal(x, cut[2][path], err_msg=path)
        np.testing.assert_allclose(x, one[2][path], rtol=1e-4, atol=1e-6, err_msg=path)


def test_four_processes_go_on_where_two_were(four, alone):
    found, lines = losses(four[0] / "slices")
    assert lines == len(found) == processes.STEPS
    same(found, alone)
    assert [p.name for p in (four[0] / "slices").glob("checkpoint*")] == [f"checkpoint_{processes.STEPS}"]


def test_four_processes_read_what_their_part_of_the_mesh_holds(four):
    found = four[1]
    assert [x["data"]["share"] for x in found] == [[i, 4] for i in range(4)]
    assert [x["tensor"]["share"] for x in found] == [[0, 2], [0, 2], [1, 2], [1, 2]]
    wanted = [[i, y] for i, (y,) in enumerate(small.batch(0)["y"].tolist())]
    assert all(x[layout]["records"] == wanted for x in found for layout in ("data", "tensor"))


def test_the_command_line_in_two_processes(two):
    folder, _, printed = two
    assert "step 2/2" in printed[0]
    assert "step 2/2" not in printed[1]
    found, lines = losses(folder / "both")
    assert list(found) == [1, 2]
    assert np.isfinite(list(found.values())).all()
    assert lines == 3


def test_a_run_of_two_processes_is_evaluated_in_any_number_of_them(two, tmp_path):
    """The same rows, each once, however many processes read them."""
    run = two[0] / "both"
    assert "HostsConfig" not in (run / "config.gin").read_text()
    assert main(["eval", f"--model_dir={run}", f"--output={tmp_path}", "--num_examples=0"]) == 0
    in_training = json.loads((run / "done.json").read_text())["evals"]["val"]
    for folder in (run, tmp_path):
        found = json.loads((folder / "metrics.json").read_text())["scores"]
        assert [found[f"val/{name}"] for name in in_training] == pytest.approx([*in_training.values()], rel=1e-4)


def test_a_bundle_says_the_same_in_two_processes(two, capsys):
    folder, _, printed = two
    assert main(processes.saying(folder)) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1]
    assert [said[-1] in text.splitlines() for text in printed] == [True, False]


def test_processes_that_hear_nothing_of_each_others_signals_train(tmp_path, alone, monkeypatch):
    """Found as: without jax's service for that, two processes ended with RuntimeError in their first step."""
    monkeypatch.setenv("JAX_ENABLE_PREEMPTION_SERVICE", "false")
    processes.run_processes(2, ["tests.training.processes", str(tmp_path), "deaf"], devices=2)
    same(losses(tmp_path / "deaf")[0], alone)


def test_a_command_that_is_told_to_stop_says_so_by_its_status(tmp_path, monkeypatch):
    for interrupted, number, status in (
        (True, None, 143),
        (True, signal.SIGTERM, 143),
        (True, signal.SIGINT, 130),
        (False, None, 0),
    ):
        end = types.SimpleNamespace(interrupted=interrupted, signal=number)
        monkeypatch.setattr(train, "run", lambda _, accepted, end=end: end)
        assert main(processes.command(tmp_path, "any")) == status
