"""The harness itself: some trials of it. `python -m tests.faults --n 200` makes many."""

import subprocess
import sys

import pytest

from tests.training.processes import ROOT


@pytest.mark.slow
def test_struck_runs_end_like_one_that_nothing_happened_to():
    command = [sys.executable, "-m", "tests.faults", "--n", "12", "--seed", "2", "--pairs", "0"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "12 trials of seed 2" in found.stdout
