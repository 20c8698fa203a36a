"""Losses that are not finite, spikes, and an earlier run to compare with."""

import json
import os

import jax
import numpy as np
import pytest

from tests import saved
from tests.training import small
from tests.training.test_loop import Val, assert_same, lines, run, terminated_at
from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.training import checkpoints, guards


class Named:
    """The small data, with NaN in the pictures of some batches; records are called by their batch."""

    def __init__(self, start, bad=()):
        self.batches, self.bad, self.step = small.batches(start), bad, start

    def __iter__(self):
        return self

    def __next__(self):
        batch, bad = next(self.batches), self.step in self.bad
        self.step += 1
        return {**batch, "x": batch["x"] * np.nan} if bad else batch

    def record_ids(self, step):
        return [f"record-{step}-{row}" for row in range(8)]


def bad_at(*steps):
    return lambda start: Named(start, steps)


def bad_batches(folder):
    return [json.loads(line) for line in (folder / "bad_batches.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_an_update_that_is_not_finite_changes_nothing_but_the_step(optimizer):
    program = small.program(optimizer=small.optimizer(name=optimizer))
    state, frozen = program.start(small.params())
    state, metrics = program.step(state, frozen, program.put(small.batch(0)))
    assert float(metrics["skipped"]) == 0
    before = {k: np.array(x) for k, x in trees.flatten({"p": state.params}).items()}
    moments = [np.array(x) for x in jax.tree.leaves(state.opt_state)]
    bad = {**small.batch(1), "x": small.batch(1)["x"] * np.inf}
    state, metrics = program.step(state, frozen, program.put(bad))
    assert float(metrics["skipped"]) == 1 and not np.isfinite(float(metrics["loss"]))
    assert int(state.step) == 2
    for path, x in trees.flatten({"p": state.params}).items():
        np.testing.assert_array_equal(x, before[path])
    for old, new in zip(moments, jax.tree.leaves(state.opt_state), strict=True):
        np.testing.assert_array_equal(new, old)


def test_bad_batches_are_skipped_counted_and_named(tmp_path, capsys):
    result = run(tmp_path, data=bad_at(1, 4))
    assert (result.step, result.interrupted) == (6, False)
    rows = lines(tmp_path, "train")
    assert [(row["step"], row["skipped_steps"]) for row in rows] == [(1, 0), (2, 1), (4, 1), (6, 2)]
    assert "loss" not in rows[1]  # all steps of its interval were skipped
    assert np.isfinite(rows[3]["loss"])
    assert json.loads((tmp_path / "done.json").read_text())["skipped_steps"] == 2
    assert [row["step"] for row in bad_batches(tmp_path)] == [2, 5]
    assert bad_batches(tmp_path)[1]["records"][:2] == ["record-4-0", "record-4-1"]
    assert "skipped steps 2" in capsys.readouterr().out
    assert all(np.isfinite(x).all() for x in saved.load_params(str(tmp_path)).values())


def test_a_resumed_run_with_bad_batches_is_the_uninterrupted_one(tmp_path):
    whole = run(tmp_path / "whole", data=bad_at(1, 4))

    def cut(start):
        for batch, _ in zip(Named(start, (1, 4)), terminated_at(2)(start), strict=False):
            yield batch

    assert run(tmp_path / "cut", data=cut).interrupted
    resumed = run(tmp_path / "cut", data=bad_at(1, 4))
    assert_same(whole.params, resumed.params)
    assert resumed.metrics["skipped_steps"] == 2


def test_too_many_bad_batches_in_a_row_stop_the_run(tmp_path):
    with pytest.raises(UserError, match=r"of steps 3 to 5 is not finite.*accepts 2 in a row.*record-4-0.*checkpoint_4"):
        run(tmp_path, data=bad_at(2, 3, 4, 5), checkpoint_every=2, max_skipped_steps=2, log_every=1)
    assert [row["step"] for row in bad_batches(tmp_path)] == [3, 4, 5]
    assert not (tmp_path / "done.json").exists()
    assert run(tmp_path).step == 6  # the data mended, the same command goes on


def test_bad_batches_with_good_ones_between_do_not_add_up(tmp_path):
    assert run(tmp_path, data=bad_at(0, 2, 4), max_skipped_steps=1).metrics["skipped_steps"] == 3


def test_a_last_update_that_breaks_the_parameters_is_not_saved(tmp_path):
    optimizer = small.optimizer(learning_rate=1e30, warmup_steps=0, lr_multipliers=((".*", 1e30),))
    with pytest.raises(UserError, match="parameters after step 1 are not finite"):
        run(tmp_path, steps=1, optimizer=optimizer)
    assert checkpoints.steps(str(tmp_path)) == []
    assert not (tmp_path / "done.json").exists()


def scaled(params, batch):
    """The loss times a factor that is in the batch."""
    sums = small.objective(small.Model())(params, {k: v for k, v in batch.items() if k != "s"})
    return sums.replace(loss_sum=sums.loss_sum * batch["s"].mean())


def spikes_at(*steps):
    def batches(start):
        for step, batch in enumerate(small.batches(start), start):
            yield {**batch, "s": np.full(8, 100.0 if step in steps else 1.0, np.float32)}

    return batches


SPIKES = dict(objective=scaled, steps=12, log_every=1, spike_factor=10.0, spike_window=5)


def test_a_spike_takes_the_run_back_to_its_checkpoint(tmp_path, capsys):
    run(tmp_path, data=spikes_at(8), checkpoint_every=3, keep_checkpoints=None, **SPIKES)
    (row,) = lines(tmp_path, "rollback")
    assert (row["step"], row["to"]) == (9, 6)
    assert row["spike"] > 10 * row["median"]
    assert "goes on from the parameters of checkpoint_6" in capsys.readouterr().out
    before, after = (saved.load_params(f"{tmp_path}/checkpoint_{step}") for step in (6, 9))
    for path in before:
        np.testing.assert_array_equal(before[path], after[path])
    assert checkpoints.steps(str(tmp_path)) == [3, 6, 9, 12]


def test_spikes_without_end_stop_the_run(tmp_path):
    with pytest.raises(UserError, match="gone back 1 times already"):
        run(tmp_path, data=spikes_at(8, 9, 10), checkpoint_every=3, max_rollbacks=1, **SPIKES)


def test_a_spike_without_a_checkpoint_is_told(tmp_path, capsys):
    assert run(tmp_path, data=spikes_at(8), **SPIKES).step == 12
    assert "There is no checkpoint to go back to" in capsys.readouterr().out


def test_without_a_factor_no_spike_is_looked_for(tmp_path):
    run(tmp_path, data=spikes_at(8), checkpoint_every=3, **{**SPIKES, "spike_factor": None})
    assert lines(tmp_path, "rollback") == []


def test_losses_of_former_sessions_are_judged_as_they_were_then():
    assert guards.SpikeGuard(10.0, 5, [1.0] * 5 + [100.0] * 3).spike(100.0) == 1.0


def test_a_run_is_compared_with_an_earlier_one(tmp_path, capsys):
    reference = str(tmp_path / "first/curve.jsonl")
    run(tmp_path / "first", evaluators=[Val()])
    run(tmp_path / "same", evaluators=[Val()], reference_curve=reference)
    assert "WARNING" not in capsys.readouterr().out
    run(tmp_path / "other", evaluators=[Val()], reference_curve=reference, optimizer=small.optimizer(learning_rate=1.0))
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert told.startswith("WARNING: the train loss of step") and reference in told


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (os.mkfifo, "is a FIFO"),
        ("{", "has no losses"),
        ("[1]\n", "has no losses"),
        ('{"a": 1}\n', "has no losses"),
    ],
)
def test_a_reference_that_cannot_be_used(tmp_path, content, message):
    path = tmp_path / "curve.jsonl"
    if callable(content):
        content(path)
    elif content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        run(tmp_path / "run", reference_curve=str(path))


@pytest.mark.parametrize(
    "settings",
    [
        dict(spike_factor=1.0),
        dict(spike_window=2),
        dict(max_skipped_steps=-1),
        dict(max_rollbacks=-1),
        dict(data_patience=-1),
        dict(reference_tolerance=float("nan")),
    ],
)
def test_settings_that_make_no_sense(tmp_path, settings):
    (name,) = settings
    with pytest.raises(UserError, match=f"{name}=.* must be"):
        run(tmp_path, **settings)
