import json
import os
import re
import signal

import jax
import numpy as np
import pytest

from tests import saved
from tests.training import small
from vadapter.base import signals, trees
from vadapter.base.errors import UserError
from vadapter.base.evaluator import EvalResult
from vadapter.training import checkpoints, initialize
from vadapter.training.loop import TrainConfig, train


class Val:
    name = "val"

    def __init__(self, every_steps=None):
        self.every_steps = every_steps
        self.called_with = []

    def __call__(self, params):
        self.called_with.append(trees.flatten(params).keys())
        return EvalResult({"loss": 1.5}, records=[{"prediction": "a dog", "reference": "un chien é"}])


def config(**changes):
    fields = dict(
        steps=6, trainable=("adapter/.*", "head/.*"), optimizer=small.optimizer(), log_every=2, tensorboard=False
    )
    return TrainConfig(**{**fields, **changes})


def run(
    model_dir, data=small.batches, evaluators=(), objective=None, data_info=None, placed=None, step=None, **changes
):
    placed, settings = placed or small.partitioner(), config(**changes)
    model = small.Model()
    program = settings.program(model, small.batch(0), objective or small.objective(model), placed)
    fresh = lambda: (small.params(placed=placed), [])  # noqa: E731
    start = initialize.begin(program, str(model_dir), fresh, data_info=data_info, step=step)
    return train(settings, program=program, start=start, batches=data, model_dir=str(model_dir), evaluators=evaluators)


def lines(model_dir, split):
    rows = [json.loads(line) for line in (model_dir / "curve.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == split]


def terminated_at(step):
    """Batches during which SIGTERM comes, as from a machine that is taken away."""

    def batches(start):
        for i, batch in enumerate(small.batches(start), start):
            if i == step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    return batches


def assert_same(a, b):
    a, b = trees.flatten(a), trees.flatten(b)
    assert a.keys() == b.keys()
    for path in a:
        assert np.asarray(a[path]).tobytes() == np.asarray(b[path]).tobytes(), path


def test_a_run_leaves_its_files(tmp_path, capsys):
    val = Val()
    result = run(tmp_path, evaluators=[val], eval_every=4, keep_checkpoints=2, checkpoint_every=2)
    assert (result.step, result.interrupted) == (6, False)
    assert result.evals == {"val": {"loss": 1.5}}
    assert checkpoints.steps(str(tmp_path)) == [4, 6]
    assert [row["step"] for row in lines(tmp_path, "train")] == [1, 2, 4, 6]
    assert [row["step"] for row in lines(tmp_path, "val")] == [4, 6]
    assert all("encoder/kernel" in paths and "adapter/lm/kernel" in paths for paths in val.called_with)
    assert json.loads((tmp_path / "inference_eval/val-6.jsonl").read_text())["reference"] == "un chien é"
    done = json.loads((tmp_path / "done.json").read_text())
    assert (done["step"], done["trainable_params"], done["total_params"]) == (6, 180, 308)
    assert done["metrics"]["loss"] == lines(tmp_path, "train")[-1]["loss"]
    info = (tmp_path / "model-info.txt").read_text()
    assert "frozen   encoder/kernel  (6, 8)  bfloat16" in info
    printed = capsys.readouterr().out
    assert "step 4/6  loss" in printed
    assert re.search(r"adapter/lm +yes +72 +288 B +576 B", printed)


def test_killed_and_resumed_is_uninterrupted(tmp_path):
    whole = run(tmp_path / "whole", log_every=1)
    stopped = run(tmp_path / "cut", data=terminated_at(3))
    assert (stopped.step, stopped.interrupted) == (4, True)
    assert not (tmp_path / "cut/done.json").exists()
    resumed = run(tmp_path / "cut", log_every=1)
    assert (resumed.step, resumed.interrupted) == (6, False)
    assert_same(whole.params, resumed.params)
    a, b = (lines(tmp_path / x, "train")[-1] for x in ("whole", "cut"))
    assert a["loss"] == b["loss"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_resuming_on_another_mesh_gives_the_same(tmp_path):
    whole = run(tmp_path / "whole")
    run(tmp_path / "cut", data=terminated_at(2))
    resumed = run(tmp_path / "cut", placed=small.partitioner(data=2, fsdp=2))
    for path, x in trees.flatten(resumed.params).items():
        np.testing.assert_allclose(np.asarray(x), np.asarray(trees.flatten(whole.params)[path]), 1e-4, 1e-5)
    assert resumed.params["adapter"]["lm"]["kernel"].sharding.mesh.shape["fsdp"] == 2


def test_what_was_written_after_the_checkpoint_is_dropped_on_resuming(tmp_path):
    def fails(start):
        for i, batch in enumerate(small.batches(start), start):
            if i == 5:
                raise OSError("disk")
            yield batch

    with pytest.raises(OSError, match="disk"):
        run(tmp_path, data=fails, checkpoint_every=3, log_every=1)
    assert [row["step"] for row in lines(tmp_path, "train")] == [1, 2, 3, 4, 5]
    run(tmp_path, log_every=1)
    assert [row["step"] for row in lines(tmp_path, "train")] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_is_done_is_not_done_again(tmp_path):
    first = run(tmp_path, evaluators=[Val()])
    val = Val()
    again = run(tmp_path, evaluators=[val], data=lambda start: iter(()))
    assert val.called_with == []
    assert (again.metrics, again.evals, again.seconds) == (first.metrics, first.evals, first.seconds)
    assert_same(first.params, again.params)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    def poisoned(start):
        for i, batch in enumerate(small.batches(start), start):
            yield {**batch, "x": batch["x"] * np.nan} if i == 4 else batch

    with pytest.raises(UserError, match="gradient of step 5 is not finite .loss nan.*checkpoint_4; the same"):
        run(tmp_path, data=poisoned, checkpoint_every=2, log_every=6, max_skipped_steps=0)
    assert checkpoints.steps(str(tmp_path)) == [2, 4]  # one more than the run keeps, while the newest may prove bad
    assert all(np.isfinite(x).all() for x in saved.load_params(str(tmp_path)).values())


def test_data_that_ends(tmp_path):
    with pytest.raises(UserError, match="training data ended after 2 of 6 steps"):
        run(tmp_path, data=lambda start: iter([small.batch(0), small.batch(1)]))


def test_resuming_with_other_data_or_model_is_refused(tmp_path):
    run(tmp_path, data=terminated_at(1), data_info={"seed": 0})
    with pytest.raises(UserError, match=r"data \{'seed': 0\}; it is now given \{'seed': 1\}"):
        run(tmp_path, data_info={"seed": 1})
    with pytest.raises(UserError, match=r"head/bias: expected nothing, found \(4,\)"):
        run(tmp_path, data_info={"seed": 0}, trainable=("adapter/.*",))


def test_a_batch_that_does_not_divide_over_the_mesh(tmp_path):
    with pytest.raises(UserError, match="8 rows does not divide over 3 devices"):
        run(tmp_path, placed=small.partitioner(data=3))


def test_counters_of_the_data_are_among_the_metrics(tmp_path):
    class Counted:
        def __init__(self, start):
            self.batches = small.batches(start)

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.batches)

        def counters(self):
            return {"skipped": 3}

    assert run(tmp_path, data=Counted).metrics["data/skipped"] == 3.0


def test_profile_on_request(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: calls.append(("start", path)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(("stop",)))
    run(tmp_path, profile_steps=(5, 6))
    assert calls == [("start", str(tmp_path / "profile")), ("stop",)]


def test_evaluators_with_their_own_interval(tmp_path):
    every, end_only = Val(every_steps=3), Val(every_steps=0)
    end_only.name = "end"
    run(tmp_path, evaluators=[every, end_only], eval_every=1)
    assert [row["step"] for row in lines(tmp_path, "val")] == [3, 6]
    assert [row["step"] for row in lines(tmp_path, "end")] == [6]


def test_a_run_that_pauses_evaluates_there_and_goes_on_as_if_it_had_not(tmp_path):
    whole = run(tmp_path / "whole", evaluators=[Val()])
    paused = run(tmp_path / "paused", evaluators=[Val()], pause_at=3)
    assert paused.interrupted and paused.step == 3
    assert [row["step"] for row in lines(tmp_path / "paused", "val")] == [3]
    assert not (tmp_path / "paused" / "done.json").exists()
    resumed = run(tmp_path / "paused", evaluators=[Val()])
    assert [row["step"] for row in lines(tmp_path / "paused", "val")] == [3, 6]
    assert_same(whole.params, resumed.params)


class Left(Val):
    """Is told to stop in its first evaluation, as between two of its batches."""

    def __call__(self, params):
        raise signals.Stopped


def test_an_evaluation_that_was_left_is_made_when_the_run_goes_on(tmp_path):
    assert run(tmp_path, evaluators=[Left()], pause_at=3).step == 3
    again = run(tmp_path, evaluators=[Val()], pause_at=3)  # as of a sweep, which waits for the loss of this step
    assert (again.step, again.interrupted) == (3, True)
    assert [row["step"] for row in lines(tmp_path, "val")] == [3]
    assert run(tmp_path, evaluators=[Val()], pause_at=3).step == 6
    assert [row["step"] for row in lines(tmp_path, "val")] == [3, 6]


def test_an_evaluation_that_is_due_where_the_run_is_stopped_is_made_when_it_goes_on(tmp_path):
    stopped = run(tmp_path, data=terminated_at(1), evaluators=[Val()], eval_every=2)
    assert stopped.step == 2 and not lines(tmp_path, "val")
    run(tmp_path, evaluators=[Val()], eval_every=2)
    assert [row["step"] for row in lines(tmp_path, "val")] == [2, 4, 6]
