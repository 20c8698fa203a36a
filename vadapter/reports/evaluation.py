"""An evaluation as `metrics.json`, and as one self-contained HTML page with best, worst and random examples."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

import vadapter
from vadapter.base import pictures
from vadapter.evaluation import captions, metrics, submissions
from vadapter.evaluation.examples import Example
from vadapter.evaluation.metrics import Intervals
from vadapter.reports import page as report_page
from vadapter.reports import summary as report_summary

_MOST_PROMPTS = 5
_MOST_TEXT = 1500  # characters of a text that are shown
_COUNTS = ("captions", "questions", "records", "unscored", "target_tokens")
_EXPLAINED = {
    "cider": "CIDEr-D, times 100",
    "rouge_l": "ROUGE-L, times 100",
    "meteor": "METEOR, times 100",
    "spice": "SPICE, times 100",
    **{f"bleu{n}": f"BLEU-{n}, times 100" for n in range(1, 5)},
    "exact_match": "captions equal to a reference, 0 to 1",
    "vqa_accuracy": "accuracy against several people's answers",
    "vqa_accuracy_unstemmed": "the same without stemming",
    "accuracy": "share of right ones",
    "loss": "nats a target token",
    "perplexity": "exp of the loss",
    "right": "loss with the right image, nats a token",
    "shuffled": "loss with another example's image",
    "blank": "loss with a grey image",
    "shuffled_gap": "loss that another example's image adds",
    "blank_gap": "loss that a grey image adds",
}
_EXAMPLE_SCORES = {"score": "accuracy", "cider": "CIDEr", "bleu4": "BLEU-4", "rouge_l": "ROUGE-L", "meteor": "METEOR",
                   "spice": "SPICE"}  # fmt: skip


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
    """

    name: str
    kind: str
    scores: Mapping[str, float]
    intervals: Intervals = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    examples: Sequence[Example] = ()


@dataclasses.dataclass(frozen=True)
class EvaluationReport:
    """An evaluation of one model: heading, what was evaluated (checkpoint, versions), and what each evaluator found."""

    title: str
    facts: Mapping[str, Any]
    evaluations: Sequence[Evaluated]


def whole_names(evaluator: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Scores or intervals by their whole names: `cider` of the evaluator `generation` is `generation/cider`."""
    return {k if "/" in k else f"{evaluator}/{k}": v for k, v in values.items()}


def of_checkpoint(checkpoint: str, evaluations: Sequence[Evaluated]) -> EvaluationReport:
    """The report on a checkpoint, evaluated by this version of vadapter."""
    facts = {"checkpoint": checkpoint, "vadapter": vadapter.__version__, "commit": submissions.git_commit()}
    own = [dataclasses.replace(e, facts={k: v for k, v in e.facts.items() if facts.get(k) != v}) for e in evaluations]
    return EvaluationReport(f"Evaluation of {checkpoint}", facts, own)


def facts_of_texts(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What scores of generated texts that are of no benchmark depend on; `submissions.provenance` says it of one."""
    prompts = list(dict.fromkeys(str(r["prompt"]) for r in records if r.get("prompt")))
    scorers = captions.scorer_versions() | {"tokenizer": captions.PYTHON}
    return {
        "records": len(records),
        "prompts": prompts[:_MOST_PROMPTS],
        "distinct_prompts": len(prompts),
        "scorers": scorers if any("cider" in r for r in records) else {},
    }


def line(evaluated: Evaluated) -> str:
    """The scores in a line for the terminal, with their intervals."""
    parts = []
    for name, value in evaluated.scores.items():
        bounds = evaluated.intervals.get(name)
        between = f" [{bounds[0]:.4g}, {bounds[1]:.4g}]" if bounds else ""
        parts.append(f"{name.removeprefix(f'{evaluated.name}/')} {value:.4g}{between}")
    return "  ".join(parts)


def metrics_json(report: EvaluationReport) -> dict[str, Any]:
    """The content of `metrics.json`.

    Returns:
        `scores` by name (None where not finite), `intervals` as name -> [low, high], how those were drawn
        (`bootstrap`), the report's facts, and for each evaluator its own (`evaluations`).
    """
    scores = {name: value for e in report.evaluations for name, value in e.scores.items()}
    bounds = {name: list(pair) for e in report.evaluations for name, pair in e.intervals.items()}
    return {
        **report.facts,
        "scores": {name: float(v) if math.isfinite(v) else None for name, v in sorted(scores.items())},
        "intervals": {name: pair for name, pair in sorted(bounds.items()) if all(map(math.isfinite, pair))},
        "bootstrap": {
            "level": metrics.LEVEL,
            "resamples": metrics.SAMPLES,
            "seed": 0,
            "unit": {e.name: unit(e) for e in report.evaluations},
        },
        "evaluations": {e.name: {"kind": e.kind, **e.facts} for e in report.evaluations},
    }


def unit(evaluated: Evaluated) -> str:
    """What the bootstrap draws: records of generated texts, batches of losses."""
    return "record" if evaluated.kind == "generation" else "batch"


def write_evaluation(report: EvaluationReport, path: epath.PathLike) -> None:
    """Writes the report as one HTML file that loads nothing else. All its text is escaped, long texts are cut."""
    page = report_page.render(
        "evaluation.html.j2",
        report=report,
        facts=_listed(report.facts),
        sections=[_section(e) for e in report.evaluations],
        samples=metrics.SAMPLES,
    )
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


def _section(evaluated: Evaluated) -> dict[str, Any]:
    counts = {name: v for name, v in evaluated.scores.items() if _last(name) in _COUNTS}
    groups: dict[str, list[_Card]] = {}
    for example in evaluated.examples:
        what = "questions" if example.record.get("question") else "captions"
        groups.setdefault(f"{example.kind.capitalize()} {what}", []).append(_card(example))
    return {
        "name": evaluated.name,
        "kind": evaluated.kind,
        "counts": [
            (name.rpartition("/")[2].replace("_", " "), report_summary.thousands(v)) for name, v in counts.items()
        ],
        "rows": _rows(evaluated, {k: v for k, v in evaluated.scores.items() if k not in counts}),
        "reliance": _reliance(evaluated),
        "unit": unit(evaluated),
        "facts": _listed(evaluated.facts),
        "groups": groups,
    }


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _rows(evaluated: Evaluated, scores: Mapping[str, float]) -> list[_Row]:
    rows = []
    for name, value in scores.items():
        short = _short(name, evaluated)
        base = short.partition("/")[0]
        text = "–" if not math.isfinite(value) else report_summary.figure(value, value)
        row = _Row(short, _EXPLAINED.get(base, ""), text, "–", "/" in short)
        bounds = evaluated.intervals.get(name)
        if bounds and all(map(math.isfinite, bounds)):
            low, high = bounds
            least, most = _range(name, evaluated)
            place = {"at": value - least, "left": low - least, "width": high - low}
            place = {k: 100 * v / (most - least) for k, v in place.items()}
            row = dataclasses.replace(
                row, interval=f"{report_summary.figure(low, value)} to {report_summary.figure(high, value)}", **place
            )
        rows.append(row)
    return rows


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
    labels = {k: v for k, v in _EXAMPLE_SCORES.items() if k in record and not (k == "score" and "cider" in record)}
    scores = [(label, f"{record[k]:.{1 if abs(record[k]) >= 10 else 2}f}") for k, label in labels.items()]
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
