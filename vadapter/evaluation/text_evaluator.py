"""The evaluator of generated captions and answers.

It works in three steps: `predict` generates, `score` scores what was generated, and `examples` chooses what to show.
A call does the first two. Whoever must not lose hours of generation to a scorer that fails takes them one by one.

With several processes each generates its part of a global batch, and the records are gathered as text. Every process
must see the same number of batches; the loader pads its last one with rows that are not valid.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from vadapter.base.array_types import PyTree
from vadapter.base.batch import Batch
from vadapter.base.evaluator import EvalResult
from vadapter.base.pictures import Pictures, data_uri, strip
from vadapter.evaluation.examples import Example, choose
from vadapter.evaluation.loss_evaluators import Batches, Row
from vadapter.evaluation.scoring import PLAIN, Scoring, facts
from vadapter.generation.stream import Stream
from vadapter.generation.words import Words
from vadapter.partitioning.gather import gather_records, is_first_with_its_rows, local_rows

# What a record keeps of its row, where it is there.
_TEXTS = ("task", "prompt", "question", "question_type", "answer_type", "domain", "image")
_IMAGES = 8  # pictures with predictions among the results
_THUMBNAILS = 64  # records that carry their picture, and the words of its soft tokens; they are the first ones


class Vocabulary(Protocol):
    """The part of a seqio vocabulary that is used here."""

    def decode(self, ids: Any) -> str: ...


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model generated.

    Attributes:
        records: of all processes, not scored: `id`, `prediction`, `references`, and what the row told of itself.
        skipped: `id`, `task` and `error` of each record whose image or video could not be read.
        images: some pictures with their predictions, (uint8 [h, w, 3], text).
        pictures: of this process's records, which name theirs as "picture"; None where none were asked for.
    """

    records: list[dict[str, Any]]
    skipped: list[dict[str, str]]
    images: list[tuple[np.ndarray, str]]
    pictures: Pictures | None = None


@dataclasses.dataclass
class GenerationEvaluator:
    """Generated captions and answers, their scores, and some to look at.

    A row with a "question" is scored as an answer, any other as a caption.

    Attributes:
        generate: jitted `(params, batch on the device) -> ids [B, max_new_tokens]`, negative after the end.
        batches: gives an iterator of (decoding batch with numpy leaves, its rows). Rows are dicts with "id",
            "references", "valid", and "task", "question", "question_type", "answers", "thumbnail" (uint8 [F, h, w, 3])
            where there are such. A row that is not valid has in "error" why it cannot be read; one without is padding.
        put: puts a batch on the device.
        vocabulary: decodes a list of ids.
        scoring: how texts are scored; a benchmark's `Protocol` is one.
        words: gives the nearest words of each soft token of a batch's rows, for the records that carry their picture;
            None leaves them out. See `vadapter.generation.words`.
        stream: decodes all batches in place of `generate`, and replaces rows that end by those of later batches; see
            `vadapter.generation.stream`. Of one process. None decodes batch by batch.
        name, every_steps: see `vadapter.base.evaluator.Evaluator`.
    """

    generate: Callable[[PyTree, Any], Any]
    batches: Batches
    put: Callable[[Batch], Any]
    vocabulary: Vocabulary
    scoring: Scoring = PLAIN
    name: str = "generate"
    every_steps: int | None = None
    words: Words | None = None
    stream: Stream | None = None

    @property
    def scalar_names(self) -> Sequence[str]:
        """See `vadapter.base.evaluator.Evaluator`; `*` stands for the groups of records."""
        return list(self._named(dict.fromkeys(self.scoring.scalar_names)))

    def __call__(self, params: PyTree) -> EvalResult:
        """Scalars as `Scoring.score` gives them: of data without a benchmark `cider` (times 100), `exact_match`,
        `vqa_accuracy` and `vqa_accuracy/<question type>` (0..1), `captions` and `questions` (counts). A score with
        nothing to score is left out. Those of a benchmark are `<benchmark>/<score>`."""
        return self.score(self.predict(params))

    def predict(self, params: PyTree, pictures: Pictures | None = None) -> Predictions:
        """Generates a text for each row.

        Args:
            params: all parameters, on the device.
            pictures: filled with the pictures of all records, for `examples`.
        """
        records: list[dict[str, Any]] = []
        skipped: list[dict[str, Any]] = []
        images: list[tuple[np.ndarray, str]] = []
        counts, seen = True, 0
        for batch, rows, names, ids, own in self._texts(params, pictures):
            counts = own
            # All processes search together, so what counts is rows, of which each has as many.
            words = self._words_of(params, batch, len(rows)) if seen < _THUMBNAILS else [None] * len(rows)
            seen += len(rows)
            for row, row_ids, name, near in zip(rows, ids, names, words, strict=True):
                if not row.get("valid", True):
                    if row.get("error"):
                        skipped.append({"id": str(row["id"]), "task": str(row.get("task", "")), "error": row["error"]})
                        if self.scoring.keeps_skipped:
                            records.append(_record(row, "", False) | {"skipped": row["error"]})
                    continue
                record = _record(row, text_of(row_ids, self.vocabulary), len(records) < _THUMBNAILS)
                record |= {"words": near} if near and "thumbnail" in record else {}
                records.append(record | ({"picture": name} if name else {}))
                if len(images) < _IMAGES and row.get("thumbnail") is not None:
                    images.append((strip(row["thumbnail"]), _caption_under(record)))
        records, skipped = (gather_records(found if counts else []) for found in (records, skipped))  # each record once
        return Predictions(records, skipped, images, pictures)

    def _texts(
        self, params: PyTree, pictures: Pictures | None
    ) -> Iterator[tuple[Batch, Sequence[Row], list[str | None], np.ndarray, bool]]:
        """Each batch, its rows, the names of their pictures, ids, and whether this process's records count."""
        if self.stream is not None:
            named = ((b, (b, rows, [_keep_picture(row, pictures) for row in rows])) for b, rows in self.batches())
            for ids, (batch, rows, names) in self.stream(params, named):
                yield batch, rows, names, ids, True
            return
        for batch, rows in self.batches():
            on_device = self.generate(params, self.put(batch))
            names = [_keep_picture(row, pictures) for row in rows]  # while the device generates
            yield batch, rows, names, local_rows(on_device), is_first_with_its_rows(on_device)

    def _words_of(self, params: PyTree, batch: Batch, count: int) -> Sequence[list | None]:
        """The nearest words of `count` rows, as records keep them; None where they are not asked for."""
        if self.words is None:
            return [None] * count
        found = self.words(params, self.put(batch))
        return [[[[text, round(x, 3)] for text, x in token] for token in row] for row in found]

    def score(self, predictions: Predictions) -> EvalResult:
        """Scores the records in place.

        Raises:
            UserError: as `Scoring.score`.
        """
        found = self.scoring.score(predictions.records)
        for record, scores in zip(predictions.records, found.records, strict=True):
            record.update(scores)
        return EvalResult(
            self._named(found.scalars),
            predictions.images,
            predictions.records,
            lambda: self._named(found.intervals()),
            {m.name: m.explanation for m in self.scoring.metrics},
            lambda: facts(self.scoring, predictions.records, found, predictions.skipped) | found.details,
            [*found.notes, *self._of_skipped(predictions)],
        )

    def _named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{self.scoring.name}/{k}": v for k, v in values.items()} if self.scoring.name else dict(values)

    def _of_skipped(self, predictions: Predictions) -> list[str]:
        ids = [row["id"] for row in predictions.skipped]
        if not ids:
            return []
        shown = ", ".join(ids[:10]) + (", ..." if len(ids) > 10 else "")
        counted = (
            "they have an empty prediction, which is scored" if self.scoring.keeps_skipped else "they do not count"
        )
        return [f"{len(ids)} records have an image or video that cannot be read ({shown}): {counted}."]

    def examples(self, predictions: Predictions, count: int, seed: int = 0) -> list[Example]:
        """The best, the worst and random records, `count` of each, with their pictures. See `examples.choose`.

        All processes must call it together: each has the pictures of its own rows.
        """
        chosen = choose(predictions.records, count, self.scoring.rank, seed)
        wanted = {e.record["picture"] for e in chosen if "picture" in e.record}
        here = {name: predictions.pictures.uri(name) for name in wanted} if predictions.pictures else {}
        found = gather_records([{"name": name, "uri": uri} for name, uri in sorted(here.items()) if uri])
        uris = {row["name"]: row["uri"] for row in found}
        return [
            dataclasses.replace(e, scores=self._shown(e.record), picture=uris.get(e.record.get("picture")))
            for e in chosen
        ]

    def _shown(self, record: Mapping[str, Any]) -> Sequence[tuple[str, float]]:
        metrics = self.scoring.of_kind(self.scoring.kind(record))
        return [(m.label, float(record[m.name])) for m in metrics if m.on_cards and m.name in record]


def _keep_picture(row: Row, pictures: Pictures | None) -> str | None:
    media = row.get("thumbnail")
    if pictures is None or media is None or not np.size(media) or not row.get("valid", True):
        return None
    return pictures.add(media)


def _record(row: Row, prediction: str, with_thumbnail: bool) -> dict[str, Any]:
    record: dict[str, Any] = {"id": str(row["id"]), "prediction": prediction}
    record |= {key: str(row[key]) for key in _TEXTS if row.get(key)}
    record |= {"options": list(row["options"])} if row.get("options") else {}
    answers = row.get("answers") if "question" in record else None
    record["references"] = list(answers or row.get("references") or [])
    if with_thumbnail and row.get("thumbnail") is not None and np.size(row["thumbnail"]):
        record["thumbnail"] = data_uri(row["thumbnail"])
    return record


def _caption_under(record: Mapping[str, Any]) -> str:
    question = f"{record['question']} " if "question" in record else ""
    reference = record["references"][0] if record["references"] else ""
    return f"{question}-> {record['prediction']} (reference: {reference})"


def text_of(ids: np.ndarray, vocabulary: Vocabulary) -> str:
    """Decodes ids up to the first negative or end-of-sequence id (the vocabulary's `eos_id`, if it has one)."""
    eos = getattr(vocabulary, "eos_id", None)
    kept = list(itertools.takewhile(lambda i: i >= 0 and i != eos, (int(i) for i in ids)))
    return str(vocabulary.decode(kept)).strip() if kept else ""
