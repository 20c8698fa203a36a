"""Training runs side by side: one self-contained HTML page, and `results.json`."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from vadapter.base import pages, pictures
from vadapter.evaluation.scoring import PLAIN
from vadapter.reports import chart as charts
from vadapter.reports import data
from vadapter.reports import summary as words
from vadapter.reports.data import Comparison, Prediction, Run, SavedEvaluation, final_loss, finite


def results_json(comparison: Comparison) -> dict[str, Any]:
    """Returns the content of `results.json`: `{"arms": {name: {...}}, "baseline", "seed", "configuration"}`.

    Numbers that were not measured, or are not finite, are None.
    """
    runs = {
        run.name: {
            "trainable_params": run.trainable_params,
            "steps": run.steps,
            "val_loss": finite(final_loss(run)),
            "curve": [[int(step), finite(loss)] for step, loss in run.curve],
            **{m.name: finite(run.scores.get(m.name)) for m in PLAIN.metrics},
            **{name: finite(value) for name, value in run.scores.items()},
            "steps_to_baseline": run.steps_to_baseline,
            "seconds": finite(run.seconds),
            "goodput": finite(run.goodput),
        }
        for run in comparison.runs
    }
    settings = {"seed": comparison.seed, "configuration": comparison.config_text}
    return {"arms": runs, "baseline": comparison.baseline, **settings}


# --- the page -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Column:
    """A column of the table: its heading, what it says, a run's value and its text, and whether less is better (None:
    nothing is)."""

    heading: str
    explanation: str
    value: Callable[[Run], float | None]
    text: Callable[[float], str]
    less_is_better: bool | None = None


def _columns() -> list[_Column]:
    before = [
        _Column("trained", "parameters that were trained", lambda r: r.trainable_params, words.count),
        _Column("steps", "optimizer steps", lambda r: r.steps, words.thousands),
        _Column("time", "of the training, on this machine", lambda r: r.seconds, words.duration),
        _Column("goodput", "share of the time that updates took", lambda r: r.goodput, lambda v: f"{v:.0%}"),
        _Column("val. loss", "nats a token, at the end", final_loss, lambda v: f"{v:.3f}", True),
    ]
    scores = [
        _Column(m.label, m.explanation, lambda r, m=m: r.scores.get(m.name), m.form.format, not m.higher_is_better)
        for m in data.score_metrics()
    ]
    after = [
        _Column("image gap", "loss that a shuffled image adds", words.shuffled_gap, lambda v: f"{v:+.2f}"),
        _Column(
            *("to baseline", "steps until the baseline's final loss", lambda r: r.steps_to_baseline, words.thousands),
            less_is_better=True,
        ),
    ]
    return [*before, *scores, *after]


def write(comparison: Comparison, path: str | Path, *, max_examples: int = 24) -> None:
    """Writes the report as one HTML file that loads nothing else.

    Args:
        comparison: what to show. All its text is escaped.
        path: the HTML file; its folder is made if missing.
        max_examples: records in the gallery.
    """
    series = chart_series(comparison)
    columns, table = _table(comparison)
    content = {
        "comparison": comparison,
        "style": Markup(charts.style()),
        "summary": words.paragraph(comparison),
        "charts": [("wide", chart(comparison, 920, 430)), ("narrow", chart(comparison, 360, 330))] if series else [],
        "slots": {name: charts.slot(index) for name, index in colours(comparison).items()},
        "columns": columns,
        "table": table,
        "gallery": gallery(comparison, max_examples),
        "resolution": words.resolution(comparison),
        "evaluations": _evaluations(comparison, Path(path)),
    }
    page = pages.render(Path(__file__).parent / "templates" / "comparison.html.j2", content)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _evaluations(
    comparison: Comparison, path: Path
) -> list[tuple[Run, SavedEvaluation, str, list[tuple[str, str, str]]]]:
    """Each evaluation of a run with the address of its page as seen from the report's, empty where there is none,
    and its scores as (name, value, interval)."""
    found = []
    for run in comparison.runs:
        for saved in run.evaluations:
            link = quote(os.path.relpath(saved.page.resolve(), path.resolve().parent)) if saved.page else ""
            rows = []
            for name, value in saved.scores.items():
                low, high = saved.intervals.get(name, (None, None))
                figure = words.figure
                between = (
                    f"{figure(low, value)} to {figure(high, value)}" if low is not None and high is not None else "–"
                )
                rows.append((name, figure(value, value), between))
            found.append((run, saved, link, rows))
    return found


def chart_series(comparison: Comparison) -> list[charts.Series]:
    """The curves to draw: every run's validation loss, and a single run's training loss."""
    place = colours(comparison)
    series = [charts.Series(run.name, run.curve, place[run.name]) for run in comparison.runs if run.curve]
    if len(comparison.runs) == 1 and comparison.runs[0].train_curve:
        series.append(charts.Series("training", comparison.runs[0].train_curve, 0))
    return series


def colours(comparison: Comparison) -> dict[str, int]:
    """Place of each run in the palette: the baseline has the grey one, 0, the others the next ones in their order."""
    others = [run.name for run in comparison.runs if run.name != comparison.baseline or len(comparison.runs) == 1]
    return {run.name: others.index(run.name) + 1 if run.name in others else 0 for run in comparison.runs}


def chart_options(comparison: Comparison) -> dict[str, Any]:
    """The `target` and `crossings` of `charts.line_chart` for this report."""
    baseline = comparison.baseline_run
    if baseline is None or not baseline.curve or len(comparison.runs) < 2:
        return {}
    final = baseline.curve[-1][1]
    crossings = {a.name: a.steps_to_baseline for a in comparison.runs if a is not baseline and a.steps_to_baseline}
    return {"target": (f"{baseline.name}'s final loss {final:.3f}", final), "crossings": crossings}


def chart(comparison: Comparison, width: int, height: int) -> Markup:
    """The validation-loss chart as an `<svg>` element, to be used with `charts.style`."""
    content = charts.line_chart(chart_series(comparison), width, height, **chart_options(comparison))
    label = "Validation loss against training step"
    return Markup(f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{content}</svg>')


def _table(comparison: Comparison) -> tuple[list[tuple[str, str]], list[tuple[Run, list[tuple[str, bool]]]]]:
    """The columns that were measured in any run, as (heading, explanation), and the rows: (run, [(text, is it the best
    of its column)])."""
    columns: list[tuple[str, str]] = []
    cells: list[list[tuple[str, bool]]] = [[] for _ in comparison.runs]
    for column in _columns():
        values = [finite(column.value(run)) for run in comparison.runs]
        known = [v for v in values if v is not None]
        if not known:
            continue
        columns.append((column.heading, column.explanation))
        less = column.less_is_better
        best = None if less is None or len(comparison.runs) < 2 else (min if less else max)(known)
        for row, value in zip(cells, values, strict=True):
            row.append(("–" if value is None else column.text(value), value is not None and value == best))
    return columns, list(zip(comparison.runs, cells, strict=True))


@dataclasses.dataclass(frozen=True)
class SideBySide:
    """A record in the gallery with the predictions of all runs: (run's name, its row or None)."""

    kind: str
    row: Prediction
    predictions: list[tuple[str, Prediction | None]]

    @property
    def words(self) -> list[tuple[str, Sequence[Sequence[tuple[str, float]]]]]:
        """(run's name, nearest words of each soft token) of the runs that have them."""
        return [(name, row.words) for name, row in self.predictions if row and row.words]

    @property
    def is_small(self) -> bool:
        return pictures.is_small(self.row.thumbnail or "")


def gallery(comparison: Comparison, limit: int) -> list[SideBySide]:
    """The first records that have a picture, captions and questions, images and videos in turn. None is picked by
    its result."""
    by_run = {run.name: {(r.id, r.question): r for r in run.predictions} for run in comparison.runs}
    kinds: dict[str, list[SideBySide]] = {}
    seen: set[tuple[str, str | None]] = set()
    for row in (r for run in comparison.runs for r in run.predictions):
        key = (row.id, row.question)
        if row.thumbnail is None or key in seen:
            continue
        seen.add(key)
        medium = "video" if row.thumbnail.startswith("data:image/webp") else "image"
        kind = f"{'Questions about' if row.question else 'Captions of'} {medium}s"
        predictions = [(name, rows.get(key)) for name, rows in by_run.items()]
        kinds.setdefault(kind, []).append(SideBySide(kind, row, predictions))
    chosen: list[SideBySide] = []
    for rank in range(max(map(len, kinds.values()), default=0)):
        chosen += [found[rank] for found in kinds.values() if rank < len(found)]
    return chosen[:limit]
