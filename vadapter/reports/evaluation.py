"""An evaluation as `metrics.json`, and as one self-contained HTML page with best, worst and random examples."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath
from markupsafe import Markup

from vadapter.base import pages, pictures, versions
from vadapter.evaluation import bootstrap
from vadapter.evaluation.bootstrap import Intervals
from vadapter.evaluation.examples import Example
from vadapter.reports import chart as charts
from vadapter.reports import files
from vadapter.reports import summary as words

_MOST_TEXT = 1500  # characters of a text that are shown
_COUNTS = ("captions", "questions", "records", "unscored", "target_tokens")


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What one evaluator found.

    Attributes:
        name: the evaluator's.
        kind: loss, generation or reliance.
        scores: by their whole names, such as `vqav2/vqa_accuracy`.
        intervals: 95% bootstrap intervals of scores, by the same names; not every score has one.
        facts: what it was measured on and with (split, decoding, prompts, scorers), JSON-serialisable.
        examples: to show.
        explanations: what scores are, in a few words; see `EvalResult`.
        notes: sentences that belong beside the scores.
        records: scored predictions, JSON-serialisable.
        submission: files in the format of a benchmark, {path: content, a text or what becomes JSON}.
    """

    name: str
    kind: str
    scores: Mapping[str, float]
    intervals: Intervals = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    examples: Sequence[Example] = ()
    explanations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    records: Sequence[Mapping[str, Any]] = ()
    submission: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def own_scores(self) -> dict[str, float]:
        """The scores by their names as in `curve.jsonl`, without the evaluator's."""
        return {name.removeprefix(f"{self.name}/"): value for name, value in self.scores.items()}

    def line(self) -> str:
        """The scores in a line for the terminal, with their intervals and notes."""
        parts = []
        for (name, value), own in zip(self.scores.items(), self.own_scores(), strict=True):
            bounds = self.intervals.get(name)
            between = f" [{bounds[0]:.4g}, {bounds[1]:.4g}]" if bounds else ""
            parts.append(f"{own} {value:.4g}{between}")
        return "  ".join([*parts, *self.notes])


@dataclasses.dataclass(frozen=True)
class EvaluationReport:
    """An evaluation of one model: heading, what was evaluated (checkpoint, versions), and what each evaluator found."""

    title: str
    facts: Mapping[str, Any]
    evaluations: Sequence[Evaluated]

    @property
    def scores(self) -> dict[str, float]:
        """All scores by their whole names."""
        return {name: value for e in self.evaluations for name, value in e.scores.items()}

    def write(self, folder: epath.PathLike) -> list[epath.Path]:
        """Writes `metrics.json`, `evaluation.html`, `predictions.jsonl`, and submissions with their side files, over
        older ones.

        Returns:
            The paths: metrics, page, predictions, submissions.
        """
        place = epath.Path(folder)
        files.save_metrics(place, metrics_json(self))
        write_page(self, place / "evaluation.html")
        files.save_predictions(place, [record for e in self.evaluations for record in e.records])
        written = [place / name for name in ("metrics.json", "evaluation.html", "predictions.jsonl")]
        for evaluated in self.evaluations:
            written += write_submission(evaluated.submission, place)
        return written


def write_submission(contents: Mapping[str, Any], folder: epath.PathLike) -> list[epath.Path]:
    """Writes files, {path: content}, into a folder, and returns their paths: a text as it is, all else as JSON."""
    place = epath.Path(folder)
    written = []
    for name, content in contents.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        indent = 2 if ".meta." in name else None
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=indent)
        (place / name).write_text(text)
        written.append(place / name)
    return written


def of_checkpoint(checkpoint: str, evaluations: Sequence[Evaluated]) -> EvaluationReport:
    """The report on a checkpoint, evaluated by this version of vadapter."""
    facts = {"checkpoint": checkpoint, **versions.here()}
    own = [dataclasses.replace(e, facts={k: v for k, v in e.facts.items() if facts.get(k) != v}) for e in evaluations]
    return EvaluationReport(f"Evaluation of {checkpoint}", facts, own)


def metrics_json(report: EvaluationReport) -> dict[str, Any]:
    """The content of `metrics.json`.

    Returns:
        `scores` by name (None where not finite), `intervals` as name -> [low, high], how those were drawn
        (`bootstrap`), the report's facts, and for each evaluator its own (`evaluations`).
    """
    bounds = {name: list(pair) for e in report.evaluations for name, pair in e.intervals.items()}
    return {
        **report.facts,
        "scores": {name: float(v) if math.isfinite(v) else None for name, v in sorted(report.scores.items())},
        "intervals": {name: pair for name, pair in sorted(bounds.items()) if all(map(math.isfinite, pair))},
        "bootstrap": {
            "level": bootstrap.LEVEL,
            "resamples": bootstrap.SAMPLES,
            "seed": 0,
            "unit": {e.name: unit(e) for e in report.evaluations},
        },
        "evaluations": {e.name: {"kind": e.kind, **e.facts} for e in report.evaluations},
    }


def unit(evaluated: Evaluated) -> str:
    """What the bootstrap draws: records of generated texts, batches of losses."""
    return "record" if evaluated.kind == "generation" else "batch"


def write_page(report: EvaluationReport, path: epath.PathLike) -> None:
    """Writes the report as one HTML file that loads nothing else. All its text is escaped, long texts are cut."""
    content = {
        "report": report,
        "style": Markup(charts.style()),
        "facts": _listed(report.facts),
        "sections": [_section(e) for e in report.evaluations],
        "samples": bootstrap.SAMPLES,
    }
    page = pages.render(Path(__file__).parent / "templates" / "evaluation.html.j2", content)
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(page.encode("utf-8"))


# --- what the page shows ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Row:
    """A score in the table. `left`, `width` and `at` place its interval and itself on a line, in percent."""

    name: str
    explanation: str
    value: str
    interval: str
    part: bool
    at: float = 0.0
    left: float = 0.0
    width: float = 0.0


@dataclasses.dataclass(frozen=True)
class _Card:
    """An example as text."""

    picture: str | None
    wide: bool
    title: str
    prediction: str
    question: str
    prompt: str
    references: list[str]
    scores: list[tuple[str, str]]
    words: Sequence[Sequence[tuple[str, float]]]


def _section(evaluated: Evaluated) -> dict[str, Any]:
    counts = {name: v for name, v in evaluated.scores.items() if _last(name) in _COUNTS}
    groups: dict[str, list[_Card]] = {}
    for example in evaluated.examples:
        what = "questions" if example.record.get("question") else "captions"
        groups.setdefault(f"{example.kind.capitalize()} {what}", []).append(_card(example))
    return {
        "name": evaluated.name,
        "kind": evaluated.kind,
        "counts": [(name.rpartition("/")[2].replace("_", " "), words.thousands(v)) for name, v in counts.items()],
        "rows": _rows(evaluated, {k: v for k, v in evaluated.scores.items() if k not in counts}),
        "reliance": _reliance(evaluated),
        "unit": unit(evaluated),
        "notes": evaluated.notes,
        "facts": _listed(evaluated.facts),
        "groups": groups,
    }


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _rows(evaluated: Evaluated, scores: Mapping[str, float]) -> list[_Row]:
    rows = []
    for name, value in scores.items():
        short = _short(name, evaluated)
        text = "–" if not math.isfinite(value) else words.figure(value, value)
        row = _Row(short, _explanation(name, evaluated), text, "–", "/" in short)
        bounds = evaluated.intervals.get(name)
        if bounds and all(map(math.isfinite, bounds)):
            low, high = bounds
            least, most = _range(name, evaluated)
            place = {"at": value - least, "left": low - least, "width": high - low}
            place = {k: 100 * v / (most - least) for k, v in place.items()}
            row = dataclasses.replace(
                row, interval=f"{words.figure(low, value)} to {words.figure(high, value)}", **place
            )
        rows.append(row)
    return rows


def _explanation(name: str, evaluated: Evaluated) -> str:
    short = name.removeprefix(f"{evaluated.name}/")
    tried = (name, short, short.partition("/")[0])
    return next((evaluated.explanations[n] for n in tried if n in evaluated.explanations), "")


def _short(name: str, evaluated: Evaluated) -> str:
    return name.removeprefix(f"{evaluated.name}/").removeprefix("reliance/")


def _range(name: str, evaluated: Evaluated) -> tuple[float, float]:
    """The ends of the line on which an interval is drawn: scores of texts share 0..1 or 0..100 where they fit, losses
    with different images share theirs."""
    same = {name} if evaluated.kind == "loss" else set(evaluated.intervals)
    if evaluated.kind == "generation":
        base = _short(name, evaluated).partition("/")[0]
        same = {n for n in same if _short(n, evaluated).partition("/")[0] == base}
    numbers = [x for n in same for x in (evaluated.scores[n], *evaluated.intervals[n]) if math.isfinite(x)]
    least, most = min(0.0, *numbers), max(numbers)
    if evaluated.kind == "generation":
        most = next((end for end in (1.0, 100.0) if most <= end), most)
    return least, most if most > least else least + 1.0


def _reliance(evaluated: Evaluated) -> str:
    """What the loss with other images says, in a sentence; empty for other evaluators."""
    gap = next((v for k, v in evaluated.scores.items() if k.endswith("reliance/shuffled_gap")), math.nan)
    if not math.isfinite(gap):
        return ""
    uses = "so its text hardly rests on what it sees" if gap < 0.02 else "so its text rests on what it sees"
    return f"Another example's image in place of the right one changes the loss by {gap:+.3f} nats a token, {uses}."


def _card(example: Example) -> _Card:
    record = example.record
    scores = [(label, f"{value:.{1 if abs(value) >= 10 else 2}f}") for label, value in example.scores]
    counted = Counter(str(text) for text in record.get("references") or ())
    texts = [f"{text} ×{times}" if times > 1 else text for text, times in counted.most_common()]
    return _Card(
        picture=example.picture,
        wide=bool(example.picture) and pictures.is_strip(example.picture),
        title=_cut(" · ".join(str(record[k]) for k in ("id", "question_type", "answer_type", "domain") if k in record)),
        prediction=_cut(str(record.get("prediction", ""))),
        question=_cut(str(record.get("question") or "")),
        prompt=_cut(str(record.get("prompt") or "")),
        references=[_cut(text) for text in texts],
        scores=scores,
        words=record.get("words") or (),
    )


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]} …"


def _listed(facts: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Facts as (name, texts): a mapping is one text a member, a list one a value."""
    listed = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            texts = [", ".join(f"{k} {v}" for k, v in value.items())]
        else:
            texts = [str(v) for v in value] if isinstance(value, (list, tuple)) else [str(value)]
        if any(texts):
            listed.append((name.replace("_", " "), [_cut(text) for text in texts]))
    return listed
