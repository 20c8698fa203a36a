"""Parameters made in place: each device initialises only its own part."""

from collections.abc import Collection
from typing import Any

import jax
from flax import linen as nn

from vadapter.base import trees
from vadapter.base.array_types import Array, PyTree
from vadapter.partitioning.partitioner import Partitioner


def abstract_params(model: nn.Module, example: Any) -> PyTree:
    """Shapes of a model's parameters, boxed with their logical axis names. Computes nothing.

    Args:
        model: a module called on one batch.
        example: a batch of arrays or shape structs.
    """
    return jax.eval_shape(lambda example: model.init(jax.random.key(0), example), example)["params"]


def init_params(
    model: nn.Module, example: Any, rng: Array, partitioner: Partitioner, only: Collection[str] | None = None
) -> dict[str, Any]:
    """Initialises parameters, each device its own shard.

    Values depend on `rng` and the path alone, not on the mesh.

    Args:
        model: a module called on one batch.
        example: a batch of arrays or shape structs; only shapes matter.
        rng: key of `jax.random.key`.
        partitioner: places the parameters.
        only: slash paths to make; default all. Others are never materialised, so that a model whose frozen part is
            read from a checkpoint costs no memory for it here.

    Returns:
        Nested dict of unboxed arrays.
    """
    boxed = abstract_params(model, example)
    shardings = trees.flatten(partitioner.param_shardings(boxed))
    chosen = set(shardings) if only is None else set(only)

    def make(rng: Array) -> dict[str, Array]:
        zeros = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), example)
        flat = trees.flatten(nn.unbox(model.init(rng, zeros)["params"]))
        return {path: value for path, value in flat.items() if path in chosen}

    with partitioner.activate():
        made = jax.jit(make, out_shardings={p: s for p, s in shardings.items() if p in chosen})(rng)
    return trees.unflatten(made)
