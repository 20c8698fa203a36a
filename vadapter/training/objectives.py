"""What is minimised: functions of (all parameters, batch). The step and the loop know nothing else of a model."""

import dataclasses
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from vadapter.base.array_types import PyTree
from vadapter.base.batch import Batch, LabelledImages
from vadapter.training import losses

Objective = Callable[[PyTree, Any], losses.LossSums]


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Settings of the language-modelling loss; see `losses.cross_entropy`.

    Attributes:
        z_loss: factor of the squared log-partition; 0 is off, 1e-4 is PaLM's.
        vocab_chunk: rows of the vocabulary head at a time; None takes all at once.
    """

    z_loss: float = 0.0
    vocab_chunk: int | None = None


def vlm_objective(model: nn.Module, config: ObjectiveConfig | None = None) -> Objective:
    """Cross-entropy of the targets of a `Batch`.

    Args:
        model: a `VLM`: called on a batch it gives the hidden states at the target positions.
        config: default no z-loss, no chunks.
    """
    from vadapter.models.vlm import head_weights

    config = config or ObjectiveConfig()

    def objective(params: PyTree, batch: Batch) -> losses.LossSums:
        hidden = model.apply({"params": params}, batch)
        table, softcap = head_weights(model.config, params)  # pyright: ignore[reportAttributeAccessIssue]
        return losses.cross_entropy(
            hidden,  # pyright: ignore[reportArgumentType]
            table,
            batch.target_ids,
            batch.target_weights,
            softcap=softcap,
            z_loss=config.z_loss,
            vocab_chunk=config.vocab_chunk,
        )

    return objective


def classifier_objective(model: nn.Module) -> Objective:
    """Cross-entropy of the labels of `LabelledImages`. `model` gives a logits array a label group."""

    def objective(params: PyTree, batch: LabelledImages) -> losses.LossSums:
        logits = model.apply({"params": params}, batch)
        return losses.label_cross_entropy(logits, batch.labels, batch.weights)  # pyright: ignore[reportArgumentType]

    return objective
