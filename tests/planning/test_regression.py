"""Compiled training steps get no more than 5% worse than what is committed, on CPU and on a TPU topology.

FLOPs, bytes read and written, collectives and memory are the compiler's; the TPU's estimated time is ours. None depends
on the clock, on the cores of this machine or on their instruction sets. The compiler decides them, so figures are
compared only where its versions are those of the committed ones. These in turn must be the pins of constraints.txt, so
that continuous integration always compares: whoever moves a pin makes the figures anew, and looks at the difference,
with

    python -m tests.planning.test_regression
"""

import importlib.util
import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests import conftest  # noqa: F401  the compiler's flags, before jax is imported: those of the tests

FIGURES = Path(__file__).parent / "regression.json"
REFRESH = "python -m tests.planning.test_regression"
MESH = ("BATCH_SIZE = 512", "MeshConfig.data = 2", "MeshConfig.fsdp = 4")
RECIPES = {
    "scenes_tiny": MESH,
    "scenes_perceiver": MESH,
    "scenes_paper": (*MESH, "decoder.remat = 'full'", "OptimizerConfig.accumulate = 2"),
}
CPU, TPU = "cpu", "v5e:2x4"
VERSIONS = {CPU: ("jax", "jaxlib"), TPU: ("jax", "jaxlib", "libtpu")}
CASES = [(CPU, recipe) for recipe in RECIPES] + [(TPU, "scenes_paper")]
NAMES = {
    "flops": "FLOPs of a device",
    "bytes_accessed": "bytes that a device reads and writes",
    "collectives": "collectives",
    "peak_bytes": "memory of a device (bytes)",
    "step_seconds": "estimated step (s)",
}
WORSE = 1.05


def on_cpu(recipe: str) -> dict[str, Any]:
    """Compiles the step for a mesh of eight host devices and returns its figures; bodies of loops count once."""
    import jax

    from vadapter.planning.collectives import KINDS
    from vadapter.recipes import experiments
    from vadapter.runs.plan_parts import PlannedParts

    experiment = experiments.unopened([f"experiments/{recipe}.gin"], RECIPES[recipe])
    compiled: Any = PlannedParts(experiment, jax.devices("cpu")[:8]).program.lower().compile()
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return {
        "flops": int(cost["flops"]),
        "bytes_accessed": int(cost["bytes accessed"]),
        "collectives": len(re.findall(rf" (?:{'|'.join(KINDS)})(?:-start)?\(", compiled.as_text())),
        "peak_bytes": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
    }


def on_tpu(recipe: str, cache_dir: Path) -> dict[str, Any]:
    """Compiles the step for a TPU slice and returns its figures; bodies of loops count as often as they run."""
    from vadapter.planning.topologies import Topology
    from vadapter.recipes import experiments
    from vadapter.runs import planner

    experiment = experiments.unopened([f"experiments/{recipe}.gin"], RECIPES[recipe])
    plan = planner.Planner(recipe, experiment, Topology.parse(TPU), cache_dir=cache_dir).plan()
    compiled = plan.compiled
    assert plan.estimate is not None
    return {
        "flops": int(compiled.flops),
        "bytes_accessed": int(compiled.hbm_bytes),
        "collectives": sum(c.count for c in compiled.collectives),
        "peak_bytes": compiled.memory.peak,
        "step_seconds": round(plan.estimate.step_seconds, 6),
    }


def measured(place: str, recipe: str, cache_dir: Path) -> dict[str, Any]:
    return on_cpu(recipe) if place == CPU else on_tpu(recipe, cache_dir)


def committed() -> dict[str, Any]:
    return json.loads(FIGURES.read_text())


def worse(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """What got more than 5% worse, in words."""
    return [
        f"{NAMES[key]}: {now[key]:,} instead of {before[key]:,}" for key in before if now[key] > WORSE * before[key]
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("place", "recipe"), CASES)
def test_the_step_is_not_worse_than_the_committed_figures(place, recipe, tmp_path):
    if place == TPU and importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install 'vadapter[tpu]'")
    before = committed()
    expected = {name: before["versions"][name] for name in VERSIONS[place]}
    versions = {name: metadata.version(name) for name in expected}
    if versions != expected:
        pytest.skip(f"nothing is compared: the figures are of {expected}, installed are {versions}")
    found = worse(measured(place, recipe, tmp_path), before[place][recipe])
    assert not found, f"{recipe} on {place} got worse than {FIGURES.name}. If that is meant: {REFRESH}"


def test_figures_are_committed_for_every_case():
    figures = committed()
    assert sorted((place, recipe) for place in VERSIONS for recipe in figures[place]) == sorted(CASES)
    assert all(all(row.values()) for place in VERSIONS for row in figures[place].values())


def test_the_committed_figures_are_those_of_the_pinned_versions():
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (Path(__file__).parents[2] / "constraints.txt").read_text(), re.M))
    pinned = {name: pins.get(name) for name in committed()["versions"]}
    assert committed()["versions"] == pinned, f"constraints.txt has moved; make the figures anew: {REFRESH}"


def test_what_is_six_percent_worse_is_noticed_and_what_is_better_is_not():
    before = {"peak_bytes": 1000, "collectives": 40}
    assert worse({"peak_bytes": 1060, "collectives": 42}, before) == [
        "memory of a device (bytes): 1,060 instead of 1,000"
    ]
    assert len(worse({"peak_bytes": 1060, "collectives": 43}, before)) == 2
    assert worse({"peak_bytes": 500, "collectives": 40}, before) == []


def refresh() -> None:
    """Makes the committed figures anew, and shows what changed."""
    import tempfile

    from vadapter.planning.topologies import prepare

    prepare()
    figures: dict[str, Any] = committed() if FIGURES.exists() else {}
    figures["versions"] = {name: metadata.version(name) for name in VERSIONS[TPU]}
    with tempfile.TemporaryDirectory() as folder:
        for place, recipe in CASES:
            rows = figures.setdefault(place, {})
            now = measured(place, recipe, Path(folder))
            print(f"{recipe} on {place}\n  before {rows.get(recipe)}\n  now    {now}", flush=True)
            rows[recipe] = now
    FIGURES.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    refresh()
