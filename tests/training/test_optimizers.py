import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.training.optimizers import OptimizerConfig, decay_mask, make_optimizer, make_schedule

PARAMS = {
    "adapter": {"lm": {"kernel": jnp.ones((4, 3)), "scale": jnp.ones((2, 3))}, "queries": jnp.ones((2, 3))},
    "head": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)},
}


def rates(schedule, steps, **changes):
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4, schedule=schedule, **changes)
    values = make_schedule(config, 8)
    return [round(float(values(step)), 4) for step in steps]


def test_schedules():
    assert rates("linear", range(9)) == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert rates("constant", [0, 4, 8]) == [0.25, 1.0, 1.0]
    assert rates("cosine", [0, 4, 6, 8]) == [0.25, 1.0, 0.5, 0.0]
    assert rates("linear", [6, 8], end_factor=0.2) == [0.6, 0.2]


def test_warm_up_longer_than_the_run():
    with pytest.raises(UserError, match="1000 steps must be shorter than the run of 500"):
        make_schedule(OptimizerConfig(), 500)


@pytest.mark.parametrize("changes", [{"schedule": "step"}, {"name": "sgd"}])
def test_unknown_names(changes):
    with pytest.raises(UserError, match="expected"):
        make_optimizer(OptimizerConfig(warmup_steps=0, **changes), PARAMS, 10)


def update(**changes):
    config = OptimizerConfig(
        **{**dict(learning_rate=0.1, schedule="constant", warmup_steps=0, weight_decay=0.0), **changes}
    )
    transform = make_optimizer(config, PARAMS, 10).transform
    gradients = jax.tree.map(jnp.ones_like, PARAMS)
    updates, state = transform.update(gradients, transform.init(PARAMS), PARAMS)
    return trees.flatten(updates), state


def test_first_adamw_update_is_the_learning_rate():
    updates, _ = update()
    for x in updates.values():
        np.testing.assert_allclose(x, -0.1, rtol=1e-4)


def test_weight_decay_spares_biases_and_scales():
    updates, _ = update(weight_decay=0.5)
    decayed = {path for path, x in updates.items() if np.allclose(x, -0.15, rtol=1e-4)}
    assert decayed == {"adapter/lm/kernel", "adapter/queries", "head/kernel"}


def test_weight_decay_by_pattern():
    mask = trees.flatten(decay_mask(OptimizerConfig(no_decay=("head/.*",)), PARAMS))
    assert [path for path, decays in mask.items() if not decays] == ["head/bias", "head/kernel"]
    with pytest.raises(UserError, match="no_decay pattern 'haed/.\\*' matches no parameter.*head/"):
        decay_mask(OptimizerConfig(no_decay=("haed/.*",)), PARAMS)


def test_learning_rate_multipliers():
    updates, _ = update(lr_multipliers=(("adapter/lm/.*", 0.1), ("adapter/.*", 2.0)), weight_decay=0.5)
    np.testing.assert_allclose(updates["adapter/lm/kernel"], -0.015, rtol=1e-4)
    np.testing.assert_allclose(updates["adapter/queries"], -0.3, rtol=1e-4)
    np.testing.assert_allclose(updates["head/kernel"], -0.15, rtol=1e-4)
    with pytest.raises(UserError, match="lr_multipliers pattern 'adaptor"):
        update(lr_multipliers=(("adaptor/.*", 0.1),))
    with pytest.raises(UserError, match="must be above 0"):
        update(lr_multipliers=(("head/.*", 0.0),))


def test_clipping_scales_the_global_norm():
    _, state = update(clip_norm=0.5, b1=0.0)
    first_moment = trees.flatten(state[1].mu)
    np.testing.assert_allclose(np.sqrt(sum((x**2).sum() for x in first_moment.values())), 0.5, rtol=1e-5)


def test_adafactor_updates_are_relative_to_the_parameter():
    updates, _ = update(name="adafactor", b1=0.0)
    np.testing.assert_allclose(updates["head/kernel"], -0.1, rtol=1e-3)
    _, with_momentum = update(name="adafactor", b1=0.9)
    assert len(jax.tree.leaves(with_momentum)) > len(jax.tree.leaves(update(name="adafactor", b1=0.0)[1]))
