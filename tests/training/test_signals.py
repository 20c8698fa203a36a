"""Ctrl-C and SIGTERM at every place where a run can be."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.training.processes import ROOT
from vadapter.training import checkpoints

LIMIT = 400  # seconds; a process that takes longer hangs


class Child:
    """A process whose lines are read one by one."""

    def __init__(self, *arguments: str, **environment: str):
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        self.lines: list[str] = []

    def until(self, text: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if text in line:
                return
        raise AssertionError(f"{text!r} did not come:\n{''.join(self.lines)}")

    def tell(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Returns the exit status and all that was printed."""
        rest = self.process.communicate(timeout=LIMIT)[0]
        return self.process.returncode, "".join(self.lines) + rest


@pytest.fixture
def start():
    children: list[Child] = []

    def start(*arguments: str) -> Child:
        children.append(Child(*arguments))
        return children[-1]

    yield start
    for child in children:
        child.process.kill()
        child.process.wait()


Start = Callable[..., Child]
BOTH = pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


@BOTH
def test_the_first_signal_saves_at_the_next_step(start: Start, tmp_path, number, status):
    child = start("tests.training.signalled", str(tmp_path), "nowhere")
    child.until("step 3/")
    child.tell(number)
    found, printed = child.end()
    assert found == status, printed
    (step,) = checkpoints.steps(str(tmp_path))
    assert step >= 3
    assert f"saved at step {step}. The same command goes on from there" in printed


@BOTH
def test_before_the_first_step_the_run_ends_at_once(start: Start, tmp_path, number, status):
    child = start("tests.training.signalled", str(tmp_path), "start")
    child.until("hangs in data")
    child.tell(number)
    found, printed = child.end()
    assert found == status, printed
    assert "Nothing was to be saved" in printed
    assert checkpoints.steps(str(tmp_path)) == []


@BOTH
def test_a_run_whose_reader_hangs_saves_at_once(start: Start, tmp_path, number, status):
    child = start("tests.training.signalled", str(tmp_path), "data")
    child.until("hangs in data")
    child.tell(number)
    found, printed = child.end()
    assert found == status, printed
    assert checkpoints.steps(str(tmp_path)) == [3]


@BOTH
def test_an_evaluation_is_left_between_two_batches(start: Start, tmp_path, number, status):
    child = start("tests.training.signalled", str(tmp_path), "evaluation")
    child.until("evaluates")
    child.tell(number)
    found, printed = child.end()
    assert found == status, printed
    assert checkpoints.steps(str(tmp_path)) == [3]
    assert not (tmp_path / "done.json").exists()


def test_the_second_signal_ends_at_once_and_names_the_checkpoint(start: Start, tmp_path):
    child = start("tests.training.signalled", str(tmp_path), "deaf")
    child.until("hangs in the evaluation")
    child.tell(signal.SIGTERM)
    child.until("the run saves at the next step")
    child.tell(signal.SIGINT)
    found, printed = child.end()
    assert found == 130, printed
    assert f"{tmp_path}/checkpoint_3; the same command goes on from there" in printed
