import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import small
from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.training import freezing
from vadapter.training.step import loss_and_gradients

ADAPTER = ("adapter/.*",)


def run_steps(count, *, placed=None, trainable=ADAPTER, accumulate=1, frozen_dtype="float32", **optimizer):
    placed = placed or small.partitioner()
    start = small.params(placed=placed)
    program = small.program(
        placed=placed,
        trainable=trainable,
        frozen_dtype=frozen_dtype,
        optimizer=small.optimizer(accumulate=accumulate, **optimizer),
        steps=count + 2,
    )
    state, frozen = program.start(start)
    before, metrics = jax.tree.map(np.asarray, frozen), {}
    for i in range(count):
        state, metrics = program.step(state, frozen, program.put(small.batch(i)))
    return state, {k: float(v) for k, v in metrics.items()}, before, frozen


def of_all(batch, accumulate=1):
    """Loss and gradients of all parameters of the small model."""
    objective = small.objective(small.Model())
    return jax.jit(lambda p, b: loss_and_gradients(objective, p, {}, b, accumulate))(small.params(), batch)


def assert_close(a, b, rtol=1e-5, atol=1e-6):
    a, b = freezing.named_leaves(a), freezing.named_leaves(b)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_allclose(np.asarray(a[path]), np.asarray(b[path]), rtol, atol, err_msg=path)


def test_frozen_parameters_stay_bit_identical_and_have_no_state():
    state, metrics, before, after = run_steps(3, frozen_dtype="bfloat16")
    for path, x in trees.flatten(after).items():
        assert x.dtype == jnp.bfloat16
        assert np.asarray(x).tobytes() == trees.flatten(before)[path].tobytes(), path
    assert set(trees.flatten(state.params)) == {f"adapter/{p}/{x}" for p in ("front", "lm") for x in ("kernel", "bias")}
    parameters = {freezing.parameter_of(p, trees.flatten(after)) for p in freezing.named_leaves(state.opt_state)}
    assert parameters == {None}
    assert {k for k in metrics if k.startswith("grad_norm/")} == {"grad_norm/adapter/front", "grad_norm/adapter/lm"}


def test_trained_parameters_change_and_the_loss_falls():
    _, first, _, _ = run_steps(1, trainable=(".*",))
    state, last, _, _ = run_steps(60, trainable=(".*",))
    assert last["loss"] < 0.7 * first["loss"]
    assert int(state.step) == 60


def test_metrics_of_a_step():
    _, metrics, _, _ = run_steps(1)
    batch = small.batch(0)
    sums, gradients = of_all(batch)
    np.testing.assert_allclose(metrics["loss"], sums.loss_sum / batch["w"].sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], sums.correct_sum / batch["w"].sum(), rtol=1e-5)
    assert metrics["weights"] == batch["w"].sum()
    np.testing.assert_allclose(metrics["learning_rate"], 0.02, rtol=1e-6)
    norm = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(gradients["adapter"])))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_those_of_the_batch(parts):
    assert_close(of_all(small.batch(0)), of_all(small.batch(0), accumulate=parts))


def test_accumulation_needs_equal_parts():
    with pytest.raises(UserError, match="8 rows cannot be computed in 3 equal parts"):
        of_all(small.batch(0), accumulate=3)


def test_a_batch_of_skipped_rows_changes_nothing():
    sums, gradients = of_all(small.batch(0) | {"w": np.zeros(8, np.float32)})
    assert sums.loss_sum == 0
    assert all(not np.any(x) for x in jax.tree.leaves(gradients))


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_sharded_steps_are_those_of_one_device(optimizer):
    alone, metrics, _, _ = run_steps(3, name=optimizer, clip_norm=0.1)
    placed = small.partitioner(data=2, fsdp=2, tensor=2)
    sharded, sharded_metrics, _, _ = run_steps(3, name=optimizer, clip_norm=0.1, placed=placed, accumulate=2)
    assert_close(alone, sharded, rtol=1e-4)
    assert_close(metrics, sharded_metrics, rtol=1e-4)
    kernel = sharded.params["adapter"]["lm"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (4, 4)


@pytest.mark.parametrize("sizes", [dict(fsdp=2, tensor=2), dict(data=2)])
def test_slices_that_accumulate_make_the_steps_of_one_device(sizes):
    alone, metrics, _, _ = run_steps(2, clip_norm=0.1)
    placed = small.partitioner(slices=2, **sizes)
    several, several_metrics, _, _ = run_steps(2, clip_norm=0.1, placed=placed, accumulate=2)
    assert_close(alone, several, rtol=1e-4)
    assert_close(metrics, several_metrics, rtol=1e-4)


def test_slices_need_equal_parts():
    with pytest.raises(UserError, match="8 rows cannot be computed in 4 equal parts on each of 2 slices.* of 16"):
        run_steps(1, placed=small.partitioner(slices=2, fsdp=2), accumulate=4)


def test_moments_lie_where_their_parameters_lie_and_are_float32():
    placed = small.partitioner(data=2, fsdp=2, tensor=2)
    state, _, _, _ = run_steps(1, placed=placed)
    moments = {p: x for p, x in freezing.named_leaves(state.opt_state).items() if "/mu/" in p or "/nu/" in p}
    params = trees.flatten(state.params)
    assert len(moments) == 2 * len(params)
    for path, x in moments.items():
        parameter = freezing.parameter_of(path, params)
        assert parameter is not None
        assert x.dtype == jnp.float32
        assert x.sharding.is_equivalent_to(params[parameter].sharding, x.ndim), path
