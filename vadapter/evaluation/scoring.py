"""How generated texts are scored: which metrics, of what part of a text, and by which groups of records.

A record is a prediction with its row: `id`, `prediction`, `references` or `answers`, `question` where it is one, and
what results are told apart by. A benchmark's `Protocol` is a `Scoring` that also writes its submission; `PLAIN` scores
all other data.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from vadapter.base.errors import UserError
from vadapter.evaluation import answers, captions, tokens
from vadapter.evaluation.bootstrap import Intervals
from vadapter.evaluation.metrics import KINDS, Kind, Metric, Texts

Record = Mapping[str, Any]


def references(record: Record) -> list[str]:
    """The answers of a question, or the reference captions."""
    return list(record.get("answers") or record.get("references") or [])


# --- what of a generated text is the prediction ---------------------------------------------------------------------


def whole_text(text: str) -> str:
    """The whole text."""
    return text


def first_line(text: str) -> str:
    """The first line with something in it, stripped: a model that goes on has begun a new text."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


# How a model that has read examples begins the next: as those of data/prompts do, or with the usual "Question:", "Q:".
_NEXT_EXAMPLE = re.compile(r"\s+(?:Given\s+(?:Image\s+)?Question\b|(?:Image\s+)?Question\s*:|Q:).*", re.IGNORECASE)


def first_answer(text: str) -> str:
    """`first_line` up to where another example begins: a model that has read some may answer and write the next."""
    return _NEXT_EXAMPLE.sub("", first_line(text), count=1)


def whole_answer(text: str) -> str:
    """The whole text up to where another example begins, stripped: for programs that look for an answer in a text."""
    found = _NEXT_EXAMPLE.search(text)
    return (text[: found.start()] if found else text).strip()


def plain_answer(text: str) -> str:
    """`first_answer`, lower case and without a period at its end, as the answers of exact-match benchmarks are."""
    return first_answer(text).lower().removesuffix(".").rstrip()


_LINE = "the first line with text"
_ANSWER = f"{_LINE}, up to where another example begins (Given Question, Question:, Q:)"
_CLEANING: Mapping[Callable[[str], str], str] = MappingProxyType(
    {
        whole_text: "the whole text",
        first_line: _LINE,
        first_answer: _ANSWER,
        whole_answer: "the whole text, up to where another example begins (Given Question, Question:, Q:)",
        plain_answer: f"{_ANSWER}, in lower case, without a period at its end",
    }
)


def cleaning_in_words(clean: Callable[[str], str]) -> str:
    """What a function takes of a text: of one of a user's own the first line of its docstring, or else its name."""
    own = (clean.__doc__ or getattr(clean, "__name__", type(clean).__name__)).strip().splitlines()[0]
    return _CLEANING.get(clean, own)


# --- what was found ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Measured:
    """A metric on a set of records.

    Attributes:
        name: of the scalar: the metric's, or with a group's, as in `cider/near-domain`.
        metric: which.
        texts: of the records.
        value: the score of the set.
        each: the score of each record.
    """

    name: str
    metric: Metric
    texts: Texts
    value: float
    each: Sequence[float]

    def interval(self, seed: int = 0) -> tuple[float, float] | None:
        """The 95% interval of the value; None where the metric has none."""
        if self.metric.interval is None:
            return None
        bounds = self.metric.interval(self.texts, [self.metric.scale * v for v in self.each], seed)
        return None if np.isnan(bounds).all() else bounds


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a scoring found.

    Attributes:
        measured: each metric on all records, and the first ones also by group.
        counts: of records, by name.
        records: for each record its scores by name, and the one that it is shown by as `score`; empty for one without
            references.
        details: what is no number: the tokenizer, and as `<metric>_left_out` why a metric did not run.
        notes: sentences that belong beside the scores.
    """

    measured: list[Measured]
    counts: dict[str, float]
    records: list[dict[str, float]]
    details: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def scalars(self) -> dict[str, float]:
        """Scores and counts by name."""
        return {m.name: m.value for m in self.measured} | self.counts

    def intervals(self, seed: int = 0) -> Intervals:
        """95% bootstrap intervals by name. `seed` is that of the draws."""
        found = {m.name: m.interval(seed) for m in self.measured}
        return {name: bounds for name, bounds in found.items() if bounds}


# --- scoring ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scoring:
    """How records are scored.

    Attributes:
        metrics: all of them. The first of captions, and the first of answers, ranks records and is given by group.
        name: precedes the names of scalars, as in `vqav2/vqa_accuracy`; "" for none.
        by: field of a record, or several; the first metrics are also given for each of its values. Questions without
            a benchmark that have none of them are told apart by their answers: yes/no, number, other.
        clean: makes a generated text what is scored.
        shown: the metric whose value is a record's `score`, where that is not the first of its kind.
        tokenizer: of captions: `ptb-java`, `python`, or None for Java where it is.
        keeps_skipped: a record whose image or video cannot be read counts, with an empty prediction.
    """

    metrics: tuple[Metric, ...]
    name: str = ""
    by: str | tuple[str, ...] = ""
    clean: Callable[[str], str] = whole_text
    shown: str = ""
    tokenizer: str | None = None
    keeps_skipped: bool = False

    def having(self, more: Sequence[Metric]) -> "Scoring":
        """The same with more metrics; those that it has already are not added."""
        own = {m.name for m in self.metrics}
        return dataclasses.replace(self, metrics=(*self.metrics, *(m for m in more if m.name not in own)))

    def kind(self, record: Record) -> Kind:
        """Whether a record is a caption or an answer. All are the same where all metrics are of one kind."""
        if len({m.of for m in self.metrics}) == 1:
            return self.metrics[0].of
        return "answers" if "question" in record else "captions"

    def of_kind(self, kind: Kind) -> list[Metric]:
        """The metrics of captions, or of answers."""
        return [m for m in self.metrics if m.of == kind]

    @property
    def scalar_names(self) -> list[str]:
        """Names of the scores that there may be; `*` stands for the groups of records."""
        names = [metric.name for metric in self.metrics]
        ranking = [self.of_kind(kind)[0].name for kind in KINDS if self.of_kind(kind)]
        groups = [f"{name}/*" for name in ranking] if self.by else []
        return [*names, *groups, *(("records", "unscored") if self.name else ("captions", "questions"))]

    def rank(self, record: Record) -> float | None:
        """What a scored record is ranked by, more is better; None where it has no score."""
        first = next(iter(self.of_kind(self.kind(record))), None)
        value = record.get(first.name if first else "score")
        if value is None:
            return None
        return float(value) if first is None or first.higher_is_better else -float(value)

    def score(self, records: Sequence[Record]) -> Scores:
        """Scores the records that have references.

        A metric that cannot run, or fails, is left out, and `details` has the reason.

        Raises:
            UserError: a record cannot be scored: it lacks what the metric needs.
        """
        found = Scores([], {}, [{} for _ in records])
        members: dict[Kind, list[int]] = {
            kind: [i for i, r in enumerate(records) if self.kind(r) == kind and references(r)] for kind in KINDS
        }
        for kind, places in members.items():
            if places and self.of_kind(kind):
                self._score_kind(kind, records, places, found)
        scored = {kind: float(len(places)) for kind, places in members.items()}
        if self.name:
            total = float(len(records))
            found.counts.update(records=total, unscored=total - sum(scored.values()))
        else:
            found.counts.update(captions=scored["captions"], questions=scored["answers"])
        return found

    def _score_kind(self, kind: Kind, records: Sequence[Record], places: list[int], found: Scores) -> None:
        chosen = [records[i] for i in places]
        tokenizer = tokens.PYTHON if kind == "answers" else self.tokenizer or tokens.best_tokenizer()
        predictions = [self.clean(r["prediction"]) for r in chosen]
        texts = Texts(predictions, [references(r) for r in chosen], tokenizer, chosen)
        if kind == "captions":
            found.details["tokenizer"] = tokenizer
        metrics = self.of_kind(kind)
        for metric in metrics:
            try:
                new = self._measure(metric, chosen, texts, by_group=metric is metrics[0])
            except _LeftOut as reason:
                found.details[f"{metric.name}_left_out"] = str(reason)
                tokens.say_once(f"{metric.name} is left out: {reason}")
                continue
            found.measured.extend(new)
            for i, value in zip(places, new[0].each, strict=True):
                found.records[i][metric.name] = value
            if len(chosen) < metric.least:
                found.notes.append(
                    f"{metric.label} of {len(chosen)} record says nothing: it needs at least {metric.least}."
                )
        shown = next((m.name for m in metrics if m.name == self.shown), metrics[0].name)
        for i in places:
            if shown in found.records[i]:
                found.records[i]["score"] = found.records[i][shown]

    def _measure(self, metric: Metric, records: Sequence[Record], texts: Texts, by_group: bool) -> list[Measured]:
        """The metric on all records, then by group."""
        if reason := metric.missing():
            raise _LeftOut(reason)
        try:
            whole = self._of_set(metric, metric.name, records, texts)
            found = [whole]
            fields = (self.by,) if isinstance(self.by, str) else self.by
            parts = [groups(records, field) for field in fields if by_group]
            if by_group and not self.name and metric.of == "answers" and not any(parts):
                parts = [_by_kind(records)]
            for group, members in (pair for one in parts for pair in one.items()):
                name, part = f"{metric.name}/{group}", texts.part(members)
                if metric.score is None:
                    found.append(self._of_set(metric, name, [], part))  # counts within the group alone
                else:
                    each = [whole.each[i] for i in members]
                    value = float(np.mean([metric.scale * v for v in each]))
                    found.append(Measured(name, metric, part, value, each))
        except UserError:
            raise
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise _LeftOut(f"it failed: {lines[-1] if lines else type(error).__name__}") from error
        return found

    def _of_set(self, metric: Metric, name: str, records: Sequence[Record], texts: Texts) -> Measured:
        if metric.score_set is not None:
            value, values = metric.score_set(texts)
            return Measured(name, metric, texts, float(value), [float(v) for v in values])
        each = [
            self._of_record(metric, record, text, refs)
            for record, text, refs in zip(records, texts.predictions, texts.references, strict=True)
        ]
        return Measured(name, metric, texts, metric.scale * float(np.mean(each)), each)

    def _of_record(self, metric: Metric, record: Record, text: str, refs: Sequence[str]) -> float:
        assert metric.score is not None
        try:
            return float(metric.score(text, refs))
        except ValueError as error:
            advice = (
                "Build the task from the official annotations, which have every person's answer."
                if self.name
                else "Correct the record, or take the metric out of Evaluation.metrics."
            )
            raise UserError(
                f"{self.name or metric.name}: record {record['id']} cannot be scored: {error}. {advice}"
            ) from error


class _LeftOut(Exception):
    """Why a metric has no value."""


PLAIN = Scoring(
    metrics=(captions.CIDER, captions.EXACT_MATCH, answers.ANSWERS),
    by="question_type",
    shown=captions.EXACT_MATCH.name,
    tokenizer=tokens.PYTHON,  # in training no program is started
)


def groups(records: Sequence[Record], field: str) -> dict[str, list[int]]:
    """Positions of the records by the value of a field; as part of a score's name `yes/no` is `yes-no`."""
    found: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        if field and record.get(field):
            found.setdefault(str(record[field]).replace("/", "-").replace(" ", "_"), []).append(i)
    return dict(sorted(found.items()))


def _by_kind(records: Sequence[Record]) -> dict[str, list[int]]:
    """Positions of the records by the kind of their answers. Nothing where all are of one kind, which tells no more."""
    found = groups([{"kind": answers.kind_of(references(record))} for record in records], "kind")
    return found if len(found) > 1 else {}


# --- what scores depend on --------------------------------------------------------------------------------------------

_MOST_PROMPTS = 5


def facts(
    scoring: Scoring, records: Sequence[Record], scores: Scores, skipped: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """What the scores of generated texts depend on, JSON-serialisable.

    Args:
        scoring: that scored them.
        records: all of them.
        scores: what it found.
        skipped: `id` and `error` of each record whose image or video could not be read.

    Returns:
        Counts and ids, what of a text was scored, versions of the scorers, and prompts: the distinct ones, at most 5,
        and how many there are, as those of questions differ by question.
    """
    prompts = list(dict.fromkeys(str(r["prompt"]) for r in records if r.get("prompt")))
    versions: dict[str, str] = {}
    for measured in scores.measured:
        versions |= measured.metric.versions()
    return {
        "records": len(records),
        "skipped": len(skipped),
        "skipped_ids": [str(row["id"]) for row in skipped],
        "prompts": prompts[:_MOST_PROMPTS],
        "distinct_prompts": len(prompts),
        "prediction": cleaning_in_words(scoring.clean),
        "scorers": versions | ({"tokenizer": scores.details["tokenizer"]} if "tokenizer" in scores.details else {}),
    }
