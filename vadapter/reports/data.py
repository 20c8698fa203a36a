"""The records that reports are made of: runs, what they predicted, and what is compared with what."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from vadapter.base.errors import UserError
from vadapter.evaluation import metrics
from vadapter.evaluation.metrics import Metric
from vadapter.evaluation.scoring import PLAIN

Curve = Sequence[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A prediction on one record.

    Attributes:
        id: names the record; the same in all runs.
        prediction: the generated caption or answer.
        references: right captions or answers.
        question: None for a caption.
        score: 0..1, None where it was not scored.
        thumbnail: the picture as a data URI (PNG or animated WebP).
        words: the nearest words of each soft token, (text, cosine similarity), the nearest first.
    """

    id: str
    prediction: str
    references: tuple[str, ...] = ()
    question: str | None = None
    score: float | None = None
    thumbnail: str | None = None
    words: Sequence[Sequence[tuple[str, float]]] = ()


@dataclasses.dataclass(frozen=True)
class SavedEvaluation:
    """What `vadapter eval` wrote about a run: the checkpoint, scores and their 95% intervals by name, and its page."""

    checkpoint: str
    scores: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    page: Path | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """What is known of one run. None is "not measured".

    Attributes:
        name: short name, shown in legends.
        description: one line about it.
        trainable_params: number of trained parameters.
        steps: optimizer steps taken.
        seconds: wall-clock time of the training.
        curve: (step, validation loss in nats a target token), by rising step.
        val_loss: the final validation loss.
        scores: of generated texts, by the names of registered metrics.
        steps_to_baseline: see `steps_to_baseline`.
        reliance: loss with the "right", a "shuffled" and a "blank" image.
        predictions: rows for the gallery.
        train_curve: (step, training loss); drawn only where a single run is shown.
        config_text: the run's gin configuration, as it was given.
        evaluations: what `vadapter eval` found since.
        time: seconds by kind of use, as `done.json` has them under "goodput"; those of "steps" are the updates'.
        seed: of its data and of what it draws.
        begins_with: names of the runs of the same report that its configuration takes weights from.
    """

    name: str
    description: str = ""
    trainable_params: int | None = None
    steps: int | None = None
    seconds: float | None = None
    curve: Curve = ()
    val_loss: float | None = None
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    steps_to_baseline: int | None = None
    reliance: Mapping[str, float] | None = None
    predictions: Sequence[Prediction] = ()
    train_curve: Curve = ()
    config_text: str = ""
    evaluations: Sequence[SavedEvaluation] = ()
    time: Mapping[str, float] = dataclasses.field(default_factory=dict)
    seed: int | None = None
    begins_with: Sequence[str] = ()

    @property
    def goodput(self) -> float | None:
        """Share of the time that was spent on updates, 0..1; None where it was not measured."""
        whole = sum(self.time.values())
        return self.time.get("steps", 0.0) / whole if whole > 0 else None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Training runs side by side.

    Attributes:
        title: heading.
        runs: one or more; `compare` fills in their steps to the baseline.
        baseline: name of the run that the others are compared with, or None.
        config_text: configuration common to all runs.
        seed: seed of the runs.
        environment: name and value of what the runs were made with, such as {"jax": "0.10.2"}.
    """

    title: str
    runs: Sequence[Run]
    baseline: str | None = None
    config_text: str = ""
    seed: int | None = None
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        names = [run.name for run in self.runs]
        if not names:
            raise UserError("A report needs at least one run, and none was given.")
        if len(set(names)) < len(names):
            raise UserError(f"The names of a report's runs must differ; found {', '.join(names)}. Rename one of them.")
        if self.baseline is not None and self.baseline not in names:
            raise UserError(f"The baseline must be one of the runs ({', '.join(names)}); found {self.baseline!r}.")

    @property
    def seed_text(self) -> str:
        """The seed, or that of each run where they differ."""
        if self.seed is not None:
            return str(self.seed)
        known = [f"{run.seed} ({run.name})" for run in self.runs if run.seed is not None]
        return ", ".join(known) or "not recorded"

    @property
    def baseline_run(self) -> Run | None:
        """The baseline, or None."""
        return next((run for run in self.runs if run.name == self.baseline), None)


def steps_to_baseline(curve: Curve, target: float | None) -> int | None:
    """First step of a curve at which the loss is at or below `target` (the baseline's final loss); None if never."""
    if target is None:
        return None
    return next((step for step, loss in curve if loss <= target), None)


def final_loss(run: Run) -> float | None:
    """The run's `val_loss`, or else the last point of its curve; None where that is not finite."""
    return finite(run.val_loss if run.val_loss is not None else (run.curve[-1][1] if run.curve else None))


def finite(value: float | None) -> float | None:
    """The number; None where there is none, or it is not finite."""
    return float(value) if value is not None and math.isfinite(value) else None


def compare(runs: Sequence[Run], baseline: str | None) -> list[Run]:
    """Returns the runs with `val_loss` and `steps_to_baseline` filled in from their curves.

    The target is the baseline's last point on its own curve, so that losses measured on the same examples compare.
    """
    target = next((a.curve[-1][1] for a in runs if a.name == baseline and a.curve), None)
    return [
        dataclasses.replace(a, val_loss=final_loss(a), steps_to_baseline=steps_to_baseline(a.curve, target))
        for a in runs
    ]


def score_metrics() -> list[Metric]:
    """The metrics of generated texts: those that score any data first, then all others that are registered."""
    usual = PLAIN.metrics
    return [*usual, *(m for m in metrics.registered() if m not in usual)]
