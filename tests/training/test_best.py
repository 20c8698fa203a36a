"""The best checkpoint is kept, named, and found again; a run stops when it gets no better."""

import json
import math

import pytest

from tests.training.test_loop import assert_same, lines, run, terminated_at
from vadapter.base.errors import UserError
from vadapter.base.evaluator import EvalResult
from vadapter.training import checkpoints
from vadapter.training.best import BestConfig

LOSSES = {1: 5.0, 2: 3.0, 3: 4.0, 4: 3.5, 5: 3.2, 6: 3.1}


class Measured:
    """Gives for each call, in turn, the loss of a step."""

    name, every_steps = "val", None

    def __init__(self, values=LOSSES, first=1, fails_at=None):
        self.values, self.step, self.fails_at = values, first - 1, fails_at

    def __call__(self, params):
        self.step += 1
        if self.step == self.fails_at:
            raise OSError("killed")
        return EvalResult({"loss": self.values[self.step]})


def best_run(folder, evaluator=None, patience=None, mode="min", metric="val/loss", **settings):
    config = BestConfig(metric, mode, patience)
    return run(folder, evaluators=[evaluator or Measured()], eval_every=1, best=config, **settings)


def named(folder):
    return json.loads((folder / "best.json").read_text())


def test_the_best_outlives_the_newest(tmp_path, capsys):
    result = best_run(tmp_path)
    assert (result.step, result.best) == (6, 2)
    assert checkpoints.steps(str(tmp_path)) == [2, 6]
    assert named(tmp_path) == {"metric": "val/loss", "mode": "min", "step": 2, "value": 3.0}
    assert checkpoints.locate(str(tmp_path), "best") == (str(tmp_path), 2)
    assert json.loads((tmp_path / "done.json").read_text())["best"]["step"] == 2
    assert "The best is checkpoint_2, val/loss 3." in capsys.readouterr().out
    assert best_run(tmp_path, Measured(first=99)).best == 2  # done is not done again


def test_the_highest_may_be_the_best(tmp_path):
    assert best_run(tmp_path, mode="max").best == 1
    assert checkpoints.steps(str(tmp_path)) == [1, 6]


def test_of_equal_ones_the_first_is_the_best_and_what_is_no_number_never_is(tmp_path):
    values = {1: math.nan, 2: 2.0, 3: 2.0, 4: math.inf, 5: math.nan, 6: 2.0}
    assert best_run(tmp_path / "a", Measured(values)).best == 2
    assert best_run(tmp_path / "b", Measured(dict.fromkeys(range(1, 7), math.nan))).best is None
    assert not (tmp_path / "b/best.json").exists()


@pytest.mark.parametrize("killed", [2, 3, 4, 6])
def test_a_kill_in_an_evaluation_changes_nothing(tmp_path, killed):
    whole = best_run(tmp_path / "whole", log_every=1)
    with pytest.raises(OSError, match="killed"):
        best_run(tmp_path / "cut", Measured(fails_at=killed), log_every=1)
    if killed > 2:
        assert checkpoints.locate(str(tmp_path / "cut"), "best")[1] == 2  # also while nothing runs
    resumed = best_run(tmp_path / "cut", Measured(first=killed), log_every=1)
    assert_same(whole.params, resumed.params)
    assert resumed.best == 2
    for found in (checkpoints.steps, lambda folder: named(tmp_path / folder.rsplit("/", 1)[1])):
        assert found(str(tmp_path / "cut")) == found(str(tmp_path / "whole"))
    assert [row["loss"] for row in lines(tmp_path / "cut", "val")] == list(LOSSES.values())


def test_a_kill_before_the_file_was_written_changes_nothing(tmp_path, monkeypatch):
    """The new best is saved and measured; that it is the best was not yet written down."""
    from vadapter.training import best

    values = {1: 5.0, 2: 4.0, 3: 3.0, 4: 3.5, 5: 3.5, 6: 3.5}
    write = best.files.write_json

    def cut(path, record):
        if record["step"] == 3:
            raise OSError("killed")
        write(path, record)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="killed"):
        patched.setattr(best.files, "write_json", cut)
        best_run(tmp_path, Measured(values))
    assert named(tmp_path)["step"] == 2
    assert checkpoints.locate(str(tmp_path), "best")[1] == 2  # what the file names is there
    assert best_run(tmp_path, Measured(values, first=4)).best == 3
    assert checkpoints.steps(str(tmp_path)) == [3, 6]


def test_a_run_stops_when_it_gets_no_better(tmp_path, capsys):
    result = best_run(tmp_path, patience=2, steps=6)
    assert (result.step, result.best, result.interrupted) == (4, 2, False)
    assert "Done: 4 steps of 6, since it got no better. The best is checkpoint_2" in capsys.readouterr().out
    assert checkpoints.steps(str(tmp_path)) == [2, 4]
    assert [row["step"] for row in lines(tmp_path, "val")] == [1, 2, 3, 4]  # measured once each
    again = best_run(tmp_path, Measured(first=99), patience=2, data=lambda start: iter(()))
    assert (again.step, again.best, again.evals) == (4, 2, {"val": {"loss": 3.5}})


def test_more_patience_goes_on(tmp_path):
    best_run(tmp_path, patience=2)
    result = best_run(tmp_path, Measured(first=5), patience=3)
    assert (result.step, result.best) == (5, 2)


@pytest.mark.parametrize("killed", [3, 4])
def test_a_resumed_run_stops_where_a_whole_one_does(tmp_path, killed):
    whole = best_run(tmp_path / "whole", patience=2)
    with pytest.raises(OSError, match="killed"):
        best_run(tmp_path / "cut", Measured(fails_at=killed), patience=2)
    resumed = best_run(tmp_path / "cut", Measured(first=killed), patience=2)
    assert (resumed.step, resumed.best) == (whole.step, whole.best)
    assert_same(whole.params, resumed.params)


def test_a_run_told_to_stop_keeps_its_best(tmp_path):
    stopped = best_run(tmp_path, data=terminated_at(3))
    assert (stopped.step, stopped.interrupted, stopped.best) == (4, True, 2)
    assert checkpoints.locate(str(tmp_path), "best")[1] == 2
    assert best_run(tmp_path, Measured(first=4)).best == 2


def test_a_run_that_goes_back_chooses_among_what_is_left(tmp_path, capsys):
    values = {1: 5.0, 2: 4.0, 3: 4.5, 4: 4.5, 5: 3.0, 6: 3.5}
    best_run(tmp_path, Measured(values), keep_checkpoints=3)
    assert checkpoints.steps(str(tmp_path)) == [4, 5, 6]
    later = {5: 4.4, 6: 4.6}
    result = best_run(tmp_path, Measured(later, first=5), keep_checkpoints=3, step=4)
    assert "The best is checkpoint_2, val/loss 4, which is not there any more" in capsys.readouterr().out
    assert result.best == 5
    assert named(tmp_path)["value"] == 4.4


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (
            "val/cider",
            r"'val/cider', which no evaluation of the run gives. The metrics that there are: val/loss, val/ex",
        ),
        ("loss", "'loss', which no evaluation"),
        ("", "no evaluation"),
    ],
)
def test_a_metric_that_nothing_gives_is_refused_before_training(tmp_path, metric, said):
    evaluator = Measured()
    evaluator.scalar_names = ["loss", "exact_match"]
    with pytest.raises(UserError, match=said):
        best_run(tmp_path / "run", evaluator, metric=metric)
    assert not (tmp_path / "run").exists()


def test_what_an_evaluator_turns_out_not_to_give_is_refused(tmp_path):
    with pytest.raises(UserError, match="'val/cider', which val did not give at step 1; it gave val/loss"):
        best_run(tmp_path, metric="val/cider")


def test_a_metric_of_the_end_is_refused(tmp_path):
    with pytest.raises(UserError, match="measured at the end of the run only.*EVAL_EVERY"):
        run(tmp_path, evaluators=[Measured()], best=BestConfig("val/loss", "min"))


@pytest.mark.parametrize(
    ("changes", "said"), [({"mode": "low"}, "expected 'min'"), ({"patience": 0}, "patience is 0; expected 1")]
)
def test_settings_that_make_no_sense(changes, said):
    with pytest.raises(UserError, match=said):
        BestConfig(**{"metric": "val/loss", "mode": "min", **changes})


def test_a_run_without_a_best_says_so(tmp_path):
    run(tmp_path)
    with pytest.raises(
        UserError, match="best.json is not there: a run writes it that was trained with TrainConfig.best"
    ):
        checkpoints.locate(str(tmp_path), "best")
    (tmp_path / "best.json").write_text('{"step": "6')
    with pytest.raises(UserError, match="best.json cannot be read"):
        checkpoints.locate(str(tmp_path), "best")
    with pytest.raises(UserError, match="The step is 'bset'; expected a number, or 'best'"):
        checkpoints.locate(str(tmp_path), "bset")
