"""The training loop. It is handed its parts and knows no model, no data set and no metric."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from vadapter.base import files, quantization, signals, trees
from vadapter.base.errors import UserError
from vadapter.base.evaluator import Evaluator
from vadapter.base.paths import is_remote
from vadapter.models import flops as flops_lib
from vadapter.training import best as bests
from vadapter.training import checkpoints, freezing, guards, integrity, preemption, writing
from vadapter.training.best import Best, Keeper
from vadapter.training.checkpoints import Checkpointer
from vadapter.training.config import TrainConfig
from vadapter.training.goodput import Goodput
from vadapter.training.history import History
from vadapter.training.initialize import Start
from vadapter.training.profile import Profile
from vadapter.training.program import Program
from vadapter.training.result import TrainResult
from vadapter.training.waiting import Feed
from vadapter.training.window import Window


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

    Writes into `model_dir` `checkpoint_<step>/`, `model-info.txt`, `curve.jsonl`, TensorBoard files, `best.json` where
    it has a best checkpoint, and at the end `done.json`. A run that is done is not done again.

    After the first step the first SIGINT or SIGTERM makes it save and return: after the step at hand, between two
    batches of an evaluation, or while it waits for data. Earlier, and at the second signal, the process ends at once
    where it is a command's own, and otherwise does what it does without us (`vadapter.base.signals`).

    Args:
        config: settings.
        program: of the step (`TrainConfig.program`).
        start: where to begin (`initialize.begin`). Not to be used afterwards: the updates take over its memory.
        batches: gives, for a number of steps already made, an iterator over this process's rows of the batches from
            there on. It is read in a thread. If it has `counters() -> {name: number}`, they are written as
            `data/<name>`; if it has `record_ids(step) -> [id]`, bad batches are named by them.
        model_dir: folder of the run.
        evaluators: called at intervals and at the end.
        flops: counts the FLOPs of this process's rows of a batch, by part.

    Raises:
        UserError: a setting does not fit, no evaluator gives the metric of the best checkpoint (`best`), or losses are
            not finite (`guards`).
    """
    with contextlib.ExitStack() as stack:
        run = _Run(config, program, start, model_dir, evaluators, stack)
        if run.is_at_end() and (done := run.done()):
            return TrainResult(
                run.all_params(), run.step, done["metrics"], done["evals"], done["seconds"], False, best=run.best_step()
            )
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
        config.check()
        self.watched = bests.evaluator_of(config.best, evaluators, config.eval_every) if config.best else None
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
            "ema": config.ema_decay is not None and config.use_ema,
            "went_back_to": list(start.went_back_to),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        self.signals = stack.enter_context(signals.watch())
        stack.callback(self.signals.let_go)
        self.checkpointer = stack.enter_context(Checkpointer(model_dir, config.keep_checkpoints, at=self.step))
        self.writer = writing.MetricWriter(
            model_dir, enabled=self.first, tensorboard=config.tensorboard, writers=config.writers
        )
        stack.callback(self.writer.close)
        self._begin_history()
        self.console = stack.enter_context(writing.Console(config.steps, enabled=self.first))
        self.profile = Profile(self.config.profile_steps, str(self.folder / "profile"))
        self.started = time.perf_counter()
        self.evals: dict[str, dict[str, float]] = {}
        self.evaluated_at: dict[str, int] = {}
        self.window = Window(program.partitioner.host_share[1])

    def _begin_history(self) -> None:
        """Reads what former sessions left in `curve.jsonl`, and opens it."""
        config, curve = self.config, self.folder / "curve.jsonl"
        # Many processes must decide alike, and only the first is sure to see its file.
        metric = config.best.metric if config.best else None
        found, there = None, None
        if self.first:
            found = dataclasses.asdict(History.read(curve, self.step, metric))
            there = checkpoints.steps(str(self.folder))
        found, there = integrity.of_all_processes([found, there])[0]
        history = History(**found)
        self.evaluated = history.evaluated
        self.best = None
        if config.best and self.watched:
            values = Best(config.best, [(step, value) for step, value in history.watched])
            self.best = Keeper(values, self.watched, self.checkpointer, self.folder, there=there, write=self.first)
        self.metrics = history.metrics
        self.skips = guards.SkipGuard(config.max_skipped_steps, str(self.folder), history.skipped, write=self.first)
        self.spikes = guards.SpikeGuard(config.spike_factor, config.spike_window, history.losses)
        self.rollbacks = history.rollbacks
        self.reference = None
        if config.reference_curve is not None:
            self.reference = guards.Reference(config.reference_curve, config.reference_tolerance)
        saved = self.checkpointer.run(self.step) if self.step in checkpoints.steps(str(self.folder)) else {}
        self.goodput = Goodput(saved.get("goodput"))
        self.goodput.lose(history.last_second - self.former_seconds if self.step else 0.0, session=True)
        self.kept_steps = self.goodput.seconds["steps"]
        self.curve = writing.CurveFile(str(curve), self.step) if self.first else None

    def best_step(self) -> int | None:
        return self.best.so_far.step if self.best else None

    def is_at_end(self) -> bool:
        """Whether no step is left to be made: all were, or the metric has not become better for long enough."""
        return self.step >= self.config.steps or (self.best is not None and self.best.so_far.is_over)

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
        self.rows = freezing.summarize(self.state.params, self.frozen, (self.state.opt_state, self.state.ema))
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
        """Returns trained and frozen parameters as one tree: those that evaluations take."""
        return trees.merge(self.state.ema if self.record["ema"] else self.state.params, self.frozen)

    def seconds(self) -> float:
        return self.former_seconds + time.perf_counter() - self.started

    def train(self, batches: Callable[[int], Iterator[Any]], flops: flops_lib.FlopsOf | None) -> TrainResult:
        self.started = time.perf_counter()
        self.goodput.begin()
        interrupted = 0 < self.step < self.config.steps and self._is_left()
        if not self.is_at_end() and not interrupted:
            found = batches(self.step)
            feed = Feed(found, "the training data", self.config.data_patience, str(self.folder))
            with contextlib.closing(feed):
                interrupted = self._steps(found, feed, flops)
            self.checkpointer.wait()
            self.goodput.lap("checkpoint")
        if not interrupted:
            interrupted = not self._evaluate([e for e in self.evaluators if self.evaluated_at.get(e.name) != self.step])
        self.writer.flush()
        number = self.signals.first if interrupted else None
        seconds, best = self.seconds(), self.best_step()
        result = TrainResult(self.all_params(), self.step, self.metrics, self.evals, seconds, interrupted, number, best)
        self._finish(result)
        return result

    def _is_left(self) -> bool:
        """Makes the evaluations that the last session saved for and did not come to. Returns whether to stop there."""
        left = [e for e in self._due_evaluators() if e.name not in self.evaluated]
        return not self._evaluate(left) or (bool(left) and self.step == self.config.pause_at)

    def _steps(self, batches: Iterator[Any], feed: Feed, flops: flops_lib.FlopsOf | None) -> bool:
        """Makes the steps that are left. Returns whether it was told to stop, by a signal or by `pause_at`."""
        config, first_step = self.config, self.step + 1
        self.skips.records = getattr(batches, "record_ids", None)
        while not self.is_at_end():
            told = not self._update(feed, flops) or self.signals.asked()
            pausing = self.step == config.pause_at and self.step < config.steps
            last = told or pausing or self.step == config.steps
            evaluate = self._due_evaluators()
            save = self._is_due(config.checkpoint_every) or last or self.watched in evaluate
            # The first step is logged by itself: its time is the compilation's.
            if save or evaluate or self._is_due(config.log_every) or self.step == first_step:
                self._log(batches, quiet=self.step == first_step)
                if save:
                    self._save()
                if (pausing or not last) and not self._evaluate(evaluate):
                    told = True
                    self._save()
                self.window.reset()
            if self.step == first_step:
                self._hold_signals()
            if told or pausing:
                return True
        return False

    def _hold_signals(self) -> None:
        """From now on there is something to save. Processes that cannot agree on a step end at once, as before."""
        if jax.process_count() == 1:
            self.signals.hold(self._latest)
        elif preemption.can_agree():
            self.signals.hold(self._latest, preemption.Agreement())

    def _latest(self) -> str:
        """A sentence about the latest checkpoint. Also called from another thread."""
        found = [self.checkpointer.latest()] if is_remote(self.folder) else checkpoints.steps(str(self.folder))
        if not found or found[-1] is None:
            return "There is no checkpoint yet: the same command starts again."
        return f"The latest checkpoint is {self.folder}/checkpoint_{found[-1]}; the same command goes on from there."

    def _latest_when_saved(self) -> str:
        self.checkpointer.wait()
        return self._latest()

    def _update(self, feed: Feed, flops: flops_lib.FlopsOf | None) -> bool:
        """Makes a step. Returns False where it was told to stop before it had a batch."""
        self.goodput.lap("steps")
        try:
            batch = next(feed)
        except signals.Stopped:
            return False
        except StopIteration as e:
            raise UserError(
                f"The training data ended after {self.step} of {self.config.steps} steps. Let the data repeat, or "
                "train fewer steps."
            ) from e
        # While the device has steps to make, a wait costs nothing.
        self.goodput.lap("data" if self.window.is_idle() else "steps")
        self.profile.before(self.step)
        self.state, metrics = self.program.step(self.state, self.frozen, self.program.put(batch))
        self.step += 1
        self.profile.after(self.step, self.state)
        self.window.add(metrics, flops_lib.count(batch), sum(flops(batch).values()) if flops else 0.0)
        self.console.step(self.step)
        return True

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _due_evaluators(self) -> list[Evaluator]:
        default, paused = self.config.eval_every, self.step == self.config.pause_at
        return [
            e
            for e in self.evaluators
            if self._is_due(default if e.every_steps is None else e.every_steps) or (paused and e.every_steps is None)
        ]

    def _log(self, batches: Any, quiet: bool) -> None:
        """Closes the window: tells its metrics, and refuses what must not be saved."""
        if not self.window.metrics:
            return
        values, steps = self.window.close(self.step)
        self.goodput.lap("compile" if quiet else "steps")
        guards.check_parameters(self.step, values, self._latest_when_saved)
        self.skips.look(steps, self._latest_when_saved)
        values["skipped_steps"] = float(self.skips.total)
        if quiet:  # speeds would be those of the compiler
            values = {k: v for k, v in values.items() if not k.endswith("_per_s") and k != "mfu"}
        if hasattr(batches, "counters"):
            values |= {f"data/{name}": float(x) for name, x in batches.counters().items()}
        self.metrics = values
        shares = {f"goodput/{kind}": share for kind, share in self.goodput.shares().items()}
        self.writer.scalars(self.step, values | shares)
        self._add_to_curve("train", values)
        names = {"loss": "loss", "tiny_loss": "tiny loss", "accuracy": "accuracy", "learning_rate": "lr"}
        names |= {"grad_norm": "grad norm"}
        names |= {"steps_per_s": "steps/s", "examples_per_s": "examples/s", "tokens_per_s": "tokens/s", "mfu": "mfu"}
        names |= {"skipped_steps": "skipped steps"}
        self.console.step(self.step, "  ".join(f"{names[k]} {values[k]:.4g}" for k in names if values.get(k)))
        self._compare("train", values.get("loss"))
        median = self.spikes.spike(values.get("loss"))
        if median is not None:
            self._roll_back(values["loss"], median)

    def _roll_back(self, loss: float, median: float) -> None:
        """Goes back to the latest checkpoint. The data since then are passed over: the step stays."""
        what = f"The loss up to step {self.step} is {loss:.4g}, {loss / median:.1f} times the median of those before"
        self.checkpointer.wait()
        latest = self.checkpointer.latest()
        if latest is None:
            self.console.line(f"WARNING: {what}. There is no checkpoint to go back to, so the run goes on.")
            return
        if self.rollbacks >= self.config.max_rollbacks:
            raise UserError(
                f"{what}, and the run has gone back {self.rollbacks} times already (TrainConfig.max_rollbacks). "
                f"{self._latest()} Lower the learning rate, set OptimizerConfig.clip_norm, or raise spike_factor."
            )
        self.rollbacks += 1
        jax.tree.map(lambda x: x.delete(), self.state)  # there may be no room for two
        state = self.program.restore(self.checkpointer, latest)
        self.state = state.replace(step=jax.device_put(np.int32(self.step), state.step.sharding))  # pyright: ignore
        self.goodput.lap("restart")
        self.goodput.lose(self.goodput.seconds["steps"] - self.kept_steps)
        self._add_to_curve("rollback", {"to": latest, "spike": loss, "median": median})
        self.console.line(
            f"{what}. The run goes on from the parameters of checkpoint_{latest} and passes over the data since then."
        )

    def _compare(self, split: str, loss: float | None) -> None:
        if self.reference and (line := self.reference.compare(self.step, split, loss)):
            self.console.line(line)

    def _add_to_curve(self, split: str, values: Mapping[str, float]) -> None:
        if self.curve:
            self.curve.add(self.step, split, {"seconds": round(self.seconds(), 3), **values})

    def _evaluate(self, evaluators: Sequence[Evaluator]) -> bool:
        """Evaluates. Returns False where it was told to stop, and left what it was at."""
        try:
            for evaluator in evaluators:
                self.goodput.lap("steps")
                result = evaluator(self.all_params())
                scalars = {k: float(v) for k, v in result.scalars.items()}
                self.evals[evaluator.name] = scalars
                self.writer.evaluation(self.step, evaluator.name, result)
                self._add_to_curve(evaluator.name, scalars)
                self.evaluated_at[evaluator.name] = self.step
                summary = "  ".join([*(f"{k} {v:.4g}" for k, v in scalars.items()), *result.notes])
                self.console.line(f"step {self.step}/{self.config.steps}  {evaluator.name}: {summary}")
                self._compare(evaluator.name, scalars.get("loss"))
                if self.best and evaluator is self.watched:
                    self.best.look(self.step, scalars)
                self.goodput.lap("evaluation")
        except signals.Stopped:
            self.goodput.lap("evaluation")
            return False
        return True

    def _save(self) -> None:
        self.goodput.lap("steps")
        self.kept_steps = self.goodput.seconds["steps"]
        record = {**self.record, "seconds": self.seconds(), "goodput": self.goodput.to_json()}
        self.checkpointer.save(self.state, record)
        self.goodput.lap("checkpoint")

    def _finish(self, result: TrainResult) -> None:
        if result.interrupted:
            self.console.line(f"Stopped early: saved at step {self.step}. The same command goes on from there.")
            return
        self.checkpointer.finish()
        done = {k: getattr(result, k) for k in ("step", "seconds", "metrics", "evals")}
        done["trainable_params"] = sum(r.parameters for r in self.rows if r.trainable)
        done["total_params"] = sum(r.parameters for r in self.rows)
        done["skipped_steps"] = self.skips.total
        done["goodput"] = self.goodput.to_json()
        if self.best:
            done["best"] = self.best.so_far.record()
        if self.first:
            files.write_json(self.folder / "done.json", done)
        ended = f" of {self.config.steps}, since it got no better" if self.step < self.config.steps else ""
        chosen = f" {self.best.so_far}." if self.best else ""
        self.console.line(f"Done: {self.step} steps{ended}.{chosen} The time went into {self.goodput.summary()}.")
