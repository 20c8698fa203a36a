"""What is minimised: a function of (all parameters, batch). The step and the loop know nothing else of a model."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from vadapter.base.array_types import PyTree
from vadapter.models.losses import LossSums, ObjectiveConfig

Objective = Callable[[PyTree, Any], LossSums]


def make_objective(model: nn.Module, settings: ObjectiveConfig | None = None) -> Objective:
    """Returns the loss of a model as a function of its parameters and a batch.

    Args:
        model: a module with the method `loss_sums(batch, settings)`; see `configuration.ModelConfig`.
        settings: of the loss; default no z-loss, no chunks.
    """
    settings = settings or ObjectiveConfig()

    def objective(params: PyTree, batch: Any) -> LossSums:
        return model.apply({"params": params}, batch, settings, method="loss_sums")  # pyright: ignore

    return objective
