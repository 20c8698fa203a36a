"""Settings of the training loop."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from vadapter.base.array_types import PyTree
from vadapter.base.errors import UserError
from vadapter.partitioning import Partitioner
from vadapter.training.best import BestConfig
from vadapter.training.objectives import Objective
from vadapter.training.optimizers import OptimizerConfig
from vadapter.training.program import Program
from vadapter.training.storage import FROZEN_DTYPE
from vadapter.training.wandb_writer import WandbConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of the loop.

    Attributes:
        steps: updates in all.
        trainable: regexes of the paths to train; the rest is frozen.
        frozen_dtype: dtype in which frozen parameters are kept: `bfloat16`, `float32`, or `int8`, which quantises the
            kernels of the encoder's, the decoder's and the LM adapter's layers and keeps the rest in bf16.
        optimizer: the optimizer and its learning-rate schedule.
        ema_decay: decay of an exponential moving average of the trained parameters, such as 0.999, which is kept in
            checkpoints beside them (`step.moving_average`); None keeps none.
        use_ema: whether evaluations take the average, and by default whatever reads the checkpoints: export, infer,
            eval, a later stage.
        log_every: steps between two lines of metrics. Between them nothing waits for the device.
        eval_every: steps between two calls of the evaluators that have no interval of their own; 0: at the end only.
        checkpoint_every: steps between two checkpoints; 0: at the end only.
        keep_checkpoints: newest to keep; while the run lasts there is one more, in case the newest proves bad. None
            keeps all.
        best: by which metric the best checkpoint is kept beside them, and when a run stops early; None does neither.
        pause_at: step at which the run evaluates, saves and ends, as if told to stop; it goes on when called again with
            another value or None. The schedule stays that of `steps`.
        profile_steps: (first, last) updates to profile into MODEL_DIR/profile, for TensorBoard or xprof.
        tensorboard: whether to write TensorBoard files.
        writers: make further writers of metrics, such as `WandbConfig` for Weights & Biases; given MODEL_DIR each
            returns one with the methods of clu's `MetricWriter`.
        tpu_options: options of the TPU compiler for the step, such as `{"xla_tpu_scoped_vmem_limit_kib": 32768}`, over
            those of the type of TPU (`vadapter.training.compiler_options`); None takes one out. They change its speed
            and memory, not what it computes. Other platforms do not see them.
        max_skipped_steps: updates in a row that may be skipped since their loss or gradient is not finite; more stop
            the run, at the next line of metrics. A bad record spoils one batch: where four batches in a row are bad,
            it is not the data. 0 stops at the first.
        data_patience: seconds without a batch after which a line says what the run waits for; 0 is never.
        spike_factor: a loss between two lines of metrics that is more than so many times the median of those before
            takes the run back to its latest checkpoint, from where it goes on with the next data; None is off.
        spike_window: losses that the median is of, at least 5.
        max_rollbacks: how often a spike takes the run back before it stops.
        reference_curve: `curve.jsonl` of an earlier run; a line warns where a loss of the same step differs from it.
        reference_tolerance: share of the reference's loss that a loss may differ by.
    """

    steps: int = 250_000
    trainable: tuple[str, ...] = (".*",)
    frozen_dtype: str = FROZEN_DTYPE
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    ema_decay: float | None = None
    use_ema: bool = True
    log_every: int = 50
    eval_every: int = 0
    checkpoint_every: int = 0
    keep_checkpoints: int | None = 1
    best: BestConfig | None = None
    pause_at: int | None = None
    profile_steps: tuple[int, int] | None = None
    tensorboard: bool = True
    writers: tuple[Callable[[str], Any], ...] = ()
    tpu_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    max_skipped_steps: int = 3
    data_patience: float = 300
    spike_factor: float | None = None
    spike_window: int = 20
    max_rollbacks: int = 2
    reference_curve: str | None = None
    reference_tolerance: float = 0.1

    def check(self) -> None:
        """Refuses settings of the loop that make no sense.

        Raises:
            UserError: a number is too small or too large.
        """
        lowest = {"steps": 1, "log_every": 1, "max_skipped_steps": 0, "data_patience": 0, "max_rollbacks": 0}
        for name, least in (lowest | {"reference_tolerance": 0}).items():
            if not getattr(self, name) >= least:
                raise UserError(f"TrainConfig: {name}={getattr(self, name)} must be {least} or more.")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"TrainConfig: ema_decay={self.ema_decay} must be between 0 and 1, or None for no average.")
        self._check_writers()

    def _check_writers(self) -> None:
        if not isinstance(self.writers, tuple | list) or not all(map(callable, self.writers)):
            raise UserError(
                f"Expected TrainConfig.writers to be a list of what makes a writer; found {self.writers!r:.200}. Write "
                "it as [@WandbConfig()]."
            )
        projects = [make.place for make in self.writers if isinstance(make, WandbConfig)]
        if twice := [place for place in projects if projects.count(place) > 1]:
            raise UserError(
                f"TrainConfig.writers has {len(twice)} writers for the project {twice[0]!r} of Weights & Biases, which "
                "would hold everything that often. Leave one of them out, or give each a WandbConfig.project of its "
                "own."
            )

    def program(
        self, model: nn.Module, example: Any, objective: Objective, partitioner: Partitioner, boxed: PyTree = None
    ) -> Program:
        """Returns the program of the step; see `Program`.

        Raises:
            UserError: a setting of the loop makes no sense, such as a run of no steps.
        """
        self.check()
        return Program(
            model,
            example,
            objective,
            partitioner,
            trainable=self.trainable,
            frozen_dtype=self.frozen_dtype,
            optimizer=self.optimizer,
            steps=self.steps,
            ema_decay=self.ema_decay,
            tpu_options=self.tpu_options,
            boxed=boxed,
        )
