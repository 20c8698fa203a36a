"""The benchmark of a day with one GPU, rehearsed at tiny sizes on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu_day.py"


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)


@pytest.fixture
def stages(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu_stages

    return gpu_stages


@pytest.mark.slow
def test_a_rehearsal_measures_the_ceiling_and_a_step_against_it(tmp_path):
    merged = tmp_path / "all.json"
    done = run("--out", tmp_path, "--small", "--stages", "ceiling,step_vitl_1b", "--merge", merged, "--budget", 400)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(merged.read_text())
    assert [found[name]["status"] for name in ("ceiling", "step_vitl_1b")] == ["done", "done"], done.stdout
    step = found["step_vitl_1b"]["figures"]["xla_dots_2"]
    assert step["examples_per_s"] > 0 and step["mfu_of_measured_ceiling"] > 0
    assert "xla_dots_2" in done.stdout
    for results in (tmp_path, merged):
        assert "| xla_dots_2 | 2 |" in run("--tables", results).stdout


def test_a_stage_that_fails_is_told_and_stops_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "none_such")
    done = run("--out", tmp_path, "--small", "--stages", "ceiling,int8")
    assert done.returncode == 0, done.stderr
    for name in ("ceiling", "int8"):
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert found["status"] == "failed" and "none_such" in "".join(found["last_lines"])


def test_stages_that_do_not_exist_are_named(tmp_path):
    done = run("--out", tmp_path, "--small", "--stages", "ceiling,nothing")
    assert done.returncode != 0 and "there are no stages nothing" in done.stderr


def test_figures_are_kept_when_the_next_one_fails(tmp_path, stages):
    from gpu_stages.record import Record

    record = Record(str(tmp_path / "x.json"), "x", small=True, seconds=10)
    with record.figure("good", rows=2) as entry:
        entry["median_ms"] = 1.0
    with record.figure("bad"):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
    figures = json.loads((tmp_path / "x.json").read_text())["figures"]
    assert figures["good"]["median_ms"] == 1.0
    assert figures["bad"]["error"] == "out of memory"


@pytest.mark.parametrize(
    "printed",
    [
        "tests/a.py::test_x[1 2] PASSED [ 10%]\ntests/a.py::test_y FAILED [ 20%]\ntests/b.py::test_z SKIPPED (no)\n",
        "[gw1] [ 10%] PASSED tests/a.py::test_x[1 2] \n[gw0] [ 20%] FAILED tests/a.py::test_y \n"
        "[gw0] [ 30%] SKIPPED tests/b.py::test_z \nFAILED tests/a.py::test_y - AssertionError: no\n",
    ],
)
def test_outcomes_of_tests_are_counted_with_and_without_workers(stages, printed):
    from gpu_stages.numerics import outcomes

    found = outcomes(printed)
    assert (found["passed"], found["failed"], found["skipped"], found["error"]) == (1, 1, 1, 0)
    assert found["failures"] == ["tests/a.py::test_y"]
