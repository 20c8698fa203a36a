"""How a train state of t5x begins: from vadapter's sources, each of which gives a part of the model."""

from collections.abc import Iterator, Sequence
from typing import Any

import flax
from t5x import train_state, utils

from vadapter.base import trees
from vadapter.base.array_types import Array
from vadapter.base.errors import UserError
from vadapter.contrib import launch
from vadapter.recipes import gin_front

_RENAMING = ("assignment_map", "state_transformation_fns")
_OF_SAVING = "SaveCheckpointConfig"


def refuse_renaming() -> None:
    """Refuses a restore that renames, before t5x restores: its scripts tell neither model nor initialiser of it.

    Raises:
        UserError: a gin file sets `assignment_map` or `state_transformation_fns` of a restore.
    """
    for parameter in _RENAMING:
        for name, value in gin_front.bound(parameter).items():
            if value and _OF_SAVING not in name:
                raise _refusal(f"{name} is set")


def _refusal(found: str) -> UserError:
    return UserError(
        f"{found}. On checkpoints in t5x's default layout, renaming loads the wrong tensors without a word. Leave it "
        "out, and give the checkpoint as a Source, whose rules rename."
    )


class Initializer(utils.TrainStateInitializer):
    """Initialises a train state from the experiment's sources, hand-off and bundle, as `vadapter train` does.

    A run that was stopped goes on from its own checkpoint. Restores that rename (`apply_assignment_map`) are refused:
    on checkpoints in t5x's default layout they silently load the tensor that was not renamed. `Source.rules` rename.

    Raises:
        UserError: as `refuse_renaming`.
    """

    def __init__(self, optimizer_def: Any, init_fn: Any, *args: Any, **settings: Any):
        refuse_renaming()
        super().__init__(optimizer_def, init_fn, *args, **settings)
        self._optimizer_def = optimizer_def
        self._model = init_fn.__self__

    def from_checkpoints(self, restore_cfgs: Sequence[Any], *args: Any, **settings: Any) -> Iterator[Any]:
        """Yields restored states, as t5x does. Raises `UserError` where one of them would be renamed."""
        if any(cfg.state_transformation_fns for cfg in restore_cfgs):
            raise _refusal("A RestoreCheckpointConfig has an assignment_map or state_transformation_fns")
        yield from super().from_checkpoints(restore_cfgs, *args, **settings)

    def from_scratch(self, init_rng: Array) -> Any:
        """Returns the state of step 0. `init_rng` is not used: the experiment's seed says what is random."""
        del init_rng
        params = launch.begin(self._model.parts)
        shapes = self.global_train_state_shape

        def make(params: Any) -> Any:
            variables = flax.core.freeze({"params": params, "params_axes": shapes.params_axes})
            if self._optimizer_def is None:
                return train_state.InferenceState.create(variables)
            return train_state.FlaxOptimTrainState.create(self._optimizer_def, variables)

        placed = self._partitioner.partition(
            make, in_axis_resources=(self.train_state_axes.params,), out_axis_resources=self.train_state_axes
        )
        return placed(flax.core.freeze(trees.unflatten(params)))
