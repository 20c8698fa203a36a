"""How each benchmark scores predictions, and the file in which it wants them.

A record is a prediction with its row: `id`, `prediction`, `references` or `answers`, and what the benchmark tells
results apart by. All scores here are in percent (CIDEr times 100), as papers' tables are; a record's own score is 0..1
for an answer and CIDEr times 100 for a caption.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from vadapter.base.errors import UserError
from vadapter.evaluation import answers, captions

Record = Mapping[str, Any]
AnswerScore = Callable[[str, Sequence[str]], float]


def references(record: Record) -> list[str]:
    """The answers of a question, or the reference captions."""
    return list(record.get("answers") or record.get("references") or [])


# --- what of a generated text is the prediction ---------------------------------------------------------------------


def first_line(text: str) -> str:
    """The first line with something in it, stripped: a model that goes on has begun a new text."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


# How a model that has read examples begins the next: as those of data/prompts do, or with the usual "Question:", "Q:".
_NEXT_EXAMPLE = re.compile(r"\s+(?:Given\s+(?:Image\s+)?Question\b|(?:Image\s+)?Question\s*:|Q:).*", re.IGNORECASE)


def first_answer(text: str) -> str:
    """`first_line` up to where another example begins: a model that has read some may answer and write the next."""
    return _NEXT_EXAMPLE.sub("", first_line(text), count=1)


def plain_answer(text: str) -> str:
    """`first_answer`, lower case and without a period at its end, as the answers of exact-match benchmarks are."""
    return first_answer(text).lower().removesuffix(".").rstrip()


_LINE = "the first line with text"
_ANSWER = f"{_LINE}, up to where another example begins (Given Question, Question:, Q:)"
CLEANING: Mapping[Callable[[str], str], str] = MappingProxyType(
    {first_line: _LINE, first_answer: _ANSWER, plain_answer: f"{_ANSWER}, in lower case, without a period at its end"}
)


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a protocol found.

    Attributes:
        scalars: by name, without the benchmark's; `records` and `unscored` are counts (unscored records have no
            references).
        records: for each record its scores by name; empty for one without references.
        details: what is no number: the tokenizer, and scores that could not run, with the reason.
    """

    scalars: dict[str, float]
    records: list[dict[str, float]]
    details: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A benchmark's scores and submission format.

    Attributes:
        name: the benchmark's.
        primary: the score that papers compare.
        kind: captions or questions.
        answer_score: of a question, 0..1.
        more_scores: further scores of a question, by name.
        by: the field of a record that the primary score is given for each value of, besides the whole.
        clean: makes a generated text what is scored and submitted; one of `CLEANING`, which says it in words.
        row: a record as a row of the submission; None for a submission that is one object.
        file: name of the submission.
        as_mapping: the submission is one object, id -> prediction.
    """

    name: str
    primary: str
    row: Callable[[Record, str], dict[str, Any]]
    answer_score: AnswerScore | None = None
    more_scores: Mapping[str, AnswerScore] = dataclasses.field(default_factory=dict)
    by: str = ""
    clean: Callable[[str], str] = first_line
    file: str = "{name}_{split}_results.json"
    as_mapping: bool = False

    def score(self, records: Sequence[Record]) -> Scores:
        """Scores the records that have references."""
        scored = [i for i, record in enumerate(records) if references(record)]
        chosen = [records[i] for i in scored]
        find = self._questions if self.answer_score else self._captions
        found = find(chosen) if chosen else Scores({}, [])
        each: list[dict[str, float]] = [{} for _ in records]
        for i, scores in zip(scored, found.records, strict=True):
            each[i] = scores
        counts = {"records": float(len(records)), "unscored": float(len(records) - len(scored))}
        return Scores(found.scalars | counts, each, found.details)

    def _questions(self, records: Sequence[Record]) -> Scores:
        assert self.answer_score is not None
        scorers = {self.primary: self.answer_score, **self.more_scores}
        each = [self._answer_scores(r, scorers) for r in records]
        scalars = {name: 100 * float(np.mean([s[name] for s in each])) for name in scorers}
        values = [100 * s[self.primary] for s in each]
        for group, members in groups(records, self.by).items():
            scalars[f"{self.primary}/{group}"] = float(np.mean([values[i] for i in members]))
        return Scores(scalars, [{"score": s[self.primary], **s} for s in each])

    def _answer_scores(self, record: Record, scorers: Mapping[str, AnswerScore]) -> dict[str, float]:
        given = self.clean(record["prediction"])
        try:
            return {name: score(given, references(record)) for name, score in scorers.items()}
        except ValueError as error:
            raise UserError(
                f"{self.name}: record {record['id']} cannot be scored: {error}. Build the task from the official "
                "annotations, which have every person's answer."
            ) from error

    def _captions(self, records: Sequence[Record]) -> Scores:
        predictions = [self.clean(r["prediction"]) for r in records]
        targets = [references(r) for r in records]
        found = captions.caption_scores(predictions, targets)
        scalars = dict(found.means)
        for group, members in groups(records, self.by).items():
            part = [predictions[i] for i in members], [targets[i] for i in members]
            scalars[f"cider/{group}"] = captions.caption_scores(*part, found.tokenizer, ("cider",)).means["cider"]
        each = [{name: values[i] for name, values in found.each.items()} for i in range(len(records))]
        details = {"tokenizer": found.tokenizer} | {f"{k}_left_out": why for k, why in found.left_out.items()}
        return Scores(scalars, [{"score": s["cider"], **s} for s in each], details)

    def submission(self, records: Sequence[Record], split: str = "test") -> tuple[str, Any]:
        """The predictions in the benchmark's own format.

        Args:
            records: all predictions; those without references, too.
            split: for the file's name.

        Returns:
            (name of the file, what it has as JSON).

        Raises:
            UserError: an id comes twice, or is not what the benchmark has for ids.
        """
        counts = Counter(str(r["id"]) for r in records)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise UserError(
                f"{self.name}: a submission has one prediction for each id, but {len(twice)} ids come more than once: "
                f"{', '.join(twice[:10])}{', ...' if len(twice) > 10 else ''}. Evaluate each record once (no repeats, "
                "one task)."
            )
        file = self.file.format(name=self.name, split=split)
        if self.as_mapping:
            return file, {str(r["id"]): self.clean(r["prediction"]) for r in records}
        return file, [self._checked_row(r) for r in records]

    def _checked_row(self, record: Record) -> dict[str, Any]:
        try:
            return self.row(record, self.clean(record["prediction"]))
        except ValueError:
            raise UserError(
                f"{self.name}: ids are whole numbers in its submissions, but one is {record['id']!r}. Keep the "
                "annotation file's ids as `id` of the records."
            ) from None


def groups(records: Sequence[Record], field: str) -> dict[str, list[int]]:
    """Positions of the records by the value of a field; as part of a score's name `yes/no` is `yes-no`."""
    groups: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        if field and record.get(field):
            groups.setdefault(str(record[field]).replace("/", "-").replace(" ", "_"), []).append(i)
    return dict(sorted(groups.items()))


# --- the benchmarks -------------------------------------------------------------------------------------------------


def _row(key: str, value: str, to_id: Callable[[Any], Any]) -> Callable[[Record, str], dict[str, Any]]:
    return lambda record, text: {key: to_id(record["id"]), value: text}


def _captions(name: str, to_id: Callable[[Any], Any], **options: Any) -> Protocol:
    return Protocol(name, "cider", _row("image_id", "caption", to_id), **options)


def _questions(name: str, key: str, to_id: Callable[[Any], Any], **options: Any) -> Protocol:
    settings = {
        "answer_score": answers.vqa_accuracy,
        "row": _row(key, "answer", to_id),
        "clean": first_answer,
    } | options
    return Protocol(name, settings.pop("primary", "vqa_accuracy"), **settings)


def _exact(name: str, **options: Any) -> Protocol:
    settings = {"primary": "accuracy", "answer_score": answers.exact_accuracy, "clean": plain_answer} | options
    return _questions(name, "id", str, **settings)


_COCO_FILE = "captions_{split}_vadapter_results.json"

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        p.name: p
        for p in (
            _captions("coco_caption", int, file=_COCO_FILE),
            _captions("coco_karpathy", int, file=_COCO_FILE),
            # CIDEr of a domain counts document frequencies over that domain alone.
            _captions("nocaps", int, by="domain"),
            # No server: COCO's rows with the video's name, and VATEX's object of its challenge.
            _captions("msrvtt_caption", str),
            _captions("msvd_caption", str),
            _captions("vatex_caption", str, as_mapping=True),
            _questions("vqav2", "question_id", int, by="answer_type", file="vqa_{split}_vadapter_results.json"),
            _questions("textvqa", "question_id", int),
            # "unanswerable" is an answer like others. The server knows questions by their images.
            _questions("vizwiz_vqa", "image", str, by="answer_type"),
            _questions(
                "okvqa", "question_id", int, by="answer_type", answer_score=answers.okvqa_accuracy,
                more_scores={"vqa_accuracy_unstemmed": answers.vqa_accuracy},
            ),
            _exact("gqa", row=_row("questionId", "prediction", str), by="question_type"),
            # No server: a list with the annotation file's ids.
            _exact("msrvtt_qa", by="question_type"),
            _exact("msvd_qa", by="question_type"),
            _exact("ivqa", answer_score=answers.ivqa_accuracy),
        )
    }
)  # fmt: skip


def protocol(name: str) -> Protocol:
    """Returns a benchmark's protocol.

    Raises:
        UserError: no benchmark has that name.
    """
    if name not in PROTOCOLS:
        raise UserError(f"There is no benchmark {name!r}; expected one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
