"""A sweep with trainings that are made up: what is trained, chosen, resumed and written. No jax in the trainings."""

import json
import signal
import sys

import pytest
from pyarrow import parquet

from vadapter.base.errors import UserError
from vadapter.reports import sweep as page
from vadapter.runs import sweep_table
from vadapter.runs.sweep import Arm, Setting, Sweep, check_same, to_json
from vadapter.runs.sweep_run import StoppedError, SweepRunner

RATE = "OptimizerConfig.learning_rate"
RATES = ("1e-4", "1e-3", "1e-2")
# A training of 4 steps, saved after each. Its loss is least at the rate 1e-3 and depends a little on the seed.
TRAINING = """
import json, math, os, signal, sys, time
from pathlib import Path
folder, rate, seed, until, how = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
curve = folder / "curve.jsonl"
begun = len(curve.read_text().splitlines()) if curve.exists() else 0
print("begins after step", begun, flush=True)
if how == "wrong":
    print("vadapter: error: a setting does not fit"); sys.exit(2)
if how == "preempted":
    sys.exit(143)
if how == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "sleeps":
    os.kill(os.getppid(), signal.SIGTERM)
    signal.pause()
for step in range(begun + 1, 5):
    loss = 1 + abs(math.log10(rate) + 3) + 0.1 * seed + 1 / step
    with curve.open("a") as f:
        f.write(json.dumps({"step": step, "split": "val", "loss": loss}) + "\\n")
    if str(step) == until:
        sys.exit(143)
evals = {"val": {"loss": loss}, "test": {"loss": loss + 1}}
done = {"step": 4, "seconds": 2.0, "evals": evals, "trainable_params": 1000}
(folder / "environment.json").write_text(json.dumps({"device": "made up", "jax": "0"}))
(folder / "done.json").write_text(json.dumps(done))
"""


def made(arms=("a", "b"), rates=RATES, **changes):
    return Sweep(tuple(Arm(name, ("x.gin",), grid={RATE: rates}) for name in arms), **{"seeds": (0, 1, 2), **changes})


class Trainings:
    """Runs a sweep and remembers what was started, as (arm, rate, seed, up to which step)."""

    def __init__(self, out, how=None):
        self.out, self.how, self.started, self.said = out, how or {}, [], []

    def __call__(self, sweep, retry=False, **options):
        def command(run, until):
            rate = dict(run.setting.values)[RATE]
            self.started.append((run.arm.name, rate, run.seed, until))
            how = self.how.get((run.arm.name, rate), "")
            return [sys.executable, "-c", TRAINING, str(self.out / run.folder), rate, str(run.seed), str(until), how]

        self.started.clear()
        return SweepRunner(sweep, self.out, command, retry=retry, say=self.said.append).run(**options)


@pytest.fixture
def trainings(tmp_path):
    return Trainings(tmp_path / "sweep")


def test_the_first_seed_chooses_and_the_others_run_at_the_choice(trainings):
    lines = trainings(made())
    assert sorted(trainings.started) == sorted(
        [(arm, rate, 0, None) for arm in "ab" for rate in RATES]
        + [(arm, "1e-3", seed, None) for arm in "ab" for seed in (1, 2)]
    )
    chosen = [(line["arm"], line["name"], line["seed"]) for line in lines if line["chosen"]]
    assert chosen == [(arm, "learning_rate=1e-3", seed) for arm in "ab" for seed in (0, 1, 2)]
    assert not any(line["edge"] for line in lines)
    assert (trainings.out / "a" / "learning_rate=1e-3" / "seed2" / "done.json").is_file()


def test_a_second_call_of_a_finished_sweep_starts_nothing(trainings):
    first = trainings(made())
    assert trainings(made()) == first
    assert trainings.started == []


def test_arms_values_and_seeds_can_be_added(trainings):
    trainings(made(["a"], RATES[:2], seeds=(0,)))
    lines = trainings(made(["a", "b"], seeds=(0, 1)))
    assert ("a", "1e-3", 0, None) not in trainings.started
    assert {("a", "1e-2", 0, None), ("a", "1e-3", 1, None), ("b", "1e-4", 0, None)} <= {*trainings.started}
    assert {line["name"] for line in lines if line["chosen"]} == {"learning_rate=1e-3"}


def test_with_all_seeds_all_are_trained_and_choose(trainings):
    lines = trainings(made(["a"], seeds=(0, 1), all_seeds=True))
    assert len(trainings.started) == len(lines) == 6


def test_a_choice_at_the_edge_of_its_grid_is_said(trainings):
    lines = trainings(made(["a"], RATES[1:]))
    chosen = next(line for line in lines if line["chosen"])
    assert chosen["edge"] == f"{RATE}=1e-3 is the least value tried: the best may lie beyond it."


def test_hopeless_settings_stop_early_and_the_best_go_on_where_they_were(trainings):
    lines = trainings(made(["a"], seeds=(0,), rungs=((2, 1),)))
    assert sorted(trainings.started, key=str) == sorted(
        [*(("a", rate, 0, 2) for rate in RATES), ("a", "1e-3", 0, None)], key=str
    )
    status = {line["name"]: (line["status"], line["steps"]) for line in lines}
    assert status == {f"learning_rate={rate}": ("done", 4) if rate == "1e-3" else ("stopped", 2) for rate in RATES}
    assert "not among the best 1" in next(line["note"] for line in lines if line["status"] == "stopped")
    log = (trainings.out / "a" / "learning_rate=1e-3" / "seed0" / sweep_table.LOG).read_text()
    assert log.split("\n")[:2] == ["begins after step 0", "begins after step 2"]
    trainings(made(["a"], seeds=(0,), rungs=((2, 1),)))
    assert trainings.started == []


def test_a_run_that_fails_is_recorded_and_stops_no_other(trainings):
    trainings.how[("a", "1e-3")] = "wrong"
    lines = trainings(made(seeds=(0,)))
    failed = next(line for line in lines if line["status"] == "failed")
    assert failed["note"] == "vadapter: error: a setting does not fit"
    assert any("FAILED" in text for text in trainings.said)
    assert {line["arm"]: line["name"] for line in lines if line["chosen"]} == {
        "a": "learning_rate=1e-4",
        "b": "learning_rate=1e-3",
    }
    trainings(made(seeds=(0,)))
    assert trainings.started == []  # it would fail again
    trainings.how.clear()
    lines = trainings(made(seeds=(0,)), retry=True)
    assert trainings.started == [("a", "1e-3", 0, None)]
    assert {line["name"] for line in lines if line["chosen"]} == {"learning_rate=1e-3"}


def test_an_evaluation_that_the_runs_do_not_have_is_told(trainings):
    lines = trainings(made(["a"], seeds=(0,), validation="validation"))
    assert {line["status"] for line in lines} == {"failed"}
    assert lines[0]["note"] == "no finite loss of an evaluation 'validation' at its end; it has val, test"


def test_a_run_that_was_killed_is_tried_again(trainings):
    trainings.how[("a", "1e-3")] = "killed"
    lines = trainings(made(["a"], seeds=(0,)))
    assert [line["status"] for line in lines].count("failed") == 1
    trainings.how.clear()
    trainings(made(["a"], seeds=(0,)))
    assert trainings.started == [("a", "1e-3", 0, None)]


def test_nothing_is_chosen_while_a_training_was_stopped_from_outside(trainings):
    trainings.how[("a", "1e-2")] = "preempted"
    lines = trainings(made(["a"]))
    assert [line["status"] for line in lines] == ["done", "done", "paused"]
    assert not any(line["chosen"] for line in lines)
    trainings.how.clear()
    assert len([line for line in trainings(made(["a"])) if line["chosen"]]) == 3


def test_a_sweep_that_is_told_to_stop_stops_its_trainings_and_goes_on_later(trainings):
    trainings.how[("a", "1e-3")] = "sleeps"
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError):
        trainings(made(["a"]))
    assert signal.getsignal(signal.SIGTERM) == before
    assert trainings.started == [("a", "1e-4", 0, None), ("a", "1e-3", 0, None)]
    trainings.how.clear()
    lines = trainings(made(["a"]))
    assert ("a", "1e-4", 0, None) not in trainings.started
    assert {line["status"] for line in lines} == {"done"}


def test_workers_have_numbers_and_give_the_same_table(tmp_path, trainings):
    other = Trainings(tmp_path / "other")
    lines = other(made(), workers=3, environment={"GPU": "{worker}"})

    def figures(lines):
        return [(x["arm"], x["name"], x["seed"], x["validation"], x["chosen"]) for x in lines]

    assert figures(lines) == figures(trainings(made()))


def test_one_sweep_at_a_time(trainings, tmp_path):
    def meanwhile(run, until):
        with pytest.raises(UserError, match="at work"):
            Trainings(trainings.out)(made(["a"]))
        return ["true"]

    SweepRunner(made(["a"], RATES[:1], seeds=(0,)), trainings.out, meanwhile, say=lambda text: None).run()


def test_the_table_is_jsonl_and_parquet(trainings):
    lines = trainings(made(test="test/loss"))
    assert sweep_table.read(trainings.out) == lines
    first = lines[0]
    assert first["setting"] == {RATE: "1e-4"}
    assert first["trained_parameters"] == 1000
    assert first["test"] == pytest.approx(first["validation"]["last"] + 1)
    assert first["environment"] == {"device": "made up", "jax": "0"}
    assert f"{RATE}=1e-4" in first["gin_bindings"]
    table = parquet.read_table(trainings.out / sweep_table.PARQUET).to_pylist()
    assert [row["evals/val/loss"] for row in table] == [line["validation"]["last"] for line in lines]
    assert [row[f"setting/{RATE}"] for row in table] == [line["setting"][RATE] for line in lines]


def test_another_sweep_s_folder_is_refused_with_what_differs(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps(to_json(made())))
    check_same(made(["a", "b", "c"], (*RATES, "1e-1"), seeds=(0, 1, 2, 3)), tmp_path)
    cases = {
        "the arm b, which was not given": made(["a"]),
        "had OptimizerConfig.learning_rate=1e-2": made(rates=RATES[:2]),
        "seeds were 0, 1, 2 and are 1, 0, 2": made(seeds=(1, 0, 2)),
        "bindings was .none. and is BATCH_SIZE=8": made(bindings=("BATCH_SIZE=8",)),
    }
    for text, sweep in cases.items():
        with pytest.raises(UserError, match=text):
            check_same(sweep, tmp_path)
    with pytest.raises(UserError, match="no sweep's folder"):
        (tmp_path / "sweep.json").rename(tmp_path / "other.json")
        check_same(made(), tmp_path)


def test_names_of_settings_are_short_readable_and_safe():
    assert Setting(((RATE, "1e-4"), ("BATCH_SIZE", "8"))).name == "learning_rate=1e-4,BATCH_SIZE=8"
    assert Setting((("a/X.lr", "1"), ("b/X.lr", "2"))).name == "a_X.lr=1,b_X.lr=2"
    assert "/" not in Setting((("X.path", '"../../b c"'),)).name
    assert Setting().name == "default"
    with pytest.raises(UserError, match="different names"):
        made(rates=("1e-4", "1e-4"))


def test_the_page_says_choices_intervals_and_differences(trainings, tmp_path):
    sweep = made(test="test/loss")
    trainings(sweep)
    page.write(trainings.out, tmp_path / "page.html", results=tmp_path / "page.json")
    results = json.loads((tmp_path / "page.json").read_text())
    assert results["arms"]["a"]["setting"] == "learning_rate=1e-3"
    assert results["arms"]["a"]["test"]["mean"] == pytest.approx(2.35)  # 1 + 1 + 0.25 + 0.1 x the mean seed 1
    assert results["arms"]["a"]["test"]["method"] == "Student"
    assert list(results["differences"]["b"]["by_seed"].values()) == [0, 0, 0]
    text = (tmp_path / "page.html").read_text()
    assert text.count("<polygon") == 4  # the bands of two arms, wide and narrow
    assert f"Loss against {RATE}" in text
    assert "http" not in text.replace("http-equiv", "")
    with pytest.raises(UserError, match="one of the arms"):
        page.write(trainings.out, tmp_path / "page.html", baseline="c")


def test_the_page_is_loud_about_an_edge_and_escapes_everything(trainings, tmp_path):
    trainings.how[("a", "1e-2")] = "wrong"
    trainings(made(["a"], RATES[1:], bindings=("X.y='<script>'",)))
    page.write(trainings.out, tmp_path / "page.html", title="<b>")
    text = (tmp_path / "page.html").read_text()
    assert "is at the edge of its grid" in text
    assert "FAILED" in text
    assert "<script>" not in text and "<b>&" not in text and "<h1>&lt;b&gt;" in text


def test_an_arm_without_a_finished_run_has_no_choice(trainings, tmp_path):
    for rate in RATES:
        trainings.how[("a", rate)] = "wrong"
    lines = trainings(made())
    assert not any(line["chosen"] for line in lines if line["arm"] == "a")
    page.write(trainings.out, tmp_path / "page.html")
    assert "No setting is chosen" in (tmp_path / "page.html").read_text()
