"""A training step keeps its memory and its estimated time: neither gets 5% worse than what is committed.

The compiler decides both, so figures are compared only where its versions are those of the committed ones. These in
turn must be the pins of constraints.txt, so that continuous integration always compares: whoever moves a pin makes the
figures anew, and looks at the difference, with

    python -m tests.planning.test_regression
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("libtpu", reason="libtpu is not installed: pip install 'vadapter[tpu]'")

FIGURES = Path(__file__).parent / "regression.json"
REFRESH = "python -m tests.planning.test_regression"
RECIPE, TOPOLOGY = "scenes_paper", "v5e:2x4"
BINDINGS = (
    "BATCH_SIZE = 512",
    "MeshConfig.data = 2",
    "MeshConfig.fsdp = 4",
    "decoder.remat = 'full'",
    "OptimizerConfig.accumulate = 2",
)
WORSE = 1.05


def measured(cache_dir: Path) -> dict[str, Any]:
    """Compiles the step and returns its figures."""
    from vadapter.planning.topologies import Topology
    from vadapter.recipes import experiments
    from vadapter.runs import planner

    experiment = experiments.unopened([f"experiments/{RECIPE}.gin"], BINDINGS)
    plan = planner.Planner(RECIPE, experiment, Topology.parse(TOPOLOGY), cache_dir=cache_dir).plan()
    assert plan.estimate is not None
    return {
        "recipe": RECIPE,
        "topology": TOPOLOGY,
        "bindings": list(BINDINGS),
        "versions": plan.compiled.versions,
        "peak_bytes": plan.compiled.memory.peak,
        "step_seconds": round(plan.estimate.step_seconds, 6),
        "mfu": round(plan.estimate.mfu, 4),
    }


def committed() -> dict[str, Any]:
    return json.loads(FIGURES.read_text())


def worse(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """What got more than 5% worse, in words."""
    names = {"peak_bytes": "memory of a device (bytes)", "step_seconds": "estimated step (s)"}
    return [
        f"{name}: {now[key]:,} instead of {before[key]:,}, {now[key] / before[key] - 1:+.1%}"
        for key, name in names.items()
        if now[key] > WORSE * before[key]
    ]


@pytest.mark.slow
def test_the_step_is_not_worse_than_the_committed_figures(tmp_path):
    from importlib import metadata

    before = committed()
    versions = {name: metadata.version(name) for name in before["versions"]}
    if versions != before["versions"]:
        pytest.skip(f"nothing is compared: the figures are of {before['versions']}, installed are {versions}")
    now = measured(tmp_path)
    assert not worse(now, before), (
        f"{RECIPE} on {TOPOLOGY} got worse than {FIGURES.name}. If that is meant, make the figures anew: {REFRESH}"
    )


def test_the_committed_figures_are_those_of_the_pinned_versions():
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (Path(__file__).parents[2] / "constraints.txt").read_text(), re.M))
    pinned = {name: pins.get(name) for name in committed()["versions"]}
    assert committed()["versions"] == pinned, f"constraints.txt has moved; make the figures anew: {REFRESH}"


def test_what_is_six_percent_worse_is_noticed_and_what_is_better_is_not():
    before = {"peak_bytes": 1000, "step_seconds": 1.0}
    assert worse({"peak_bytes": 1060, "step_seconds": 1.0}, before) == [
        "memory of a device (bytes): 1,060 instead of 1,000, +6.0%"
    ]
    assert len(worse({"peak_bytes": 1060, "step_seconds": 1.06}, before)) == 2
    assert worse({"peak_bytes": 500, "step_seconds": 1.04}, before) == []


if __name__ == "__main__":
    import tempfile

    from vadapter.planning.topologies import prepare

    prepare()
    with tempfile.TemporaryDirectory() as folder:
        figures = measured(Path(folder))
    if FIGURES.exists():
        print("before:", FIGURES.read_text())
    FIGURES.write_text(json.dumps(figures, indent=2) + "\n")
    print("now:", FIGURES.read_text())
