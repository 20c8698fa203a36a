"""Runs in a bucket, of the stand-in for Cloud Storage: some cases. `python -m tests.faults.stores` tries all."""

import subprocess
import sys

import pytest

from tests.training.processes import ROOT


@pytest.mark.slow
def test_runs_in_a_bucket_end_like_one_that_nothing_happened_to():
    pytest.importorskip("google.cloud.storage")
    pytest.importorskip("cryptography")
    cases = ["answers: all", "kill at the mark"]
    command = [sys.executable, "-m", "tests.faults.stores", "--only", *cases]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "Wrong: 0." in found.stdout
