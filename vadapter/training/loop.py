"""The training loop. It is handed its parts and knows no model, no data set and no metric."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from flax import linen as nn

from vadapter.base import files, quantization, trees
from vadapter.base.array_types import PyTree
from vadapter.base.errors import UserError
from vadapter.base.evaluator import Evaluator
from vadapter.models import flops as flops_lib
from vadapter.partitioning import Partitioner
from vadapter.training import freezing, writing
from vadapter.training.checkpoints import Checkpointer
from vadapter.training.initialize import Start
from vadapter.training.objectives import Objective
from vadapter.training.optimizers import OptimizerConfig
from vadapter.training.preemption import Preemption
from vadapter.training.program import Program
from vadapter.training.storage import FROZEN_DTYPE
from vadapter.training.window import Window


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of the loop.

    Attributes:
        steps: updates in all.
        trainable: regexes of the paths to train; the rest is frozen.
        frozen_dtype: dtype in which frozen parameters are kept: `bfloat16`, `float32`, or `int8`, which quantises the
            kernels of the encoder's, the decoder's and the LM adapter's layers and keeps the rest in bf16.
        optimizer: the optimizer and its learning-rate schedule.
        log_every: steps between two lines of metrics. Between them nothing waits for the device.
        eval_every: steps between two calls of the evaluators that have no interval of their own; 0: at the end only.
        checkpoint_every: steps between two checkpoints; 0: at the end only.
        keep_checkpoints: newest to keep; while the run lasts there is one more, in case the newest proves bad. None
            keeps all.
        pause_at: step at which the run evaluates, saves and ends, as if told to stop; it goes on when called again with
            another value or None. The schedule stays that of `steps`.
        profile_steps: (first, last) updates to profile into MODEL_DIR/profile, for TensorBoard or xprof.
        tensorboard: whether to write TensorBoard files.
        tpu_options: options of the TPU compiler for the step, such as `{"xla_tpu_scoped_vmem_limit_kib": 32768}`, over
            those of the type of TPU (`vadapter.training.compiler_options`); None takes one out. They change its speed
            and memory, not what it computes. Other platforms do not see them.
    """

    steps: int = 250_000
    trainable: tuple[str, ...] = (".*",)
    frozen_dtype: str = FROZEN_DTYPE
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    log_every: int = 50
    eval_every: int = 0
    checkpoint_every: int = 0
    keep_checkpoints: int | None = 1
    pause_at: int | None = None
    profile_steps: tuple[int, int] | None = None
    tensorboard: bool = True
    tpu_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def program(
        self, model: nn.Module, example: Any, objective: Objective, partitioner: Partitioner, boxed: PyTree = None
    ) -> Program:
        """Returns the program of the step; see `Program`.

        Raises:
            UserError: there are no steps to make, or none between two lines of metrics.
        """
        for name in ("steps", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"TrainConfig: {name}={getattr(self, name)} must be 1 or more.")
        return Program(
            model,
            example,
            objective,
            partitioner,
            trainable=self.trainable,
            frozen_dtype=self.frozen_dtype,
            optimizer=self.optimizer,
            steps=self.steps,
            tpu_options=self.tpu_options,
            boxed=boxed,
        )


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        params: all parameters, trained and frozen, on the device.
        step: updates made.
        metrics: of the last logged training interval.
        evals: scalars of each evaluator at the end, by its name.
        seconds: of all sessions of the run, from the first step's compilation to the last evaluation.
        interrupted: whether it was told to stop before its last step; it then goes on where it was when called again.
    """

    params: dict[str, Any]
    step: int
    metrics: dict[str, float]
    evals: dict[str, dict[str, float]]
    seconds: float
    interrupted: bool


def train(
    config: TrainConfig,
    *,
    program: Program,
    start: Start,
    batches: Callable[[int], Iterator[Any]],
    model_dir: str,
    evaluators: Sequence[Evaluator] = (),
    flops: flops_lib.FlopsOf | None = None,
) -> TrainResult:
    """Trains on from a start.

    Writes into `model_dir` `checkpoint_<step>/`, `model-info.txt`, `curve.jsonl`, TensorBoard files, and at the end
    `done.json`. SIGTERM makes it save and return. A run that is done is not done again.

    Args:
        config: settings.
        program: of the step (`TrainConfig.program`).
        start: where to begin (`initialize.begin`). Not to be used afterwards: the updates take over its memory.
        batches: gives, for a number of steps already made, an iterator over this process's rows of the batches from
            there on. If it has `counters() -> {name: number}`, they are written as `data/<name>`.
        model_dir: folder of the run.
        evaluators: called at intervals and at the end.
        flops: counts the FLOPs of this process's rows of a batch, by part.

    Raises:
        UserError: a setting does not fit, or the loss is not finite.
    """
    with contextlib.ExitStack() as stack:
        run = _Run(config, program, start, model_dir, evaluators, stack)
        if run.step >= config.steps and (done := run.done()):
            return TrainResult(run.all_params(), run.step, done["metrics"], done["evals"], done["seconds"], False)
        run.announce()
        return run.train(batches, flops)


class _Run:
    """The state of one call of `train`."""

    def __init__(
        self,
        config: TrainConfig,
        program: Program,
        start: Start,
        model_dir: str,
        evaluators: Sequence[Evaluator],
        stack: contextlib.ExitStack,
    ):
        self.config, self.program, self.evaluators = config, program, evaluators
        self.folder = epath.Path(model_dir)
        self.first = jax.process_index() == 0
        self.state, self.frozen, self.former_seconds = start.state, start.frozen, start.seconds
        self.step = int(start.state.step)
        self.record = {
            "data": dict(start.data_info),
            "sources": [r.to_json() for r in start.references],
            "trainable": list(config.trainable),
            "frozen_dtype": config.frozen_dtype,
            "went_back_to": list(start.went_back_to),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpointer = stack.enter_context(Checkpointer(model_dir, config.keep_checkpoints, at=self.step))
        self.writer = writing.MetricWriter(model_dir, enabled=self.first, tensorboard=config.tensorboard)
        stack.callback(self.writer.close)
        self.curve = writing.CurveFile(str(self.folder / "curve.jsonl"), self.step) if self.first else None
        self.console = stack.enter_context(writing.Console(config.steps, enabled=self.first))
        self.preemption = stack.enter_context(Preemption())
        self.profiling = False
        self.started = time.perf_counter()
        self.metrics: dict[str, float] = {}
        self.evals: dict[str, dict[str, float]] = {}

    def done(self) -> dict[str, Any] | None:
        """Returns `done.json` if this step is the one that it is about; a file that was cut counts as none."""
        path = self.folder / "done.json"
        done = files.read_record(path)
        if not {"step", "seconds", "metrics", "evals"} <= done.keys():
            if path.exists():
                self.console.line(f"{path} was cut or is no JSON: the run counts as not finished.")
            return None
        return done if done["step"] == self.step else None

    def announce(self) -> None:
        """Prints the table of parts and writes `model-info.txt`."""
        self.rows = freezing.summarize(self.state.params, self.frozen, self.state.opt_state)
        table = freezing.table(self.rows)
        self.console.line(table)
        if self.first:
            lines = [
                f"{kind}  {path}  {tuple(x.shape)}  {x.dtype.name}  {x.sharding.spec}"
                for kind, tree in (("trained", self.state.params), ("frozen ", self.frozen))
                for path, x in ((path, quantization.values(leaf)) for path, leaf in trees.flatten(tree).items())
            ]
            files.write_text(self.folder / "model-info.txt", "\n".join([table, "", *lines, ""]))

    def all_params(self) -> dict[str, Any]:
        """Returns trained and frozen parameters as one tree."""
        return trees.merge(self.state.params, self.frozen)

    def seconds(self) -> float:
        return self.former_seconds + time.perf_counter() - self.started

    def train(self, batches: Callable[[int], Iterator[Any]], flops: flops_lib.FlopsOf | None) -> TrainResult:
        config = self.config
        self.started = time.perf_counter()
        interrupted = False
        if self.step < config.steps:
            shares = self.program.partitioner.host_share[1]
            iterator, window = batches(self.step), Window(shares)
            first_step = self.step + 1
            while self.step < config.steps and not interrupted:
                self._update(iterator, window, flops)
                pausing = self.step == config.pause_at and self.step < config.steps
                interrupted = self.preemption.requested(self.step) or pausing
                last = interrupted or self.step == config.steps
                evaluate, save = self._due_evaluators(), self._is_due(config.checkpoint_every) or last
                # The first step is logged by itself: its time is the compilation's.
                if save or evaluate or self._is_due(config.log_every) or self.step == first_step:
                    self._log(window, iterator, quiet=self.step == first_step)
                    if save:
                        self._save()
                    if not last or pausing:
                        self._evaluate(evaluate)
                    window = Window(shares)
            self.checkpointer.wait()
            getattr(iterator, "close", lambda: None)()
        if not interrupted:
            self._evaluate(self.evaluators)
        self.writer.flush()
        result = TrainResult(self.all_params(), self.step, self.metrics, self.evals, self.seconds(), interrupted)
        self._finish(result)
        return result

    def _update(self, iterator: Iterator[Any], window: Window, flops: flops_lib.FlopsOf | None) -> None:
        self._start_profile()
        try:
            batch = next(iterator)
        except StopIteration as e:
            raise UserError(
                f"The training data ended after {self.step} of {self.config.steps} steps. Let the data repeat, or "
                "train fewer steps."
            ) from e
        self.state, metrics = self.program.step(self.state, self.frozen, self.program.put(batch))
        self.step += 1
        self._stop_profile()
        window.add(metrics, flops_lib.count(batch), sum(flops(batch).values()) if flops else 0.0)
        self.console.step(self.step)

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _due_evaluators(self) -> list[Evaluator]:
        default, paused = self.config.eval_every, self.step == self.config.pause_at
        return [
            e
            for e in self.evaluators
            if self._is_due(default if e.every_steps is None else e.every_steps) or (paused and e.every_steps is None)
        ]

    def _start_profile(self) -> None:
        if self.config.profile_steps and self.step + 1 == self.config.profile_steps[0]:
            jax.profiler.start_trace(str(self.folder / "profile"))
            self.profiling = True

    def _stop_profile(self) -> None:
        if self.profiling and self.config.profile_steps and self.step >= self.config.profile_steps[1]:
            jax.block_until_ready(self.state)
            jax.profiler.stop_trace()
            self.profiling = False

    def _log(self, window: Window, iterator: Any, quiet: bool) -> None:
        values = window.close(self.step)
        if quiet:  # speeds would be those of the compiler
            values = {k: v for k, v in values.items() if not k.endswith("_per_s") and k != "mfu"}
        if hasattr(iterator, "counters"):
            values |= {f"data/{name}": float(x) for name, x in iterator.counters().items()}
        self.metrics = values
        self.writer.scalars(self.step, values)
        self._add_to_curve("train", values)
        names = {"loss": "loss", "accuracy": "accuracy", "learning_rate": "lr", "grad_norm": "grad norm"}
        names |= {"steps_per_s": "steps/s", "examples_per_s": "examples/s", "tokens_per_s": "tokens/s", "mfu": "mfu"}
        self.console.step(self.step, "  ".join(f"{names[k]} {values[k]:.4g}" for k in names if values.get(k)))

    def _add_to_curve(self, split: str, values: Mapping[str, float]) -> None:
        if self.curve:
            self.curve.add(self.step, split, {"seconds": round(self.seconds(), 3), **values})

    def _evaluate(self, evaluators: Sequence[Evaluator]) -> None:
        for evaluator in evaluators:
            result = evaluator(self.all_params())
            scalars = {k: float(v) for k, v in result.scalars.items()}
            self.evals[evaluator.name] = scalars
            self.writer.evaluation(self.step, evaluator.name, result)
            self._add_to_curve(evaluator.name, scalars)
            summary = "  ".join([*(f"{k} {v:.4g}" for k, v in scalars.items()), *result.notes])
            self.console.line(f"step {self.step}/{self.config.steps}  {evaluator.name}: {summary}")

    def _save(self) -> None:
        self.checkpointer.save(self.state, {**self.record, "seconds": self.seconds()})

    def _finish(self, result: TrainResult) -> None:
        if result.interrupted:
            self.console.line(f"Stopped early: saved at step {self.step}. The same command goes on from there.")
            return
        self.checkpointer.finish()
        done = {k: getattr(result, k) for k in ("step", "seconds", "metrics", "evals")}
        done["trainable_params"] = sum(r.parameters for r in self.rows if r.trainable)
        done["total_params"] = sum(r.parameters for r in self.rows)
        if self.first:
            files.write_json(self.folder / "done.json", done)
