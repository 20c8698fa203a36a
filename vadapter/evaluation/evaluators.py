"""Evaluators: loss, generated text, and how much the loss leans on the image.

Each is handed its parts (jitted functions, batches, a vocabulary) and needs neither the loop nor the data package, so
it works in training (the loop calls it every so often) and alone (`vadapter eval`).

With several processes each holds its part of a global batch. The jitted `loss_sums` returns sums over the *global*
batch, the same on all processes, so losses need nothing more. Generated rows are gathered as text (`gather_records`).
Every process must see the same number of batches; the loader pads its last one with rows that are not valid.

After a call, `intervals()` gives 95% bootstrap intervals of its scalars. Generated texts are resampled by record. Of
losses only the sums of batches are known, so batches are resampled, and there must be `MIN_BATCHES` of them.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from vadapter.base.array_types import PyTree
from vadapter.base.batch import Batch
from vadapter.base.evaluator import EvalResult
from vadapter.base.pictures import Pictures, data_uri, strip
from vadapter.evaluation import answers, captions, intervals, metrics, protocols
from vadapter.evaluation.examples import Example, choose
from vadapter.evaluation.metrics import Intervals

Row = Mapping[str, Any]
Batches = Callable[[], Iterator[tuple[Batch, Sequence[Row]]]]


class Sums(Protocol):
    """Sums over the targets of a global batch, as the loss functions return them."""

    @property
    def loss_sum(self) -> Any: ...
    @property
    def weight_sum(self) -> Any: ...
    @property
    def correct_sum(self) -> Any: ...


LossFn = Callable[[PyTree, Any], Sums]
MIN_BATCHES = 20


class Vocabulary(Protocol):
    """The part of a seqio vocabulary that is used here."""

    def decode(self, ids: Any) -> str: ...


def _means(totals: np.ndarray) -> tuple[float, float]:
    """(mean loss, accuracy) of [loss_sum, weight_sum, correct_sum]; nan where nothing was counted."""
    loss, weight, correct = (float(t) for t in totals)
    return (loss / weight, correct / weight) if weight > 0 else (float("nan"), float("nan"))


def _sums(loss_sums: LossFn, params: PyTree, batch: Any) -> np.ndarray:
    sums = loss_sums(params, batch)
    return np.array([float(sums.loss_sum), float(sums.weight_sum), float(sums.correct_sum)], np.float64)


@dataclasses.dataclass
class LossEvaluator:
    """Mean loss (nats a target token), accuracy of the next token, and perplexity.

    Attributes:
        loss_sums: jitted `(params, batch on the device) -> sums over the global batch`.
        batches: gives an iterator of (batch with numpy leaves, its rows); always the same examples.
        put: puts a batch on the device.
        max_batches: batches to use; None uses all.
        name, every_steps: see `vadapter.base.evaluator.Evaluator`.
    """

    loss_sums: LossFn
    batches: Batches
    put: Callable[[Batch], Any]
    max_batches: int | None = None
    name: str = "val"
    every_steps: int | None = None
    _of_batches: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 3)), init=False, repr=False)

    def __call__(self, params: PyTree) -> EvalResult:
        """Scalars `loss`, `accuracy`, `perplexity` and `target_tokens`."""
        batches = itertools.islice(self.batches(), self.max_batches)
        self._of_batches = _stacked([_sums(self.loss_sums, params, self.put(batch)) for batch, _ in batches], (3,))
        totals = self._of_batches.sum(axis=0)
        loss, accuracy = _means(totals)
        scalars = {
            "loss": loss,
            "accuracy": accuracy,
            "perplexity": metrics.perplexity(totals[0], totals[1]),
            "target_tokens": float(totals[1]),
        }
        return EvalResult(scalars)

    def intervals(self) -> Intervals:
        """95% intervals of `loss`, `accuracy` and `perplexity` of the last call."""

        def scores(sums: np.ndarray) -> np.ndarray:
            loss = sums[:, 0] / sums[:, 1]
            return np.stack([loss, sums[:, 2] / sums[:, 1], np.exp(loss)], axis=1)

        return _batch_intervals(self._of_batches, ("loss", "accuracy", "perplexity"), scores)


@dataclasses.dataclass
class RelianceEvaluator:
    """Image reliance: the loss with the right, a shuffled and a blank image, on the same rows and targets.

    A model that reads its images does worse without the right one; gaps near zero mean that it answers from the text
    alone. The shuffled image is another row's of the same batch, and never one with the same pixels (two questions
    about one scene share their image). Rows for which the batch has no other image, and rows without an image, count
    in none of the three.

    Attributes:
        blank: pixel value of the blank image; mid-grey, which most encoders see as zero.
        others: as in `LossEvaluator`.
    """

    loss_sums: LossFn
    batches: Batches
    put: Callable[[Batch], Any]
    max_batches: int | None = None
    blank: int = 127
    name: str = "reliance"
    every_steps: int | None = None
    _of_batches: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 3, 3)), init=False, repr=False)

    def __call__(self, params: PyTree) -> EvalResult:
        """Scalars `reliance/right`, `/shuffled`, `/blank` (mean losses), `/shuffled_gap` and `/blank_gap` (the
        shuffled and the blank loss less the right one)."""
        found = []
        for batch, rows in itertools.islice(self.batches(), self.max_batches):
            right = np.asarray(batch.media)
            if right.shape[1] == 0:
                continue
            source = other_image(right, usable_rows(batch, rows))
            weights = np.where(source[:, None] >= 0, batch.target_weights, 0.0)
            sums = []
            for media in (right, right[np.maximum(source, 0)], np.full_like(right, self.blank)):
                variant: Any = dataclasses.replace(batch, media=media, target_weights=weights)
                sums.append(_sums(self.loss_sums, params, self.put(variant)))
            found.append(np.stack(sums))
        self._of_batches = _stacked(found, (3, 3))
        scalars = dict(
            zip(("right", "shuffled", "blank"), (_means(t)[0] for t in self._of_batches.sum(axis=0)), strict=True)
        )
        scalars |= {f"{kind}_gap": scalars[kind] - scalars["right"] for kind in ("shuffled", "blank")}
        return EvalResult({f"reliance/{k}": v for k, v in scalars.items()})

    def intervals(self) -> Intervals:
        """95% intervals of the scalars of the last call. A draw has the same batches with each image."""

        def scores(sums: np.ndarray) -> np.ndarray:
            right, shuffled, blank = (sums[:, 3 * i] / sums[:, 3 * i + 1] for i in range(3))
            return np.stack([right, shuffled, blank, shuffled - right, blank - right], axis=1)

        names = [f"reliance/{kind}" for kind in ("right", "shuffled", "blank", "shuffled_gap", "blank_gap")]
        return _batch_intervals(self._of_batches.reshape(-1, 9), names, scores)


def _stacked(sums: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    return np.stack(sums) if sums else np.zeros((0, *shape))


def _batch_intervals(sums: np.ndarray, names: Sequence[str], scores: Callable[[np.ndarray], np.ndarray]) -> Intervals:
    """Intervals by name, with batches [n, k] resampled; none where too few batches have anything to count."""
    counted = sums[sums[:, 1] > 0]
    if len(counted) < MIN_BATCHES:
        return {}
    bounds = metrics.bootstrap_sums(counted, scores)
    return {name: (float(low), float(high)) for name, (low, high) in zip(names, bounds.T, strict=True)}


def usable_rows(batch: Batch, rows: Sequence[Row]) -> np.ndarray:
    """Bool [B]: rows that are valid and have a target in the loss."""
    valid = np.array([bool(row.get("valid", True)) for row in rows], bool)
    return valid & (np.asarray(batch.target_weights) > 0).any(axis=1)


def other_image(media: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Finds for each row the next usable row, going round, whose media are not the same pixels.

    Args:
        media: uint8 [B, M, F, h, w, C].
        usable: bool [B].

    Returns:
        int [B]: the other row, or -1 where the row is not usable or no other image exists.
    """
    order = np.flatnonzero(usable)
    content = {int(row): media[row].tobytes() for row in order}
    source = np.full(len(usable), -1)
    for at, row in enumerate(order):
        for other in np.roll(order, -at)[1:]:
            if content[int(other)] != content[int(row)]:
                source[row] = other
                break
    return source


# What a record keeps of its row, where it is there.
_TEXTS = ("task", "prompt", "question", "question_type", "answer_type", "domain", "image")


@dataclasses.dataclass
class GenerationEvaluator:
    """Generated captions and answers, their scores, and some to look at.

    Batches often come task by task, so limit the examples of each task where the batches are made, not `max_batches`.
    A row with a "question" is scored as an answer, any other as a caption.

    Attributes:
        generate: jitted `(params, batch on the device) -> ids [B, max_new_tokens]`, 0 after the end.
        batches: gives an iterator of (decoding batch with numpy leaves, its rows). Rows are dicts with "id",
            "references", "valid", and "task", "question", "question_type", "answers", "thumbnail" (uint8 [F, h, w, 3])
            where there are such.
        put: puts a batch on the device.
        vocabulary: decodes a list of ids.
        max_batches: batches to use; None uses all.
        num_images: pictures with predictions among the results.
        num_thumbnails: records that carry their picture; they are the first ones.
        protocol: the benchmark that the rows are of, which scores them; None scores each row as what it is.
        pictures: where given, it is filled with the pictures of all records, which then name theirs as "picture".
        details: of the last evaluation by a protocol, what is no number (see `protocols.Scores`).
    """

    generate: Callable[[PyTree, Any], Any]
    batches: Batches
    put: Callable[[Batch], Any]
    vocabulary: Vocabulary
    max_batches: int | None = None
    num_images: int = 8
    num_thumbnails: int = 64
    protocol: protocols.Protocol | None = None
    name: str = "generate"
    every_steps: int | None = None
    pictures: Pictures | None = None
    details: dict[str, str] = dataclasses.field(default_factory=dict, init=False)
    _records: list[dict[str, Any]] = dataclasses.field(default_factory=list, init=False, repr=False)

    def __call__(self, params: PyTree) -> EvalResult:
        """Scalars `cider` (times 100), `exact_match`, `vqa_accuracy` and `vqa_accuracy/<question type>` (0..1),
        `captions` and `questions` (counts); a score with nothing to score is left out. Records as `score_records`
        makes them. With a protocol, its scalars as `<benchmark>/<score>` (in percent) and its scores of each record."""
        records: list[dict[str, Any]] = []
        images: list[tuple[np.ndarray, str]] = []
        counts = True
        for batch, rows in itertools.islice(self.batches(), self.max_batches):
            on_device = self.generate(params, self.put(batch))
            counts = is_first_with_its_rows(on_device)
            names = [self._keep_picture(row) for row in rows]  # while the device generates
            for row, row_ids, name in zip(rows, local_rows(on_device), names, strict=True):
                if not row.get("valid", True):
                    continue
                record = self._record(row, text_of(row_ids, self.vocabulary), len(records) < self.num_thumbnails)
                records.append(record | ({"picture": name} if name else {}))
                if len(images) < self.num_images and row.get("thumbnail") is not None:
                    images.append((strip(row["thumbnail"]), _caption_under(record)))
        self._records = gather_records(records if counts else [])  # each record once
        return EvalResult(self._scored(self._records), images, self._records)

    def intervals(self) -> Intervals:
        """95% intervals of the scores of the last call, by the names of its scalars."""
        if self.protocol is None:
            return intervals.of_plain(self._records)
        found = intervals.of_benchmark(self.protocol, self._records, self.details.get("tokenizer", captions.PYTHON))
        return {f"{self.protocol.name}/{name}": bounds for name, bounds in found.items()}

    def examples(self, count: int, seed: int = 0) -> list[Example]:
        """The best, the worst and random records of the last call, `count` of each, with their pictures.

        All processes must call it together: each has the pictures of its own rows. See `examples.choose`.
        """
        chosen = choose(self._records, count, seed)
        wanted = {e.record["picture"] for e in chosen if "picture" in e.record}
        here = {name: self.pictures.uri(name) for name in wanted} if self.pictures else {}
        found = gather_records([{"name": name, "uri": uri} for name, uri in sorted(here.items()) if uri])
        uris = {row["name"]: row["uri"] for row in found}
        return [dataclasses.replace(e, picture=uris.get(e.record.get("picture"))) for e in chosen]

    def _keep_picture(self, row: Row) -> str | None:
        media = row.get("thumbnail")
        if self.pictures is None or media is None or not np.size(media) or not row.get("valid", True):
            return None
        return self.pictures.add(media)

    def _scored(self, records: list[dict[str, Any]]) -> dict[str, float]:
        """Scores the records in place and returns the scalars."""
        if self.protocol is None:
            return score_records(records)
        found = self.protocol.score(records)
        for record, scores in zip(records, found.records, strict=True):
            record.update(scores)
        self.details = found.details
        return {f"{self.protocol.name}/{name}": value for name, value in found.scalars.items()}

    def _record(self, row: Row, prediction: str, with_thumbnail: bool) -> dict[str, Any]:
        record: dict[str, Any] = {"id": str(row["id"]), "prediction": prediction}
        record |= {key: str(row[key]) for key in _TEXTS if row.get(key)}
        answers = row.get("answers") if "question" in record else None
        record["references"] = list(answers or row.get("references") or [])
        if with_thumbnail and row.get("thumbnail") is not None and np.size(row["thumbnail"]):
            record["thumbnail"] = data_uri(row["thumbnail"])
        return record


def _caption_under(record: Mapping[str, Any]) -> str:
    question = f"{record['question']} " if "question" in record else ""
    reference = record["references"][0] if record["references"] else ""
    return f"{question}-> {record['prediction']} (reference: {reference})"


def score_records(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Scores records in place and returns the mean scores.

    Each record gets "score" (0..1; VQA accuracy of an answer, exact match of a caption) and captions get "cider".
    """
    captioned = [r for r in records if "question" not in r and r["references"]]
    questions = [r for r in records if "question" in r and r["references"]]
    scalars = {"captions": float(len(captioned)), "questions": float(len(questions))}
    if captioned:
        scalars["cider"], each = captions.cider(
            [r["prediction"] for r in captioned], [r["references"] for r in captioned]
        )
        for record, value in zip(captioned, each, strict=True):
            record["cider"] = value
            record["score"] = float(captions.caption_match(record["prediction"], record["references"]))
        scalars["exact_match"] = float(np.mean([r["score"] for r in captioned]))
    if questions:
        for record in questions:
            record["score"] = answers.answer_score(record["prediction"], record["references"])
        scalars["vqa_accuracy"] = float(np.mean([r["score"] for r in questions]))
        for kind in sorted({r["question_type"] for r in questions if "question_type" in r}):
            of_kind = [r["score"] for r in questions if r.get("question_type") == kind]
            scalars[f"vqa_accuracy/{kind}"] = float(np.mean(of_kind))
    return scalars


def text_of(ids: np.ndarray, vocabulary: Vocabulary) -> str:
    """Decodes ids up to the first negative or end-of-sequence id (the vocabulary's `eos_id`, if it has one)."""
    eos = getattr(vocabulary, "eos_id", None)
    kept = list(itertools.takewhile(lambda i: i >= 0 and i != eos, (int(i) for i in ids)))
    return str(vocabulary.decode(kept)).strip() if kept else ""


def local_rows(ids: Any) -> np.ndarray:
    """Returns this process's rows of an array [B, ...] that is sharded like the batch, in order.

    That is all of them where each process has all: one process, or a tensor axis that joins them all.
    """
    if not isinstance(ids, jax.Array) or ids.is_fully_addressable or ids.is_fully_replicated:
        return np.asarray(ids)
    shards = {shard.index[0].start or 0: np.asarray(shard.data) for shard in ids.addressable_shards}
    return np.concatenate([shards[start] for start in sorted(shards)])


def is_first_with_its_rows(ids: Any) -> bool:
    """Whether no process before this one has the same rows of an array [B, ...] that is sharded like the batch."""
    if not isinstance(ids, jax.Array) or ids.is_fully_addressable:
        return True
    starts: dict[int, set[int]] = {}
    for device, index in ids.sharding.devices_indices_map(ids.shape).items():
        starts.setdefault(device.process_index, set()).add(index[0].start or 0)
    here = jax.process_index()
    return here == min(process for process, found in starts.items() if found == starts[here])


def gather_records(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the records of all processes, in the order of the processes; with one process, the records themselves."""
    if jax.process_count() == 1:
        return records
    from jax.experimental import multihost_utils

    content = np.frombuffer(json.dumps(records).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array(content.size))).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: content.size] = content
    everything = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [r for row, size in zip(everything, sizes, strict=True) for r in json.loads(row[:size].tobytes())]
