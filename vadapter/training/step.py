"""One update: loss, gradients of the trainable tree, optimizer."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Sharding

from vadapter.base import trees
from vadapter.base.array_types import Array, PyTree
from vadapter.base.errors import UserError
from vadapter.models.losses import LossSums
from vadapter.partitioning import is_one_cpu, slices
from vadapter.training.objectives import Objective, at_step
from vadapter.training.optimizers import Optimizer, norm_by_part, total_norm
from vadapter.training.state import TrainState

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, PyTree, Any], tuple[TrainState, Metrics]]


def loss_and_gradients(
    objective: Objective, params: PyTree, frozen: PyTree, batch: Any, accumulate: int = 1
) -> tuple[LossSums, PyTree]:
    """Computes the loss of a batch and its gradient.

    Args:
        objective: of (all parameters, batch).
        params: the trainable tree; the gradient is of these alone.
        frozen: the frozen tree.
        batch: leaves have the batch as their first axis.
        accumulate: parts computed one after the other. Each is weighted by its targets, so that the result is that of
            the whole batch. On a mesh of several slices each adds up its own parts, and gradients cross between slices
            once, at the end.

    Raises:
        UserError: the batch does not divide into `accumulate` parts.
    """

    def total(params: PyTree, part: Any) -> tuple[Array, LossSums]:
        sums = objective(trees.merge(params, frozen), part)
        return sums.minimised_sum, sums

    def mean(params: PyTree, part: Any) -> tuple[Array, LossSums]:
        summed, sums = total(params, part)
        return summed / _weight(sums), sums

    if accumulate == 1:
        # To divide the loss costs nothing; to divide the gradients reads and writes all of them once more.
        gradients, sums = jax.grad(mean, has_aux=True)(params, batch)
        return sums, gradients
    gradients_of = jax.grad(total, has_aux=True)
    # Part i has the rows i, i + n, i + 2n, ...: no row moves to another device.
    rows = jax.tree.leaves(batch)[0].shape[0]
    if rows % accumulate:
        raise UserError(
            f"A batch of {rows} rows cannot be computed in {accumulate} equal parts. Change the batch size or "
            "OptimizerConfig.accumulate."
        )
    by_slice = slices.num_slices() > 1
    if by_slice:
        parts, compute = slices.split_rows(batch, accumulate), slices.per_slice(gradients_of)
    else:
        compute = gradients_of
        parts = jax.tree.map(lambda x: x.reshape(rows // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(carry: PyTree, part: Any) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, carry, compute(params, part)), None

    first = jax.eval_shape(compute, params, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
    (gradients, sums), _ = jax.lax.scan(add, zeros, parts)
    if by_slice:
        gradients, sums = jax.tree.map(lambda x: x.sum(axis=0), (gradients, sums))
    weight = _weight(sums)
    return sums, jax.tree.map(lambda g: g / weight, gradients)


def _weight(sums: LossSums) -> Array:
    """What sums are divided by. A batch of skipped rows has weight 0, loss 0 and gradient 0."""
    return jnp.maximum(sums.weight_sum, 1e-6)


def moving_average(average: PyTree, params: PyTree, step: Any, decay: float) -> PyTree:
    """Returns the exponential moving average of parameters after an update.

    The first updates count more, so that the random start is soon forgotten: the decay of update n (from 1) is the
    lower of `decay` and (1 + n) / (10 + n), as in TensorFlow's `ExponentialMovingAverage` with `num_updates`.

    Args:
        average: after the update before; at the start the parameters themselves.
        params: after the update.
        step: updates before it, n - 1.
        decay: in between 0 and 1.
    """
    n = (step + 1).astype(jnp.float32)
    rest = 1 - jnp.minimum(decay, (1 + n) / (10 + n))
    return jax.tree.map(lambda a, x: a + rest * (x - a), average, params)


def make_train_step(
    objective: Objective,
    optimizer: Optimizer,
    *,
    state_shardings: TrainState,
    frozen_shardings: PyTree,
    batch_sharding: Sharding,
    replicated: Sharding,
    accumulate: int = 1,
    ema_decay: float | None = None,
    compiler_options: Mapping[str, Any] | None = None,
) -> TrainStep:
    """Compiles the update `(state, frozen, batch) -> (state, metrics)`. The given state's memory is reused.

    Metrics are f32 scalars: `loss` and `z_loss` (nats a target), `accuracy` (share of targets with the highest logit),
    `weights` (the sum of the target weights), `grad_norm` (before clipping) and `grad_norm/<part>`, `param_norm` (of
    the trainable parameters, after the update), `learning_rate` and `skipped`; and `tiny_loss` where the objective has
    one (`ObjectiveConfig`): like `z_loss` a mean over the targets with its factor, and no part of `loss`.

    Where the loss or the gradient is not finite, `skipped` is 1: parameters and optimizer state stay as they are, and
    only the step is counted.

    Args:
        objective: of (all parameters, batch); one with a method `at(step)` is asked for that of each step.
        optimizer: of the trainable parameters.
        state_shardings: of the state, on the way in and out.
        frozen_shardings: of the frozen tree.
        batch_sharding: of every leaf of the batch.
        replicated: of the metrics.
        accumulate: see `loss_and_gradients`.
        ema_decay: see `moving_average`; None for a state without one.
        compiler_options: of XLA, for the devices' platform; see `vadapter.training.compiler_options`.
    """

    def train_step(state: TrainState, frozen: PyTree, batch: Any) -> tuple[TrainState, Metrics]:
        here = at_step(objective, state.step)
        sums, gradients = loss_and_gradients(here, state.params, frozen, batch, accumulate)
        norms = norm_by_part(gradients)
        weight = _weight(sums)
        loss, grad_norm = sums.loss_sum / weight, total_norm(norms)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        before = state.params, state.opt_state, state.ema

        def update(params: PyTree, opt_state: PyTree, ema: PyTree) -> tuple[PyTree, PyTree, PyTree]:
            updates, opt_state = optimizer.transform.update(gradients, opt_state, params)
            params = optax.apply_updates(params, updates)
            average = ema if ema_decay is None else moving_average(ema, params, state.step, ema_decay)
            return params, opt_state, average

        if is_one_cpu():
            # XLA's CPU compiler writes one array a loop: to choose elements it would copy the optimizer's state first.
            after = jax.lax.cond(finite, update, lambda *kept: kept, *before)
        else:
            # Elementwise, so it is a part of the update and happens in place.
            after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), update(*before), before)
        params, opt_state, ema = after
        metrics = {
            "loss": loss,
            "accuracy": sums.correct_sum / weight,
            "z_loss": sums.z_sum / weight,
            "weights": sums.weight_sum,
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(params),
            "learning_rate": optimizer.schedule(state.step),
            "skipped": 1.0 - finite.astype(jnp.float32),
        }
        if sums.tiny_sum is not None:
            metrics["tiny_loss"] = sums.tiny_sum / weight
        metrics |= {f"grad_norm/{part}": norm for part, norm in norms.items()}
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    return jax.jit(
        train_step,
        in_shardings=(state_shardings, frozen_shardings, batch_sharding),
        out_shardings=(state_shardings, replicated),
        donate_argnums=0,
        compiler_options=dict(compiler_options or {}) or None,
    )
