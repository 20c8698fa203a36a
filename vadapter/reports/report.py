"""One self-contained HTML report, and `results.json`, of one or more training runs ("arms") side by side."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from vadapter.base import pictures
from vadapter.base.errors import UserError
from vadapter.reports import chart as report_chart
from vadapter.reports import page as report_page
from vadapter.reports import summary as report_summary

Curve = Sequence[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class PredictionRow:
    """A prediction on one example.

    Attributes:
        id: names the example; the same in all arms.
        prediction: the generated caption or answer.
        references: right captions or answers.
        question: None for a caption.
        score: 0..1, None where it was not scored.
        thumbnail: the picture as a data URI (PNG or animated WebP).
    """

    id: str
    prediction: str
    references: tuple[str, ...] = ()
    question: str | None = None
    score: float | None = None
    thumbnail: str | None = None


@dataclasses.dataclass(frozen=True)
class SavedEvaluation:
    """What `vadapter eval` wrote about a run: the checkpoint, scores and their 95% intervals by name, and its page."""

    checkpoint: str
    scores: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    page: Path | None = None


@dataclasses.dataclass(frozen=True)
class ArmReport:
    """What is known of one run. None is "not measured".

    Attributes:
        name: short name, shown in legends.
        description: one line about the arm.
        trainable_params: number of trained parameters.
        steps: optimizer steps taken.
        seconds: wall-clock time of the training.
        curve: (step, validation loss in nats a target token), by rising step.
        val_loss: the final validation loss.
        cider: CIDEr-D of the captions, times 100.
        exact_match: share of captions equal to a reference, 0..1.
        vqa_accuracy: mean accuracy of the answers, 0..1.
        steps_to_baseline: see `steps_to_baseline`.
        reliance: loss with the "right", a "shuffled" and a "blank" image.
        predictions: rows for the gallery.
        train_curve: (step, training loss); drawn only where a single arm is shown.
        config_text: the run's operative gin configuration.
        evaluations: what `vadapter eval` found since.
    """

    name: str
    description: str = ""
    trainable_params: int | None = None
    steps: int | None = None
    seconds: float | None = None
    curve: Curve = ()
    val_loss: float | None = None
    cider: float | None = None
    exact_match: float | None = None
    vqa_accuracy: float | None = None
    steps_to_baseline: int | None = None
    reliance: Mapping[str, float] | None = None
    predictions: Sequence[PredictionRow] = ()
    train_curve: Curve = ()
    config_text: str = ""
    evaluations: Sequence[SavedEvaluation] = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """The content of a report.

    Attributes:
        title: heading.
        arms: one or more; `compare` fills in their steps to the baseline.
        baseline: name of the arm that the others are compared with, or None.
        config_text: configuration common to all arms.
        seed: seed of the runs.
        environment: name and value of what the runs were made with, such as {"jax": "0.10.2"}.
        notes: further paragraphs, shown under the summary.
    """

    title: str
    arms: Sequence[ArmReport]
    baseline: str | None = None
    config_text: str = ""
    seed: int | None = None
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()

    def __post_init__(self):
        names = [arm.name for arm in self.arms]
        if not names:
            raise UserError("A report needs at least one run, and none was given.")
        if len(set(names)) < len(names):
            raise UserError(f"The names of a report's runs must differ; found {', '.join(names)}. Rename one of them.")
        if self.baseline is not None and self.baseline not in names:
            raise UserError(f"The baseline must be one of the runs ({', '.join(names)}); found {self.baseline!r}.")

    @property
    def baseline_arm(self) -> ArmReport | None:
        """The baseline, or None."""
        return next((arm for arm in self.arms if arm.name == self.baseline), None)


def steps_to_baseline(curve: Curve, target: float | None) -> int | None:
    """First step of a curve at which the loss is at or below `target` (the baseline's final loss); None if never."""
    if target is None:
        return None
    return next((step for step, loss in curve if loss <= target), None)


def final_loss(arm: ArmReport) -> float | None:
    """The arm's `val_loss`, or else the last point of its curve."""
    return arm.val_loss if arm.val_loss is not None else (arm.curve[-1][1] if arm.curve else None)


def compare(arms: Sequence[ArmReport], baseline: str | None) -> list[ArmReport]:
    """Returns the arms with `val_loss` and `steps_to_baseline` filled in from their curves.

    The target is the baseline's last point on its own curve, so that losses measured on the same examples compare.
    """
    target = next((a.curve[-1][1] for a in arms if a.name == baseline and a.curve), None)
    return [
        dataclasses.replace(a, val_loss=final_loss(a), steps_to_baseline=steps_to_baseline(a.curve, target))
        for a in arms
    ]


def results_json(report: Report) -> dict[str, Any]:
    """Returns the content of `results.json`: `{"arms": {name: {...}}, "baseline", "seed", "configuration"}`.

    Numbers that were not measured, or are not finite, are None.
    """
    arms = {
        arm.name: {
            "trainable_params": arm.trainable_params,
            "steps": arm.steps,
            "val_loss": _finite(final_loss(arm)),
            "curve": [[int(step), _finite(loss)] for step, loss in arm.curve],
            "cider": _finite(arm.cider),
            "exact_match": _finite(arm.exact_match),
            "vqa_accuracy": _finite(arm.vqa_accuracy),
            "steps_to_baseline": arm.steps_to_baseline,
            "seconds": _finite(arm.seconds),
        }
        for arm in report.arms
    }
    return {"arms": arms, "baseline": report.baseline, "seed": report.seed, "configuration": report.config_text}


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


# --- the page -------------------------------------------------------------------------------------------------------

# (heading, explanation, value of an arm, text of a value, is smaller better: None has no best)
_COLUMNS = [
    ("trained", "parameters that were trained", lambda a: a.trainable_params, report_summary.count, None),
    ("steps", "optimizer steps", lambda a: a.steps, report_summary.thousands, None),
    ("time", "of the training, on this machine", lambda a: a.seconds, report_summary.duration, None),
    ("val. loss", "nats a token, at the end", final_loss, lambda v: f"{v:.3f}", True),
    ("CIDEr", "CIDEr-D of captions, times 100", lambda a: a.cider, lambda v: f"{v:.1f}", False),
    ("exact match", "captions equal to a reference", lambda a: a.exact_match, report_summary.percent, False),
    ("VQA", "accuracy of answers", lambda a: a.vqa_accuracy, report_summary.percent, False),
    ("image gap", "loss that a shuffled image adds", report_summary.shuffled_gap, lambda v: f"{v:+.2f}", None),
    (
        "to baseline",
        "steps until the baseline's final loss",
        lambda a: a.steps_to_baseline,
        report_summary.thousands,
        True,
    ),
]


def write_report(report: Report, path: str | Path, *, max_examples: int = 24) -> None:
    """Writes the report as one HTML file that loads nothing else.

    Args:
        report: what to show. All its text is escaped.
        path: the HTML file; its folder is made if missing.
        max_examples: examples in the gallery.
    """
    series = chart_series(report)
    columns, table = _table(report)
    page = report_page.render(
        "report.html.j2",
        report=report,
        summary=report_summary.paragraph(report),
        charts=[("wide", chart(report, 920, 430)), ("narrow", chart(report, 360, 330))] if series else [],
        slots={name: report_chart.slot(index) for name, index in colours(report).items()},
        columns=columns,
        table=table,
        examples=examples(report, max_examples),
        resolution=report_summary.resolution(report),
        evaluations=_evaluations(report, Path(path)),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _evaluations(
    report: Report, path: Path
) -> list[tuple[ArmReport, SavedEvaluation, str, list[tuple[str, str, str]]]]:
    """Each evaluation of an arm with the address of its page as seen from the report's, empty where there is none,
    and its scores as (name, value, interval)."""
    found = []
    for arm in report.arms:
        for saved in arm.evaluations:
            link = quote(os.path.relpath(saved.page.resolve(), path.resolve().parent)) if saved.page else ""
            rows = []
            for name, value in saved.scores.items():
                low, high = saved.intervals.get(name, (None, None))
                figure = report_summary.figure
                between = (
                    f"{figure(low, value)} to {figure(high, value)}" if low is not None and high is not None else "–"
                )
                rows.append((name, figure(value, value), between))
            found.append((arm, saved, link, rows))
    return found


def chart_series(report: Report) -> list[report_chart.Series]:
    """The curves to draw: every arm's validation loss, and a single arm's training loss."""
    place = colours(report)
    series = [report_chart.Series(arm.name, arm.curve, place[arm.name]) for arm in report.arms if arm.curve]
    if len(report.arms) == 1 and report.arms[0].train_curve:
        series.append(report_chart.Series("training", report.arms[0].train_curve, 0))
    return series


def colours(report: Report) -> dict[str, int]:
    """Place of each arm in the palette: the baseline has the grey one, 0, the others the next ones in their order."""
    others = [arm.name for arm in report.arms if arm.name != report.baseline or len(report.arms) == 1]
    return {arm.name: others.index(arm.name) + 1 if arm.name in others else 0 for arm in report.arms}


def chart_options(report: Report) -> dict[str, Any]:
    """The `target` and `crossings` of `report_chart.line_chart` for this report."""
    baseline = report.baseline_arm
    if baseline is None or not baseline.curve or len(report.arms) < 2:
        return {}
    final = baseline.curve[-1][1]
    crossings = {a.name: a.steps_to_baseline for a in report.arms if a is not baseline and a.steps_to_baseline}
    return {"target": (f"{baseline.name}'s final loss {final:.3f}", final), "crossings": crossings}


def chart(report: Report, width: int, height: int) -> Markup:
    """The validation-loss chart as an `<svg>` element, to be used with `report_chart.style`."""
    content = report_chart.line_chart(chart_series(report), width, height, **chart_options(report))
    label = "Validation loss against training step"
    return Markup(f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{content}</svg>')


def _table(report: Report) -> tuple[list[tuple[str, str]], list[tuple[ArmReport, list[tuple[str, bool]]]]]:
    """The columns that were measured in any arm, as (heading, explanation), and the rows: (arm, [(text, is it the best
    of its column)])."""
    columns: list[tuple[str, str]] = []
    cells: list[list[tuple[str, bool]]] = [[] for _ in report.arms]
    for heading, explanation, value_of, text_of, smaller in _COLUMNS:
        values = [_finite(value_of(arm)) for arm in report.arms]
        known = [v for v in values if v is not None]
        if not known:
            continue
        columns.append((heading, explanation))
        best = None if smaller is None or len(report.arms) < 2 else (min if smaller else max)(known)
        for row, value in zip(cells, values, strict=True):
            row.append(("–" if value is None else text_of(value), value is not None and value == best))
    return columns, list(zip(report.arms, cells, strict=True))


@dataclasses.dataclass(frozen=True)
class Example:
    """One example of the gallery with the predictions of all arms: (arm's name, its row or None)."""

    kind: str
    row: PredictionRow
    predictions: list[tuple[str, PredictionRow | None]]

    @property
    def is_small(self) -> bool:
        return pictures.is_small(self.row.thumbnail or "")


def examples(report: Report, limit: int) -> list[Example]:
    """The first examples that have a picture, captions and questions, images and videos in turn. None is picked by
    its result."""
    by_arm = {arm.name: {(r.id, r.question): r for r in arm.predictions} for arm in report.arms}
    kinds: dict[str, list[Example]] = {}
    seen: set[tuple[str, str | None]] = set()
    for row in (r for arm in report.arms for r in arm.predictions):
        key = (row.id, row.question)
        if row.thumbnail is None or key in seen:
            continue
        seen.add(key)
        medium = "video" if row.thumbnail.startswith("data:image/webp") else "image"
        kind = f"{'Questions about' if row.question else 'Captions of'} {medium}s"
        predictions = [(name, rows.get(key)) for name, rows in by_arm.items()]
        kinds.setdefault(kind, []).append(Example(kind, row, predictions))
    chosen: list[Example] = []
    for rank in range(max(map(len, kinds.values()), default=0)):
        chosen += [found[rank] for found in kinds.values() if rank < len(found)]
    return chosen[:limit]
