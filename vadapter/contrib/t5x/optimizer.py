"""vadapter's optimizer and freezing as an optimizer of t5x."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import serialization
from t5x import optimizers

from vadapter.base import trees
from vadapter.base.array_types import Array, PyTree
from vadapter.base.errors import UserError
from vadapter.recipes import experiments
from vadapter.runs.experiment import Parts


class TrainedOnly(optimizers.OptaxWrapper):
    """The optimizer of an experiment. What is frozen has no moments, no decay and no update.

    Learning rate and schedule are the experiment's (`OptimizerConfig`), so t5x's own learning rate does nothing; give
    the trainer `learning_rate`, that its curve shows the true one.

    Args:
        parts: of the experiment.

    Raises:
        UserError: the optimizer is Adafactor, whose factored state t5x does not know how to split over devices.
    """

    def __init__(self, parts: Parts):
        config = parts.experiment.train.optimizer
        if config.name == "adafactor":
            raise UserError(
                "OptimizerConfig.name is 'adafactor'; t5x cannot lay its factored moments over devices within an optax "
                "transformation. Use 'adamw'."
            )
        self._trained = frozenset(parts.program.storage.trained)
        super().__init__(_only(parts.program.update_rule.transform, self._trained))

    def derive_logical_axes(self, optimizer: Any, param_logical_axes: PyTree) -> Any:
        """Returns the optimizer with the axes of its arrays in their place: moments lie as their parameters."""
        trained = _select(param_logical_axes, self._trained)
        states = optimizers.OptaxStatePartitionRules.derive_optax_logical_axes(optimizer.state.param_states, trained)
        axes = jax.tree.map(lambda x: None, optimizer.state_dict())
        axes["target"] = param_logical_axes
        axes["state"]["param_states"] = serialization.to_state_dict(states)
        return optimizer.restore_state(flax.core.unfreeze(axes))


def _only(transform: optax.GradientTransformation, trained: frozenset[str]) -> optax.GradientTransformation:
    """An update of some parameters, by a transformation that sees no others."""

    def init(params: Any) -> Any:
        return transform.init(_select(params, trained))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        new: Any
        new, state = transform.update(_select(updates, trained), state, _select(params, trained))
        found = trees.flatten(new)
        flat = trees.flatten(flax.core.unfreeze(updates))
        whole = trees.unflatten({path: found.get(path, jnp.zeros_like(x)) for path, x in flat.items()})
        return flax.core.freeze(whole) if isinstance(updates, flax.core.FrozenDict) else whole, state

    return optax.GradientTransformation(init, update)


def _select(tree: PyTree, paths: frozenset[str]) -> dict[str, Any]:
    flat = trees.flatten(flax.core.unfreeze(tree))
    return trees.unflatten({path: x for path, x in flat.items() if path in paths})


def learning_rate() -> Any:
    """Returns the schedule of the experiment that the gin files describe, as a trainer's `learning_rate_fn`."""
    schedule = Parts(experiments.made()).program.update_rule.schedule

    def rate(step: Array) -> Array:
        return jnp.asarray(schedule(step), jnp.float32)

    return rate
