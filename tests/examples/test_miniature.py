"""examples/miniature: its arms are what gin can make, and the page says what the results say."""

import json
import runpy
from pathlib import Path

import pytest

from vadapter.recipes import experiments

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "miniature"
RUN = runpy.run_path(str(FOLDER / "run.py"))
TABLES = runpy.run_path(str(FOLDER / "tables.py"))
ARMS = {name: arm for arms in RUN["SWEEPS"].values() for name, arm in arms.items()}


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_an_experiment(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    arm = ARMS[name]
    bindings = [f"{macro}={value}" for macro, value in arm.macros.items() if macro != "STAGE1_RUN"]
    made = experiments.unopened([*arm.files, f"{RUN['GIN']}/measure.gin"], bindings)
    assert made.train.steps == int(arm.macros.get("TRAIN_STEPS", 480))
    assert made.data.batch_size == 32
    handed = "STAGE1_RUN" in arm.macros and "HANDOFF" not in arm.macros and name != "paper"
    assert (made.handoff is not None) == handed


def test_the_page_and_the_demo_say_what_the_results_say():
    lines = TABLES["results"]()
    assert TABLES["tables"](lines) in (ROOT / "docs" / "experiments.md").read_text(), (
        "python examples/miniature/tables.py"
    )
    said = json.loads((ROOT / "data" / "scenes" / "miniature.json").read_text())["test_loss"]
    arms = {arm.name: arm for arm in TABLES["summaries"](lines, "test/loss")}
    assert {"perceiver", "queries_random", "queries", "words"} <= said.keys()
    for name, text in said.items():
        assert text == TABLES["estimate_text"](arms[name].test)


def test_a_crossing_lies_between_two_measurements():
    crossing = TABLES["crossing"]
    assert crossing([(30, 1.0), (60, 0.5)], 0.75) == pytest.approx(45)
    assert crossing([(30, 1.0), (60, 0.5)], 1.5) == 30
    assert crossing([(30, 1.0), (60, 0.5)], 0.4) is None
