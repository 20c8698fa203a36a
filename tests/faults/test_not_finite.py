"""Parameters that are not finite never become a checkpoint, and never take a good one's place."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import saved
from tests.training import small
from tests.training.test_checkpoints import state
from tests.training.test_loop import run
from vadapter.base.errors import UserError
from vadapter.training import checkpoints
from vadapter.training.integrity import NotFiniteError

TOO_HIGH = small.optimizer(learning_rate=1e39)  # beyond float32: the first update makes infinities


def test_a_run_that_blows_up_keeps_its_last_good_checkpoint(tmp_path):
    run(tmp_path, checkpoint_every=1, pause_at=3)
    message = r"The parameters after step 4 are not finite.*checkpoint_3; the same command goes on from there. Lower"
    for _ in range(2):  # started again, it is the same
        with pytest.raises(UserError, match=message):
            run(tmp_path, checkpoint_every=1, optimizer=TOO_HIGH)
        assert checkpoints.newest(str(tmp_path)) == 3
        assert all(np.isfinite(x).all() for x in saved.load_params(str(tmp_path)).values())
    assert run(tmp_path, checkpoint_every=1).step == 6  # with the lower rate it goes on


def test_a_bad_last_step_is_not_done(tmp_path):
    run(tmp_path, pause_at=5)
    with pytest.raises(UserError, match="The parameters after step 6 are not finite"):
        run(tmp_path, optimizer=TOO_HIGH)
    assert not (tmp_path / "done.json").exists()
    assert checkpoints.steps(str(tmp_path)) == [5]


def test_without_a_checkpoint_to_go_back_to(tmp_path):
    with pytest.raises(UserError, match="There is no checkpoint yet"):
        run(tmp_path, optimizer=TOO_HIGH, checkpoint_every=1)
    assert checkpoints.steps(str(tmp_path)) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_is_enough_wherever_it_is(tmp_path, value):
    good = state(5)
    bad = good.params["adapter"]["kernel"].at[1, 2].set(value)
    half = good.params["adapter"]["half"].at[0].set(value)
    states = {
        "adapter/kernel": good.replace(params={"adapter": {**good.params["adapter"], "kernel": bad}}),
        "adapter/half": good.replace(params={"adapter": {**good.params["adapter"], "half": half}}),
        "optimizer/0/mu/adapter/kernel": good.replace(opt_state=({"mu": {"adapter": {"kernel": bad}}}, ())),
    }
    with checkpoints.Checkpointer(str(tmp_path)) as checkpointer:
        for path, bad_state in states.items():
            with pytest.raises(NotFiniteError, match=f"the first is {path}"):
                checkpointer.save(bad_state, {})
        checkpointer.save(good, {})
    assert checkpoints.steps(str(tmp_path)) == [5]


def test_a_state_on_many_devices_is_checked_as_a_whole(tmp_path):
    placed = small.partitioner(data=2, fsdp=2)
    program = small.program(placed=placed)
    good, _ = program.start(small.params(placed=placed))
    kernel = good.params["adapter"]["lm"]["kernel"]
    bad = jax.device_put(jnp.asarray(kernel).at[-1, -1].set(jnp.nan), kernel.sharding)
    params = {
        **good.params,
        "adapter": {**good.params["adapter"], "lm": {**good.params["adapter"]["lm"], "kernel": bad}},
    }
    with checkpoints.Checkpointer(str(tmp_path)) as checkpointer:
        with pytest.raises(NotFiniteError, match="adapter/lm/kernel"):
            checkpointer.save(dataclasses.replace(good, params=params), {})
        checkpointer.save(good, {})
    assert checkpoints.newest(str(tmp_path)) == 0
