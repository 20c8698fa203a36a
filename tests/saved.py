"""Parameters to a checkpoint and back, for tests that need one without a training."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from vadapter.base import trees
from vadapter.training.checkpoints import Checkpointer, locate
from vadapter.training.state import TrainState


def load_params(path: str, step: int | None = None) -> dict[str, np.ndarray]:
    """Reads the parameters that a run trained, as `{slash path: array}` on the host. Raises as `locate`."""
    model_dir, step = locate(path, step)
    with Checkpointer(model_dir, read_only=True) as checkpointer:
        return checkpointer.read(step, checkpointer.shapes(step))


def save_params(model_dir: str, params: trees.Tree, step: int = 0, run: Mapping[str, Any] | None = None) -> None:
    """Writes parameters alone as a checkpoint that runs can take as a `Source`; imports stream instead."""
    with Checkpointer(model_dir, keep=None) as checkpointer:
        state = TrainState(step=jnp.asarray(step, jnp.int32), params=dict(params), opt_state=())
        checkpointer.save(state, {"sources": [], **(run or {})})
