"""Looks at all records of a task as a run would read them, and says what would spoil the run. Needs no accelerator.

Records go through the very steps of training: source, preprocessors, feature converter. The media are decoded by
threads; beside their pixels their bytes are hashed, so that copies and overlaps of splits are found. A record with
several captions or answers is looked at with one of them, the same in every call.
"""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from vadapter.base import pictures
from vadapter.base.errors import UserError
from vadapter.data.check import report
from vadapter.data.check.media import Medium, medium
from vadapter.data.check.report import Example, Lengths, Report, TaskFigures, Token
from vadapter.data.order.config import LoaderConfig
from vadapter.data.reading.sources import Chunk, RandomAccessSource, Shape
from vadapter.data.rows.converters import VLMFeatureConverter, check_lengths

Progress = Callable[[str, int, int], None]
_CHUNK = 32
_WRONG_SHOWN = 3  # rows of a task that are on the sheet because something is wrong with them
_KEPT = ("id", "error", "choice", "question", "references", "sizes")


@dataclasses.dataclass(frozen=True)
class Part:
    """A split of a mixture that a run reads, or that belongs to one.

    Attributes:
        config: as the run's `Loader` gets it, with the model's sizes.
        training: whether the run trains on it.
        required: whether the run reads it, so that it must have records.
        rows: of the decoder's table; None where there is no decoder.
    """

    config: LoaderConfig
    training: bool = False
    required: bool = True
    rows: int | None = None

    @property
    def where(self) -> str:
        return f"{self.config.mixture}/{self.config.split}"


def splits_of(mixture: str) -> list[str]:
    """Returns the splits that the tasks of a registered mixture have, `train` first."""
    found = {split for task in _tasks(mixture) for split in task.source.splits}
    return sorted(found, key=lambda split: (split != "train", split))


def check(
    parts: Sequence[Part],
    *,
    limit: int = 0,
    examples: int = 24,
    warnings: Sequence[str] = (),
    progress: Progress = lambda where, done, total: None,
) -> Report:
    """Reads the records of some splits.

    Args:
        parts: which; media that a training part and another one share are an overlap.
        limit: most records of a split, evenly spread over it; 0 is all.
        examples: rows of the contact sheet, all parts together.
        warnings: what the sources said when they were opened.
        progress: called with (mixture and split, records read, records to read).

    Raises:
        UserError: not one record of a split can be read, or lengths without room.
    """
    with contextlib.suppress(RuntimeError):  # TensorFlow is running already
        tf.config.set_visible_devices([], "GPU")
    figures, problems, sheet, media = [], [], [], {}
    for part in parts:
        tasks = [t for t in _tasks(part.config.mixture) if _records(t, part.config.split)]
        if not tasks:
            if part.required:
                problems.append(report.empty_split(part.where, splits_of(part.config.mixture)))
            continue
        scan = _Scan(part, tasks, limit, -(-examples // len(parts)))
        for done in scan.run():
            progress(part.where, done, scan.total)
        figures += scan.figures
        sheet += scan.examples
        media[part.where] = scan.media
        problems += report.problems_of(scan.figures, part.config.max_bad_share, part.config.long_text == "error")
    problems += _overlaps(parts, media)
    if warnings:
        problems.append(report.opening(list(dict.fromkeys(warnings))))
    problems.sort(key=lambda problem: not problem.spoils)
    return Report(tuple(figures), tuple(problems), tuple(sheet), limit)


def _overlaps(parts: Sequence[Part], media: dict[str, "_Media"]) -> Iterator[report.Problem]:
    for train in (part for part in parts if part.training and part.where in media):
        seen = media[train.where].names
        for other in (part for part in parts if not part.training and part.where in media):
            mine = media[other.where].names
            if pairs := [f"{name} = {seen[digest]}" for digest, name in mine.items() if digest in seen]:
                yield report.overlap(other.where, pairs, len(mine), train.where)


def _tasks(mixture: str) -> list[seqio.Task]:
    found: Any = seqio.get_subtasks(seqio.get_mixture_or_task(mixture))
    for task in found:
        if not isinstance(task.source, RandomAccessSource):
            raise UserError(
                f"Expected tasks with a vadapter.data.reading.sources.RandomAccessSource; {task.name} has a "
                f"{type(task.source).__name__}. Register it with vadapter.data.tasks.add_task."
            )
    return sorted(found, key=lambda task: task.name)


def _records(task: seqio.Task, split: str) -> int:
    return task.source.num_examples(split) if split in task.source.splits else 0


class _Watched(RandomAccessSource):
    """A source that remembers which media its records show. Its records are (index, the source's record)."""

    def __init__(self, source: RandomAccessSource):
        self._source = source
        self.media, self.resize, self.frame_sampling = source.media, source.resize, source.frame_sampling
        self.threads = max(source.threads, min(8, os.cpu_count() or 1))
        self.seen: dict[int, Medium] = {}
        super().__init__(splits=source.splits, caching_permitted=False)

    def num_examples(self, split: str) -> int:
        return self._source.num_examples(split)

    def read(self, split: str, indices: np.ndarray) -> list[Any]:
        return list(zip(map(int, indices), self._source.read(split, indices), strict=True))

    def text_of(self, record: Any) -> bytes:
        return self._source.text_of(record[1])

    def parse(self, record: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._source.parse(record)

    def read_media(self, record: Any, shape: Shape, choice: int = 0) -> np.ndarray:
        index, inner = record
        self.seen[index] = medium(self._source, inner) if self.media != "none" else Medium()
        return self._source.read_media(inner, shape, choice)


@dataclasses.dataclass
class _Media:
    """The media of a part: a name for each digest, the file it was first seen in, and what was said of it."""

    names: dict[bytes, str] = dataclasses.field(default_factory=dict)
    paths: dict[bytes, str] = dataclasses.field(default_factory=dict)
    copies: set[str] = dataclasses.field(default_factory=set)
    texts: dict[bytes, str] = dataclasses.field(default_factory=dict)

    def add(self, figures: TaskFigures, name: str, found: Medium, text: bytes) -> None:
        """Notes the medium and the text of a record, and whether they were there before."""
        if found.digest is None:
            return
        if found.digest not in self.names:
            self.names[found.digest], self.paths[found.digest] = name, found.path
        elif found.path != self.paths[found.digest] and found.path not in self.copies:
            self.copies.add(found.path)
            figures.add("copies", f"{name} = {self.names[found.digest]}")
        both = hashlib.sha256(found.digest + figures.task.encode() + b"\0" + text).digest()[:16]
        if both in self.texts:
            figures.add("repeated", f"{name} = {self.texts[both]}")
        self.texts.setdefault(both, name)


def _spread(total: int, count: int) -> np.ndarray:
    """`count` of `total` indices, evenly."""
    return np.linspace(0, total - 1, count).round().astype(np.int64)


class _Scan:
    """One pass over a part."""

    def __init__(self, part: Part, tasks: Sequence[seqio.Task], limit: int, examples: int):
        self._part, self._tasks = part, tasks
        self.figures: list[TaskFigures] = []
        self.examples: list[Example] = []
        self.media = _Media()
        sizes = [_records(task, part.config.split) for task in tasks]
        wanted = [min(n, max(1, round(limit * n / sum(sizes)))) if limit else n for n in sizes]
        self._indices = [_spread(n, k) for n, k in zip(sizes, wanted, strict=True)]
        self.total = sum(map(len, self._indices))
        self._shown = max(1, examples // len(tasks)) if examples else 0

    def run(self) -> Iterator[int]:
        """Reads everything; yields how many records are done, now and then."""
        done = 0
        for task, indices in zip(self._tasks, self._indices, strict=True):
            scan = _TaskScan(self._part, task, self.media)
            self.figures.append(scan.figures)
            shown = set(_spread(len(indices), min(self._shown, len(indices))).tolist())
            wanted = _WRONG_SHOWN if self._shown else 0
            for i, row in enumerate(scan.rows(indices)):
                wrong = scan.look(row)
                if i in shown or (wrong and wanted):
                    self.examples.append(scan.example(row))
                    wanted -= wrong
                done += 1
                if done % _CHUNK == 0 or done == self.total:
                    yield done


class _TaskScan:
    """One pass over a split of a task."""

    def __init__(self, part: Part, task: seqio.Task, media: _Media):
        self._part, self._task, self._media = part, task, media
        self._digests: set[bytes | None] = set()
        config = part.config
        source: Any = task.source
        self._source = _Watched(source)
        feature: Any = task.output_features["media"]
        self._shape = feature.shape(config.image_size, config.num_frames)
        self._labelled = "labels" in task.output_features
        self._asks = any(getattr(p, "__name__", "") == "question" for p in task.preprocessors)
        tokens = config.num_visual_tokens
        self._visual = tokens if isinstance(tokens, int) else tokens.get(self._shape[1], 0)
        if not self._labelled:
            check_lengths(config.lengths)
            self._vocabulary: Any = task.output_features["targets"].vocabulary
        mixture: Any = seqio.get_mixture_or_task(config.mixture)
        records = source.num_examples(config.split)
        rated = part.training and isinstance(mixture, seqio.Mixture)
        self.figures = TaskFigures(
            mixture=config.mixture,
            split=config.split,
            task=task.name,
            training=part.training,
            media=source.media,
            records=records,
            rate=float(mixture.get_rate(task) if rated else records),
            visual_tokens=0 if self._labelled else self._shape[0] * self._visual,
            prompts=Lengths(config.lengths.get("inputs", 0)),
            targets=Lengths(config.lengths.get("targets", 0)),
            left_out=source.left_out,
        )

    def rows(self, indices: np.ndarray) -> Iterator[dict[str, Any]]:
        """Yields the converted rows of some records, as numpy."""
        lengths = {**self._part.config.lengths, "media": self._shape}

        def chunks() -> Iterator[Chunk]:
            for start in range(0, len(indices), _CHUNK):
                yield indices[start : start + _CHUNK], indices[start : start + _CHUNK]

        ds = self._source.dataset(self._part.config.split, chunks, self._shape)
        ds = self._task.preprocess_postcache(ds, sequence_length=lengths)
        if not self._labelled:
            ds = ds.map(lambda ex: {**ex, "sizes": tf.stack([tf.size(ex["inputs"]), tf.size(ex["targets"])])})
            specs: Any = ds.element_spec
            kept = {k: specs[k] for k in _KEPT if k in specs}
            closing = len(self._vocabulary.tail(""))
            converter = VLMFeatureConverter(self._visual, self._vocabulary.bos_id, False, kept, closing)
            ds = converter(ds, lengths | dict.fromkeys(kept, 1))
        rows: Any = ds.prefetch(_CHUNK).as_numpy_iterator()
        yield from rows

    def look(self, row: dict[str, Any]) -> bool:
        """Counts what is right and wrong with a row. Returns whether something is wrong."""
        figures = self.figures
        before = sum(map(len, figures.found.values()))
        figures.checked += 1
        index = int(row["choice"])
        seen = self._source.seen.pop(index, None)
        name = row["name"] = self._name(row, index, seen)
        if row["error"]:
            figures.add("corrupt", f"{name}: {row['error'].decode(errors='replace')}")
            return True
        text = b"" if self._labelled else self._look_at_text(row, name)
        if seen is not None:
            self._media.add(figures, name, seen, text)
            self._digests |= {seen.digest} - {None}
            figures.distinct_media = len(self._digests)
        return sum(map(len, figures.found.values())) > before

    def _name(self, row: dict[str, Any], index: int, seen: Medium | None) -> str:
        """The record's id with its file. Of one that could not be read only the place is known."""
        if seen is None:
            return f"{self._task.name} record {index}"
        name = row["id"].decode(errors="replace")
        return name if not seen.path or seen.path in name else f"{name} ({seen.path})"

    def _look_at_text(self, row: dict[str, Any], name: str) -> bytes:
        """Returns what tells the record's text from others'."""
        figures, media = self.figures, self._shape[0]
        prompt, target = int(row["sizes"][0]) - media + 1, int(row["sizes"][1])
        figures.prompts.counts[prompt] += 1
        figures.targets.counts[target] += 1
        over = max(target - figures.targets.room, 0)
        if (cut := int(row["truncated"]) - over) > 0:
            figures.add("cut_prompt", f"{name}: {cut} tokens too many")
        if over:
            figures.add("cut_target", f"{name}: {over} tokens too many")
        # Even no text has a token in vocabularies that begin an answer with a space.
        empty = not self._vocabulary.decode([int(i) for i in row["target_ids"][:target]]).strip()
        if empty:
            figures.add("empty_target", name)
        if self._asks and not row["question"].strip():
            figures.add("empty_question", name)
        figures.whole_targets += not over and not empty
        visual = int(np.count_nonzero(row["media_index"] >= 0))
        if visual != figures.visual_tokens or (media and not visual):
            figures.add("misfit", f"{name}: {visual} slots for {figures.visual_tokens} visual tokens")
        highest = int(max(row["tokens"].max(), row["target_ids"].max()))
        if self._part.rows is not None and highest >= self._part.rows:
            figures.add("outside_table", f"{name}: id {highest}, table of {self._part.rows} rows")
        return b"\0".join([row.get("question", b""), *row.get("references", ())])

    # The contact sheet

    def example(self, row: dict[str, Any]) -> Example:
        """Returns a row for the contact sheet."""
        media = row["media"]
        if len(media):
            frames = f", {media.shape[1]} frames" if media.shape[1] > 1 else ""
            pixels = f"{media.shape[3]} x {media.shape[2]} pixels{frames}"
        prompt, target = ((), ()) if self._labelled else (self._prompt(row), self._target(row))
        if self._labelled:
            target = tuple(Token(str(label), float(label >= 0)) for label in row["labels"])
        return Example(
            where=f"{self._part.where}, {self._task.name}",
            name=row["name"],
            error=row["error"].decode(errors="replace"),
            picture=pictures.input_uri(media[0]) if len(media) and not row["error"] else None,
            pixels=pixels if len(media) else "text only",
            prompt=prompt,
            target=target,
            references=tuple(t.decode(errors="replace") for t in row.get("references", ())),
        )

    def _prompt(self, row: dict[str, Any]) -> tuple[Token, ...]:
        """The prompt's tokens, with the visual ones of a medium as one."""
        found: list[Token] = []
        visual = 0
        for i in range(int(row["target_positions"][0]) + 1):
            if row["media_index"][i] >= 0:
                visual += 1
                continue
            if visual:
                found.append(Token(f"{visual} visual tokens", kind="visual"))
            visual = 0
            found.append(self._token(int(row["tokens"][i])))
        found += [Token(f"{visual} visual tokens", kind="visual")] if visual else []
        over = max(int(row["sizes"][1]) - self.figures.targets.room, 0)
        if (cut := int(row["truncated"]) - over) > 0:
            found.append(Token(f"{cut} tokens are cut", kind="cut"))
        return tuple(found)

    def _target(self, row: dict[str, Any]) -> tuple[Token, ...]:
        """The tokens to predict with their loss weights."""
        room, size = self.figures.targets.room, int(row["sizes"][1])
        pairs = zip(row["target_ids"][: min(size, room)], row["target_weights"], strict=False)
        found = [dataclasses.replace(self._token(int(i)), weight=float(weight)) for i, weight in pairs]
        return (*found, *([Token(f"{size - room} tokens are cut", kind="cut")] if size > room else []))

    def _token(self, i: int) -> Token:
        """A token by its own text; control tokens by their names."""
        text, special = _written(self._vocabulary, i)
        return Token(text, kind="special" if special else "text")


def _written(words: Any, i: int) -> tuple[str, bool]:
    """(text, whether it is a control token) of an id: where a space begins a word, with the space."""
    piece, text = str(words._token(i)), words._text([i])
    if i in (words.bos_id, words.eos_id) or piece in words.format.tokens:
        return piece, True
    if piece and not piece.strip("\u2581\u0120"):
        return " " * len(piece), False
    if not text.strip() or "\ufffd" in text:  # a control token or a part of a letter
        return piece, not text
    space = " " if piece.startswith(("\u2581", "\u0120")) else ""
    return space + text.lstrip(" "), False
