"""The harness itself: some trials of it. `python -m tests.faults --n 200` makes many."""

import subprocess
import sys

import pytest

from tests.training.processes import ROOT


def trials(*arguments: str) -> str:
    """Strikes as the command does; returns what it printed."""
    command = [sys.executable, "-m", "tests.faults", *arguments]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.mark.slow
def test_struck_runs_end_like_one_that_nothing_happened_to():
    assert "12 trials of seed 2" in trials("--n", "12", "--seed", "2", "--pairs", "0")


@pytest.mark.slow
def test_the_command_train_goes_on_bit_by_bit_after_a_kill_and_a_damaged_checkpoint():
    """A mixture of tar, Parquet and JSONL files, packing, LoRA and videos."""
    faults = ["SIGKILL", "damage: overwrite"]
    printed = trials("--recipe", "--n", "1", "--seed", "2", "--faults", *faults)
    rows = {name: line.split()[-4:] for line in printed.splitlines() for name in faults if line.startswith(name)}
    assert [rows[name][:2] for name in faults] == [["1", "1"]] * 2  # trials, bit-exact
