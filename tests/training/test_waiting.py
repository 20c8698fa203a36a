"""Waiting for batches, and where the time goes."""

import contextlib
import json
import threading

import pytest

from tests.training import small
from tests.training.test_loop import Val, lines, run
from vadapter.training import checkpoints
from vadapter.training.goodput import Goodput
from vadapter.training.waiting import Feed


def test_a_long_wait_is_told_again_and_again_with_what_the_readers_do(tmp_path):
    told, come = [], threading.Event()

    def reader_that_waits():
        come.wait()
        yield "a batch"

    def say(line):
        told.append(line)
        if len(told) == 2:
            come.set()

    with contextlib.closing(Feed(reader_that_waits(), "the data", 0.01, str(tmp_path), say)) as feed:
        assert list(feed) == ["a batch"]
    assert "Waiting for the data: nothing came for 0.01 s, since" in told[0]
    assert "0.02 s" in told[1]
    assert str(tmp_path / "waiting.txt") in told[0]
    assert "reader_that_waits" in (tmp_path / "waiting.txt").read_text()


def test_a_long_wait_is_told_where_there_is_no_folder_to_write_to(tmp_path):
    told, come = [], threading.Event()

    def reader_that_waits():
        come.wait()
        yield "a batch"

    def say(line):
        told.append(line)
        come.set()

    with contextlib.closing(Feed(reader_that_waits(), "the data", 0.01, str(tmp_path / "none"), say)) as feed:
        assert list(feed) == ["a batch"]
    assert "What each thread does is in stderr." in told[0]


def test_without_patience_a_wait_is_never_told(tmp_path):
    told = []
    with contextlib.closing(Feed(iter([1, 2]), "the data", 0, str(tmp_path), told.append)) as feed:
        assert list(feed) == [1, 2]
    assert told == []


def test_an_error_of_a_reader_comes_through_and_the_reader_is_closed(tmp_path):
    closed = []

    def reader():
        try:
            yield 1
            raise OSError("disk")
        finally:
            closed.append(True)

    with contextlib.closing(Feed(reader(), "the data", 0, str(tmp_path))) as feed:
        assert next(feed) == 1
        with pytest.raises(OSError, match="disk"):
            next(feed)
    assert closed == [True]


def test_time_is_added_up_by_kind():
    now = iter([0.0, 6.0, 9.0, 10.0])
    goodput = Goodput({"steps": 4.0}, lambda: next(now))
    goodput.lap("steps")
    goodput.lap("data")
    goodput.lap("evaluation")
    goodput.lose(2.0)  # of these steps
    goodput.lose(6.0, session=True)
    assert goodput.seconds == {
        "steps": 8.0,
        "compile": 0.0,
        "data": 3.0,
        "evaluation": 1.0,
        "checkpoint": 0.0,
        "restart": 8.0,
    }
    assert goodput.summary() == "40% steps, 15% waiting for data, 5% evaluation, 40% work lost at interruptions"


def test_a_run_tells_where_its_time_went(tmp_path, capsys):
    run(tmp_path, evaluators=[Val()])
    done = json.loads((tmp_path / "done.json").read_text())
    assert sum(done["goodput"].values()) == pytest.approx(done["seconds"], rel=0.2)
    assert done["goodput"]["compile"] > 0 and done["goodput"]["restart"] == 0
    assert "Done: 6 steps. The time went into" in capsys.readouterr().out


def test_work_that_an_interruption_lost_is_counted(tmp_path):
    def fails(start):
        for i, batch in enumerate(small.batches(start), start):
            if i == 5:
                raise OSError("disk")
            yield batch

    with pytest.raises(OSError, match="disk"):
        run(tmp_path, data=fails, checkpoint_every=3, log_every=1)
    last = lines(tmp_path, "train")[-1]["seconds"]
    (step,) = checkpoints.steps(str(tmp_path))
    saved = checkpoints.Checkpointer(str(tmp_path), read_only=True).run(step)
    run(tmp_path, log_every=1)
    done = json.loads((tmp_path / "done.json").read_text())
    assert done["goodput"]["restart"] == pytest.approx(last - saved["seconds"], abs=0.01)
    assert done["goodput"]["compile"] > saved["goodput"]["compile"]
