"""examples/open: what it computes without weights, pictures or a device, and that docs/open.md has its tables."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "open"
RESULTS = EXAMPLE / "results" / "h200.jsonl"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tables():
    return load(ROOT / "benchmarks" / "open_tables.py")


def test_the_regression_finds_a_linear_map(example):
    models = example("models")
    rng = np.random.default_rng(0)
    states, kernel = rng.normal(size=(4000, 6)).astype(np.float32), rng.normal(size=(6, 4))
    found, bias, facts = models.ridge(states, (states @ kernel + 2).astype(np.float32), np.arange(4000) % 10 == 0)
    np.testing.assert_allclose(found, kernel, atol=0.02)
    np.testing.assert_allclose(bias, 2, atol=0.01)
    assert facts["ridge_r2"] > 0.999
    assert facts["positions"] == 3600


def test_arms_compile_what_they_need_alone(example):
    models = example("models")
    assert models.kinds_of(["perceiver"]) == ["perceiver"]
    assert models.kinds_of(["text", "random"]) == ["queries"]
    assert models.kinds_of(["repaired_frozen"]) == ["stage1", "prefixed", "frozen"]


def test_a_further_rate_is_tried_where_the_best_is_at_the_edge(example):
    arms = example("arms")
    assert arms.further({3e-4: 2.0, 1e-3: 1.0}) == 3e-3
    assert arms.further({3e-4: 1.0, 1e-3: 2.0}) == 1e-4
    assert arms.further({3e-4: 2.0, 1e-3: 1.0, 3e-3: 2.0}) is None
    assert arms.further({1e-2: 1.0, 3e-3: 2.0}) is None
    assert arms.further({}) is None


def test_steps_are_as_many_as_the_budget_allows(example):
    arms = example("arms")
    times = dict.fromkeys(("stage1", "perceiver", "mlp", "queries", "prefixed", "frozen"), 0.01)
    steps = arms.plan_steps(times, 400.0, 1000)
    assert 100 < steps < 1000
    assert steps % 20 == 0
    assert arms.plan_steps(times, 400.0, 140) == 140
    assert arms.plan_steps(times, 10.0, 1000) == 100
    assert arms.plan_steps(times, 400.0, 5000, ["mlp"]) > steps


def test_stage_1_of_a_seed_is_trained_once(example, tmp_path, monkeypatch):
    arms, trained = example("arms"), []

    def run(bench, arm, seed, rate, steps, own, facts):
        trained.append((seed, steps))
        return {}, {"adapter/dense_0/kernel": np.full(2, seed)}

    monkeypatch.setattr(arms, "run", run)
    facts = {"batch": 64, "dtype": "float32"}
    bench = SimpleNamespace(out=tmp_path, facts=facts, tiny={}, built={"stage1": SimpleNamespace(make=lambda key: {})})
    for _ in range(2):
        assert arms.Starts(bench, 100).stage1(2)["adapter/dense_0/kernel"].tolist() == [2, 2]
    arms.Starts(bench, 160).stage1(2)
    arms.Starts(bench, 100).stage1(1)
    facts["dtype"] = "bfloat16"
    arms.Starts(bench, 100).stage1(1)
    assert trained == [(2, 100), (2, 160), (1, 100), (1, 100)]


def test_rates_that_are_given_are_not_swept(example, monkeypatch):
    arms, done = example("arms"), []

    monkeypatch.setattr(arms, "run", lambda bench, *line: done.append(line[:4]))
    monkeypatch.setattr(arms.Starts, "of", lambda *_: ({}, {}))
    given = "--data=pack --out=out --arms perceiver mlp --rates 3e-4 1e-2 --seeds 2 3 --steps 100"
    arms.repeat(None, arms.arguments(given.split()))
    assert done == [(arm, seed, rate, 100) for seed in (2, 3) for arm, rate in (("perceiver", 3e-4), ("mlp", 1e-2))]


def test_stage_1_can_have_steps_of_its_own(example, monkeypatch):
    arms, made = example("arms"), []

    class Starts(arms.Starts):
        def __init__(self, bench, steps):
            made.append(steps)

        def of(self, arm, seed):
            return {}, {}

    monkeypatch.setattr(arms, "run", lambda bench, arm, seed, rate, steps, *_: made.append(steps))
    monkeypatch.setattr(arms, "Starts", Starts)
    given = "--data=pack --out=out --arms words --rates 3e-4 --seeds 2 --steps 25"
    arms.repeat(None, arms.arguments(given.split()))
    arms.repeat(None, arms.arguments([*given.split(), "--stage1-steps", "100"]))
    assert made == [25, 25, 100, 25]


def test_rates_and_parts_that_do_not_fit_are_refused(example, capsys):
    with pytest.raises(SystemExit, match="2"):
        example("arms").arguments(["--data=pack", "--out=out", "--arms", "perceiver", "mlp", "--rates", "1e-3"])
    assert "give one for each of --arms" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        example("arms").arguments(["--data=pack", "--out=out", "--accumulate=3"])
    assert "must divide --batch (64) and 100" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        example("arms").arguments(["--data=pack", "--out=out", "--pictures=0"])
    assert "give at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        example("arms").arguments(["--data=pack", "--out=out", "--stage1-steps=25"])
    assert "give 1 or more, with --rates" in capsys.readouterr().err
    for step in ("-1", "101"):
        with pytest.raises(SystemExit, match="2"):
            example("arms").arguments(["--data=pack", "--out=out", "--steps=100", "--evaluate", "60", step])
        assert f"--evaluate has {step}: steps are 0 to --steps (100)" in capsys.readouterr().err


def test_a_run_is_evaluated_where_asked_and_at_its_end(example):
    points = example("trial").points
    assert points(100, None) == [0, 20, 40, 60, 80, 100]
    assert points(160, None) == [0, 20, 32, 40, 64, 96, 128, 160]
    assert points(100, [60, 20]) == [20, 60, 100]
    assert points(100, [100]) == [100]
    assert points(25, [60]) == [25]  # a stage 1 that is shorter than stage 2


def run_line(arm, seed, rate, test, validation, **more):
    losses = {"test": test, "validation": validation, "new_hand": test + 0.5}
    return {
        "kind": "stage2",
        "arm": arm,
        "seed": seed,
        "rate": rate,
        "steps": 40,
        "trained_parameters": 1200,
        "seconds": 3.0,
        "device": "a GPU",
        "final": losses,
        "reliance": {"test": 1.0},
        "curve": {"0": {"test": 9.0}, "40": {"test": test}},
        **more,
    }


def test_the_tables_show_each_arm_at_the_rate_that_validation_chose(tables, tmp_path, monkeypatch):
    lines = [
        run_line("perceiver", 0, 1e-3, test=4.0, validation=3.0),
        run_line("perceiver", 1, 1e-3, test=4.2, validation=3.9, device="a CPU", seconds=5000.0),
        run_line("perceiver", 0, 1e-4, test=3.0, validation=3.5),  # the best on the test set, which chooses nothing
        run_line("repaired", 0, 1e-3, test=3.5, validation=3.0),
        run_line("repaired", 1, 1e-3, test=3.9, validation=3.0),
        {**run_line("stage1", 0, 3e-4, test=3.0, validation=3.0), "kind": "stage1"},
    ]
    results = tmp_path / "results.jsonl"
    results.write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setattr(sys, "argv", ["open_tables.py", str(results), "--out", str(tmp_path)])
    tables.main()
    text = (tmp_path / "results.md").read_text()
    # Half an interval is 12.706 times the standard error, 0.1.
    expected = "| `perceiver` | 1,200 | 0.001 | 2 | 4.100 ± 1.271 | 4.600 ± 1.271 | 1.000 ± 0.000 | 3.0 |"
    assert expected in text
    assert "| `repaired` - `perceiver` | the adapter | -0.500, -0.300 | -0.400 ± 1.271 |" in text
    assert "| `perceiver` | 3.500 | 3.000 |" in text  # validation loss by rate
    assert "seed 0: 40 steps, test loss 3.000" in text
    assert (tmp_path / "curves.svg").read_text().count("<polyline") == 2


def test_the_document_has_the_tables_of_the_recorded_results(tables):
    files = [RESULTS, RESULTS.parent / "cpu.jsonl"]
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    best = tables.best_runs(lines)
    text = (ROOT / "docs" / "open.md").read_text()
    makers = (tables.main_table, tables.seed_table, tables.paired_table, tables.curve_table)
    for row in [*(row for make in makers for row in make(best)), *tables.rate_table(lines)]:
        assert row in text
    assert (ROOT / "docs" / "open.svg").read_text() == tables.figure(best)


def test_the_document_has_the_tables_of_the_run_with_words(tables):
    files = [RESULTS.parent / name for name in ("h200_words.jsonl", "cpu_words.jsonl")]
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    best = tables.best_runs(lines)
    text = (ROOT / "docs" / "open.md").read_text().partition("## Words")[2].partition("## Fewer pictures")[0]
    makers = (tables.main_table, tables.seed_table, tables.paired_table, tables.curve_table)
    for row in [*(row for make in makers for row in make(best)), *tables.rate_table(lines)]:
        assert row in text


def test_the_document_has_the_tables_of_the_run_with_fewer_pictures(tables):
    lines = [json.loads(line) for line in (RESULTS.parent / "cpu_few.jsonl").read_text().splitlines()]
    best = tables.best_runs(lines)
    assert {line["stage2_pictures"] for line in lines} == {500}
    text = (ROOT / "docs" / "open.md").read_text().partition("## Fewer pictures")[2].partition("## On a laptop")[0]
    makers = (tables.main_table, tables.seed_table, tables.paired_table, tables.curve_table)
    for row in [row for make in makers for row in make(best)]:
        assert row in text


def test_the_document_has_the_table_of_the_short_runs(tables):
    read = {name: (RESULTS.parent / name).read_text().splitlines() for name in ("h200_words.jsonl", "cpu_short.jsonl")}
    longer, short = ([json.loads(line) for line in lines] for lines in read.values())
    text = (ROOT / "docs" / "open.md").read_text().partition("## A quarter of the steps")[2]
    for row in tables.short_table(short, tables.best_runs(longer)["perceiver"]):
        assert row in text.partition("## Fewer pictures")[0]


def test_short_runs_stand_beside_a_longer_one_of_the_same_seed(tables, tmp_path, monkeypatch):
    short = [
        run_line("words", 1, 3e-4, test=4.7, validation=4.25, stage1_steps=100),
        run_line("words", 0, 3e-4, test=4.5, validation=4.0, stage1_steps=100),
        run_line("words", 0, 1e-3, test=4.6, validation=4.1, stage1_steps=100),
        run_line("words", 0, 3e-4, test=5.0, validation=4.0, stage1_steps=25),
        run_line("words", 2, 3e-4, test=5.0, validation=4.0, stage1_steps=10),
        run_line("perceiver", 0, 3e-4, test=6.0, validation=4.0),
    ]
    longer = [run_line("perceiver", seed, 1e-3, test=4.75, validation=4.0) for seed in (0, 1)]
    for name, lines in {"short": short, "longer": longer}.items():
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)))
    given = [str(tmp_path / "longer"), "--short", str(tmp_path / "short"), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["open_tables.py", *given])
    tables.main()
    rows = (tmp_path / "results.md").read_text().partition("## Fewer steps")[2].split("\n")[4:-1]
    assert rows == [
        "| `perceiver` | none | 40 | 0.0003 | 0 | 4.000 | 6.000 | +1.250 | 1.250 |",
        "| `words` | 10 | 40 | 0.0003 | 2 | 4.000 | 5.000 |  |  |",  # no longer run of seed 2
        "| `words` | 25 | 40 | 0.0003 | 0 | 4.000 | 5.000 | +0.250 | 0.250 |",
        "| `words` | 100 | 40 | 0.0003 | 0, 1 | 4.000, 4.250 | 4.600 ± 1.271 | -0.250, -0.050 | -0.150 ± 1.271 |",
        "| `words` | 100 | 40 | 0.001 | 0 | 4.100 | 4.600 | -0.150 | -0.150 |",
    ]


def test_the_readme_has_the_figures_of_the_page():
    readme = (ROOT / "README.md").read_text().partition("### What came out so far")[2].partition("## TPU")[0]
    page = (ROOT / "docs" / "open.md").read_text()
    rows = [line.split(" | ") for line in readme.splitlines() if line.startswith("|") and " ± " in line]
    assert len(rows) == 7
    for _, parameters, loss, seeds in rows:
        assert any(parameters in line and f"| {seeds.rstrip(' |')} | {loss} |" in line for line in page.splitlines())
    words = readme.partition("In a second run")[2]
    for arm, less in (("words", "perceiver"), ("words", "random_32"), ("words_frozen", "perceiver")):
        row = next(line for line in page.splitlines() if line.startswith(f"| `{arm}` - `{less}`"))
        assert row.split(" | ")[3].lstrip("-") in words


def test_the_page_has_the_results_of_make_open():
    results = json.loads((RESULTS.parent / "laptop.json").read_text())
    page = (ROOT / "docs" / "open.md").read_text().partition("## On a laptop")[2]
    for table in load(ROOT / "benchmarks" / "open_laptop_tables.py").tables(results).strip().split("\n\n"):
        assert table in page
