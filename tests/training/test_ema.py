"""The moving average of what is trained: its values, its place in checkpoints, and who takes it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import saved
from tests.training import small
from tests.training.test_loop import assert_same, config, run, terminated_at
from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.base.evaluator import EvalResult
from vadapter.training import checkpoints, step
from vadapter.training.sources import Source, look


class Sees:
    """Remembers a parameter of each call."""

    name, every_steps = "val", None

    def __init__(self):
        self.seen = []

    def __call__(self, params):
        self.seen.append(np.array(params["head"]["kernel"]))
        return EvalResult({"loss": 1.0})


def stored(folder, item, at=None):
    model_dir, at = checkpoints.locate(str(folder), at)
    with checkpoints.Checkpointer(model_dir, read_only=True) as checkpointer:
        return checkpointer.read(at, checkpointer.shapes(at), ema=item == "ema")


def test_the_average_is_that_of_the_parameters_of_each_step(tmp_path):
    run(tmp_path, ema_decay=0.3, checkpoint_every=1, keep_checkpoints=None)
    average = {p: np.asarray(x, np.float64) for p, x in trees.flatten(small.params()).items()}
    for n in range(1, 7):
        decay = min(0.3, (1 + n) / (10 + n))  # 2/11, 3/12, 4/13 = 0.3077 and more are above 0.3
        for path, x in stored(tmp_path, "params", n).items():
            average[path] = decay * average[path] + (1 - decay) * np.asarray(x)
        for path, x in stored(tmp_path, "ema", n).items():
            np.testing.assert_allclose(x, average[path], rtol=1e-5, atol=1e-6)


def test_a_decay_by_hand():
    average, params = {"a": jnp.float32(1)}, {"a": jnp.float32(3)}
    first = step.moving_average(average, params, jnp.int32(0), 0.9)["a"]
    assert float(first) == pytest.approx(1 * 2 / 11 + 3 * 9 / 11)
    assert float(step.moving_average(average, params, jnp.int32(10**6), 0.9)["a"]) == pytest.approx(1 * 0.9 + 3 * 0.1)


@pytest.mark.parametrize("use", [True, False])
def test_evaluations_take_what_they_are_told_to(tmp_path, use):
    sees = Sees()
    result = run(tmp_path, evaluators=[sees], ema_decay=0.9, use_ema=use)
    chosen = stored(tmp_path, "ema" if use else "params")["head/kernel"]
    np.testing.assert_array_equal(sees.seen[-1], chosen)
    np.testing.assert_array_equal(result.params["head"]["kernel"], chosen)
    np.testing.assert_array_equal(saved.load_params(str(tmp_path))["head/kernel"], chosen)  # and so do others
    assert not np.array_equal(stored(tmp_path, "ema")["head/kernel"], stored(tmp_path, "params")["head/kernel"])


def test_training_is_the_same_with_and_without(tmp_path):
    plain, averaged = run(tmp_path / "plain"), run(tmp_path / "ema", ema_decay=0.9, use_ema=False)
    for path, x in trees.flatten(plain.params).items():  # the programs differ, so roundings may
        np.testing.assert_allclose(np.asarray(x, np.float32), trees.flatten(averaged.params)[path], 1e-4, 1e-6)


def test_a_resumed_run_has_the_same_average(tmp_path):
    whole = run(tmp_path / "whole", ema_decay=0.9)
    assert run(tmp_path / "cut", ema_decay=0.9, data=terminated_at(3)).step == 4
    assert_same(whole.params, run(tmp_path / "cut", ema_decay=0.9).params)
    for item in ("params", "ema"):
        assert_same(stored(tmp_path / "whole", item), stored(tmp_path / "cut", item))


def test_it_lies_on_a_mesh_as_its_parameters_do(tmp_path):
    one = run(tmp_path / "one", ema_decay=0.9)
    placed = small.partitioner(data=2, fsdp=2)
    many = run(tmp_path / "many", ema_decay=0.9, placed=placed)
    for path, x in trees.flatten(many.params).items():
        np.testing.assert_allclose(np.asarray(x), np.asarray(trees.flatten(one.params)[path]), 1e-4, 1e-5)
    assert many.params["adapter"]["lm"]["kernel"].sharding.mesh.shape["fsdp"] == 2


def test_an_update_that_is_skipped_leaves_it_as_it_is():
    program = small.program(ema_decay=0.9)
    state, frozen = program.start(small.params())
    state, _ = program.step(state, frozen, program.put(small.batch(0)))
    before = jax.tree.map(np.array, state.ema)
    bad = {**small.batch(1), "x": small.batch(1)["x"] * np.nan}
    state, metrics = program.step(state, frozen, program.put(bad))
    assert float(metrics["skipped"]) == 1
    assert_same(before, state.ema)


def test_its_memory_is_in_the_table(tmp_path, capsys):
    run(tmp_path, ema_decay=0.9)
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("adapter/lm "))
    assert "864 B" in row  # two moments and the average of 72 parameters


def test_a_later_stage_takes_it_and_knows_it_by_its_hash(tmp_path):
    run(tmp_path, ema_decay=0.9)
    rules = ((r"(adapter/.*)", r"\1"),)
    abstract = {p: jax.ShapeDtypeStruct(x.shape, x.dtype) for p, x in trees.flatten(small.params()).items()}
    of_ema = look(Source(str(tmp_path), rules), abstract).sha256()
    record = next((tmp_path / "checkpoint_6/run").iterdir())
    run(tmp_path / "raw", ema_decay=0.9, use_ema=False)
    assert json.loads(record.read_text())["ema"] is True
    assert look(Source(str(tmp_path / "raw"), rules), abstract).sha256() != of_ema


def test_a_run_without_one_says_so(tmp_path):
    run(tmp_path, checkpoint_every=2, steps=4)
    with pytest.raises(UserError, match="checkpoint_4 has no moving average"):
        stored(tmp_path, "ema")
    with pytest.raises(UserError, match="checkpoint_4 has no moving average"):
        run(tmp_path, ema_decay=0.9)


@pytest.mark.parametrize("decay", [0, 1, -0.1, 1.5])
def test_decays_that_make_no_sense(tmp_path, decay):
    with pytest.raises(UserError, match="ema_decay=.* must be between 0 and 1"):
        config(ema_decay=decay).check()
