"""One program of a training step: its state, its update and their shapes, of one model on one mesh.

Everything that trains, plans or measures a step makes it here: the loop, `vadapter plan`, resuming, benchmarks, and a
loop of one's own:

    program = Program(model, trainable=("adapter/.*",), steps=1000)
    state, frozen = program.start(params)
    for batch in batches:
        state, metrics = program.step(state, frozen, program.put(batch))
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from vadapter.base import trees
from vadapter.base.array_types import PyTree
from vadapter.base.errors import UserError
from vadapter.partitioning import Partitioner, abstract_params
from vadapter.training import state as states
from vadapter.training import step as steps_lib
from vadapter.training.checkpoints import Checkpointer
from vadapter.training.compiler_options import compiler_options
from vadapter.training.objectives import Objective, make_objective
from vadapter.training.optimizers import Optimizer, OptimizerConfig, make_optimizer
from vadapter.training.sources import check_fits
from vadapter.training.state import TrainState
from vadapter.training.storage import FROZEN_DTYPE, Storage, trained_paths


@dataclasses.dataclass(eq=False)
class Program:
    """A training step of a model. Everything is made when it is first asked for, of shapes alone where these will do.

    Attributes:
        model: a flax module that is called on a batch, such as `VLMConfig.make` gives.
        example: arrays or shape structs of one global batch; default as the model's configuration says. Sizes of texts
            and the number of rows are free.
        objective: what is minimised, a function of (all parameters, batch); default the model's own loss.
        partitioner: places parameters, state and batches; default all devices on the data axis.
        trainable: regexes; a parameter whose whole path one of them matches is trained, the others are frozen.
        frozen_dtype: how frozen parameters are kept, see `Storage`.
        optimizer: of the trained parameters.
        steps: length of the run, which the learning rate's schedule needs.
        ema_decay: of the moving average of the trained parameters, see `step.moving_average`; None keeps none.
        tpu_options: options of the TPU compiler over those of vadapter; other platforms do not see them.
        boxed: the model's abstract parameters, where they were made before.
    """

    model: nn.Module
    example: Any = None
    objective: Objective = None  # type: ignore[assignment]  # made below
    partitioner: Partitioner = dataclasses.field(default_factory=Partitioner)
    trainable: tuple[str, ...] = (".*",)
    frozen_dtype: str = FROZEN_DTYPE
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    steps: int = 1000
    ema_decay: float | None = None
    tpu_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    boxed: PyTree = None

    def __post_init__(self):
        model: Any = self.model
        self.example = model.config.example_batch() if self.example is None else self.example
        self.objective = make_objective(model) if self.objective is None else self.objective
        if self.boxed is None:
            self.boxed = abstract_params(self.model, self.example)

    @functools.cached_property
    def shapes(self) -> dict[str, Any]:
        """`{slash path: shape struct}` of all parameters, as the model initialises them."""
        return trees.flatten(nn.unbox(self.boxed))

    @functools.cached_property
    def storage(self) -> Storage:
        """How each parameter is kept. Raises `UserError` where a pattern of `trainable` matches nothing."""
        return Storage.of(self.boxed, self.partitioner, trained_paths(self.boxed, self.trainable), self.frozen_dtype)

    @functools.cached_property
    def abstract_params(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """(trained, frozen): shapes, dtypes and shardings of the parameters as they are kept."""
        return self.storage.split(trees.unflatten({p: self.storage.struct(p, x) for p, x in self.shapes.items()}))

    @functools.cached_property
    def update_rule(self) -> Optimizer:
        """The optimizer and its schedule."""
        return make_optimizer(self.optimizer, self.abstract_params[0], self.steps)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the training state."""
        abstract = states.abstract_state(self.update_rule, self.abstract_params[0], self.ema_decay is not None)
        shardings = states.state_shardings(abstract, _shardings(self.abstract_params[0]), self.partitioner.replicated)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)

    @functools.cached_property
    def abstract_batch(self) -> Any:
        """Shapes, dtypes and shardings of a global batch."""
        place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.partitioner.batch_sharding)  # noqa: E731
        return jax.tree.map(place, self.example)

    def start(self, params: trees.Tree) -> tuple[TrainState, dict[str, Any]]:
        """Makes the state of step 0.

        Args:
            params: all parameters, on the host or on devices. Not to be used afterwards: the updates take over the
                memory of those that are trained.

        Returns:
            The state, and the frozen parameters as they are kept.

        Raises:
            UserError: a parameter is missing, or has another shape than the model's.
        """
        flat = trees.flatten(params)
        if missing := [path for path in self.shapes if path not in flat]:
            raise UserError(
                f"{len(missing)} parameters of the model were not given, the first is {missing[0]}; the nearest that "
                f"was given is {', '.join(trees.nearest(missing[0], flat, 1)) or '(none)'}. Give all of them: read "
                "those of backbones, and make the others with `init_params`."
            )
        check_fits(flat, self.shapes, "The given tree")
        kept = trees.unflatten({path: self.storage.keep(path, flat[path]) for path in self.shapes})
        trained, frozen = self.storage.split(kept)
        return states.create_state(self.update_rule, trained, _shardings(self.abstract_state)), frozen

    def restore(self, checkpointer: Checkpointer, step: int) -> TrainState:
        """Reads the state of a checkpoint, each array straight to its devices; another mesh may have saved it.

        Raises:
            UserError: the checkpoint has other parameters or shapes.
        """
        return checkpointer.restore(step, self.abstract_state, _shardings(self.abstract_state))

    def put(self, batch: Any) -> Any:
        """Puts this process's rows of a batch on the devices; see `Partitioner.put_batch`."""
        return self.partitioner.put_batch(batch)

    def step(self, state: TrainState, frozen: PyTree, batch: Any) -> tuple[TrainState, steps_lib.Metrics]:
        """Makes one update. The given state's memory is reused.

        Args:
            state: as the last step, `start` or `restore` gave it.
            frozen: as `start` gave it.
            batch: on the devices (`put`).

        Returns:
            The next state, and metrics: see `step.make_train_step`.
        """
        with self.partitioner.activate():
            return self._step(state, frozen, batch)

    def lower(self) -> jax.stages.Lowered:
        """Lowers the step for the devices of the mesh, which this machine need not have.

        The options of the compiler are left to who compiles it.

        Raises:
            UserError: the batch does not fit the mesh.
        """
        self.partitioner.check_rows(jax.tree.leaves(self.example)[0].shape[0])
        lowered: Any = self._make_step({})
        with self.partitioner.activate():
            return lowered.lower(self.abstract_state, self.abstract_params[1], self.abstract_batch)

    @functools.cached_property
    def _step(self) -> steps_lib.TrainStep:
        return self._make_step(compiler_options(self.partitioner.mesh.devices.flat[0], self.tpu_options))

    def _make_step(self, options: Mapping[str, Any]) -> steps_lib.TrainStep:
        return steps_lib.make_train_step(
            self.objective,
            self.update_rule,
            state_shardings=_shardings(self.abstract_state),
            frozen_shardings=_shardings(self.abstract_params[1]),
            batch_sharding=self.partitioner.batch_sharding,
            replicated=self.partitioner.replicated,
            accumulate=self.optimizer.accumulate,
            ema_decay=self.ema_decay,
            compiler_options=options,
        )


def _shardings(tree: PyTree) -> Any:
    return jax.tree.map(lambda x: x.sharding, tree)
