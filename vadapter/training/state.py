"""The part of a run that changes from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from vadapter.base import trees
from vadapter.base.array_types import Array, Int, PyTree
from vadapter.training import freezing
from vadapter.training.optimizers import Optimizer


@flax.struct.dataclass
class TrainState:
    """Trainable parameters and what their updates need. Frozen parameters are not in it.

    Attributes:
        step: updates made so far.
        params: the trainable tree, f32.
        opt_state: of the optax transformation, f32.
        ema: the exponential moving average of the trainable tree, f32; None without one.
    """

    step: Int[Array, ""]
    params: PyTree
    opt_state: PyTree
    ema: PyTree = None


def abstract_state(optimizer: Optimizer, params: PyTree, ema: bool = False) -> TrainState:
    """Returns the shapes of the state of the given trainable parameters (arrays or shape structs), with or without an
    average of them."""

    def make(params: PyTree) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.transform.init(params), params if ema else None)

    return jax.eval_shape(make, params)


def state_shardings(abstract: TrainState, param_shardings: trees.Tree, replicated: Sharding) -> TrainState:
    """Returns the shardings of a state: each moment lies where its parameter lies, all else is replicated.

    Args:
        abstract: see `abstract_state`.
        param_shardings: of the trainable parameters.
        replicated: of scalars, and of moments of another shape than the parameter's (Adafactor's).
    """
    params, shardings = trees.flatten(abstract.params), trees.flatten(param_shardings)

    def sharding(path: str, leaf: Any) -> Sharding:
        parameter = freezing.parameter_of(path, params)
        return shardings[parameter] if parameter and params[parameter].shape == leaf.shape else replicated

    leaves = freezing.named_leaves(abstract.opt_state)
    opt_state = jax.tree.unflatten(jax.tree.structure(abstract.opt_state), [sharding(p, x) for p, x in leaves.items()])
    placed = trees.unflatten({p: shardings[p] for p in params})
    return TrainState(replicated, placed, opt_state, None if abstract.ema is None else placed)  # pyright: ignore


def create_state(optimizer: Optimizer, params: PyTree, shardings: TrainState) -> TrainState:
    """Makes the state of step 0 in place. The given arrays are not to be used afterwards: the step takes them over."""

    def make(params: PyTree) -> PyTree:
        return optimizer.transform.init(params)

    opt_state = jax.jit(make, out_shardings=shardings.opt_state)(params)
    step = jax.device_put(jnp.zeros((), jnp.int32), shardings.step)
    ema = None
    if shardings.ema is not None:  # of its own memory, as the step takes over both
        ema = jax.jit(lambda x: jax.tree.map(jnp.copy, x), out_shardings=shardings.ema)(params)
    return TrainState(step, jax.device_put(params, shardings.params), opt_state, ema)
