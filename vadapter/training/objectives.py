"""What is minimised: a function of (all parameters, batch). The step and the loop know nothing else of a model."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vadapter.base.array_types import Array, Int, PyTree
from vadapter.models.configuration import TRAINING
from vadapter.models.lora import DROPOUT
from vadapter.models.losses import LossSums, ObjectiveConfig

Objective = Callable[[PyTree, Any], LossSums]


@dataclasses.dataclass(frozen=True)
class ModelObjective:
    """The loss of a model, as evaluation takes it.

    Attributes:
        model: a module with the method `loss_sums(batch, settings)`; see `configuration.ModelConfig`.
        settings: of the loss.
    """

    model: nn.Module
    settings: ObjectiveConfig

    def __call__(self, params: PyTree, batch: Any) -> LossSums:
        """Returns the loss of a batch."""
        return self._loss(params, batch, {})

    def at(self, step: Int[Array, ""]) -> Objective:
        """Returns the loss as a training step takes it: the model knows the step, and draws noise if it has any."""
        return functools.partial(self._loss, beside={TRAINING: {"step": step}})

    def _loss(self, params: PyTree, batch: Any, beside: dict[str, Any]) -> LossSums:
        variables, rngs = {"params": params, **beside}, {}
        if beside and getattr(self.model, "has_dropout", False):
            rngs = {DROPOUT: _key(beside[TRAINING]["step"], batch)}
        return self.model.apply(variables, batch, self.settings, method="loss_sums", rngs=rngs)  # pyright: ignore


def _key(step: Int[Array, ""], batch: Any) -> Array:
    """Returns the key of a step's dropout. Parts of an accumulated batch have the step in common, and other texts."""
    texts = jax.tree.leaves(batch)[0].astype(jnp.uint32)
    places = jnp.arange(texts.size, dtype=jnp.uint32).reshape(texts.shape)
    root = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), step)
    return jax.random.fold_in(root, jnp.sum(texts * (2 * places + 1), dtype=jnp.uint32))


def make_objective(model: nn.Module, settings: ObjectiveConfig | None = None) -> Objective:
    """Returns the loss of a model as a function of its parameters and a batch; see `ModelObjective`.

    Args:
        model: a module with the method `loss_sums(batch, settings)`; see `configuration.ModelConfig`.
        settings: of the loss; default no z-loss, no chunks.
    """
    return ModelObjective(model, settings or ObjectiveConfig())


def at_step(objective: Objective, step: Int[Array, ""]) -> Objective:
    """Returns an objective as a training step takes it: its `at(step)` where it has one, else the objective itself."""
    at = getattr(objective, "at", None)
    return objective if at is None else at(step)
