"""Looks at all records of a task as a run would read them, and says what would spoil the run. Needs no accelerator.

Records become rows as in training, by `Group.read`. The media are decoded by threads; beside their pixels their bytes
are hashed, so that copies and overlaps of splits are found. A record with several captions or answers is looked at with
one of them, the same in every call.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import seqio

from vadapter.base import pictures, terminal
from vadapter.data.check import findings
from vadapter.data.check.findings import Example, Lengths, Report, TaskFigures
from vadapter.data.order import groups, packing
from vadapter.data.order.config import LoaderConfig
from vadapter.data.order.groups import Group
from vadapter.data.reading.sources import Medium
from vadapter.data.rows.prompts import MEDIA_ID
from vadapter.data.rows.sizes import Sizes, layout_of
from vadapter.data.seqio_tasks import Task, provider, share, tasks_of

Progress = Callable[[str, int, int], None]
_CHUNK = 32
_WRONG_SHOWN = 3  # rows of a task that are on the sheet because something is wrong with them


@dataclasses.dataclass(frozen=True)
class Part:
    """A split of a mixture that a run reads, or that belongs to one.

    Attributes:
        config: as the run's `Loader` gets it.
        sizes: what the model takes.
        training: whether the run trains on it.
        required: whether the run reads it, so that it must have records.
        rows: of the decoder's table; None where there is no decoder.
    """

    config: LoaderConfig
    sizes: Sizes
    training: bool = False
    required: bool = True
    rows: int | None = None

    @property
    def where(self) -> str:
        return f"{self.config.mixture}/{self.config.split}"


def splits_of(mixture: str) -> list[str]:
    """Returns the splits that the tasks of a registered mixture have, `train` first."""
    found = {split for task in tasks_of(mixture) for split in task.records.splits}
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
    figures, problems, sheet, media = [], [], [], {}
    for part in parts:
        tasks = [t for t in tasks_of(part.config.mixture) if t.num_examples(part.config.split)]
        if not tasks:
            if part.required:
                problems.append(findings.empty_split(part.where, splits_of(part.config.mixture)))
            continue
        scan = _Scan(part, tasks, limit, -(-examples // len(parts)))
        for done in scan.run():
            progress(part.where, done, scan.total)
        figures += scan.figures
        sheet += scan.examples
        media[part.where] = scan.media
        problems += findings.problems_of(scan.figures, part.config.max_bad_share, part.config.long_text)
    problems += _overlaps(parts, media)
    if warnings:
        problems.append(findings.opening(list(dict.fromkeys(warnings))))
    problems.sort(key=lambda problem: not problem.spoils)
    return Report(tuple(figures), tuple(problems), tuple(sheet), limit)


def _overlaps(parts: Sequence[Part], media: dict[str, "_Media"]) -> Iterator[findings.Problem]:
    for train in (part for part in parts if part.training and part.where in media):
        seen = media[train.where].names
        for other in (part for part in parts if not part.training and part.where in media):
            mine = media[other.where].names
            if pairs := [f"{name} = {seen[digest]}" for digest, name in mine.items() if digest in seen]:
                yield findings.overlap(other.where, pairs, len(mine), train.where)


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


@dataclasses.dataclass(frozen=True)
class _Row:
    """A row, the example that it was made of, and what tells its medium from others."""

    example: dict[str, Any]
    arrays: dict[str, np.ndarray]
    media: np.ndarray
    medium: Medium | None


def _in_row(row: _Row) -> np.ndarray:
    """The media that a row shows, the first frame of each: uint8 [n, h, w, 3]."""
    used, total = int(row.arrays["media_index"].max(initial=-1)) + 1, int((row.arrays["media_index"] >= 0).sum())
    places = np.count_nonzero(row.example["inputs"] == MEDIA_ID)
    return row.media[: min(places, len(row.media)), 0] if used and total else row.media[:0, 0]


class _Scan:
    """One pass over a part."""

    def __init__(self, part: Part, tasks: Sequence[Task], limit: int, examples: int):
        self._part, self._tasks = part, tasks
        self.figures: list[TaskFigures] = []
        self.examples: list[Example] = []
        self.media = _Media()
        sizes = [task.num_examples(part.config.split) for task in tasks]
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

    def __init__(self, part: Part, task: Task, media: _Media):
        self._part, self._task, self._media = part, task, media
        self._digests: set[bytes | None] = set()
        config, source = part.config, task.records
        self._words = task.rows.vocabulary
        self._asks = any("question" in name for step in task.ours for name in step.templates(source.media))
        self._group = Group(groups.media_shape_of(task, part.sizes), (task,), (1.0,), part.sizes)
        self._layout = layout_of(config.lengths, part.sizes, self._group.media_shape)
        task.rows.check(self._layout)
        if part.training and config.packing:
            packing.check_kind(task.rows.batch_type, config.mixture)
            packing.budgets(config.packing, self._layout, config.batch_size)
        mixture = provider(config.mixture)
        records = task.num_examples(config.split)
        rated = part.training and isinstance(mixture, seqio.Mixture)
        self.figures = TaskFigures(
            mixture=config.mixture,
            split=config.split,
            task=task.name,
            training=part.training,
            media=source.media,
            records=records,
            rate=float(mixture.get_rate(task) if rated else records),
            visual_tokens=self._layout.visual if self._words else 0,
            prompts=Lengths(config.lengths.get("inputs", 0)),
            targets=Lengths(config.lengths.get("targets", 0)),
            left_out=source.left_out,
            description=source.description,
            resize=(source.resize or part.sizes.resize) if source.media != "none" else "",
        )

    def rows(self, indices: np.ndarray) -> Iterator[_Row]:
        """Yields the rows of some records, as a run makes them."""
        plans = (share(indices[i : i + _CHUNK]) for i in range(0, len(indices), _CHUNK))
        threads = max(self._task.records.threads, min(8, os.cpu_count() or 1))
        found = self._group.read(
            self._part.config.split, ([plan] for plan in plans), self._layout, threads=threads, with_medium=True
        )
        for rows in found:
            for i, example in enumerate(rows.examples):
                yield _Row(
                    example, {key: values[i] for key, values in rows.arrays.items()}, rows.media[i], rows.mediums[i]
                )

    def look(self, row: _Row) -> bool:
        """Counts what is right and wrong with a row. Returns whether something is wrong."""
        figures = self.figures
        before = sum(map(len, figures.found.values()))
        figures.checked += 1
        seen = row.medium
        name = self._name(row)
        if row.example["error"]:
            figures.add("corrupt", f"{name}: {row.example['error']}")
            return True
        text = self._look_at_text(row, name) if self._words else b""
        if seen is not None:
            self._media.add(figures, name, seen, text)
            self._digests |= {seen.digest} - {None}
            figures.distinct_media = len(self._digests)
        return sum(map(len, figures.found.values())) > before

    def _name(self, row: _Row) -> str:
        """The record's id with its file. Of one that could not be read only the place is known."""
        seen = row.medium
        name = row.example["id"]
        return terminal.line(name if seen is None or not seen.path or seen.path in name else f"{name} ({seen.path})")

    def _look_at_text(self, row: _Row, name: str) -> bytes:
        """Returns what tells the record's text from others'."""
        figures, example, arrays = self.figures, row.example, row.arrays
        media = example.get("num_media", self._layout.num_media)
        assert self._words is not None
        if "sizes" in example:
            return self._look_at_turns(row, name)
        prompt, target = len(example["inputs"]) - media + 1, len(example["targets"])
        figures.prompts.counts[prompt] += 1
        figures.targets.counts[target] += 1
        over = max(target - figures.targets.room, 0)
        if (cut := int(arrays["truncated"]) - over) > 0:
            figures.add("cut_prompt", f"{name}: {cut} tokens too many")
        if over:
            figures.add("cut_target", f"{name}: {over} tokens too many")
        # Even no text has a token in vocabularies that begin an answer with a space.
        empty = not self._words.decode(arrays["target_ids"][:target]).strip()
        if empty:
            figures.add("empty_target", name)
        if self._asks and not example.get("question", "").strip():
            figures.add("empty_question", name)
        figures.whole_targets += not over and not empty
        visual, expected = int(np.count_nonzero(arrays["media_index"] >= 0)), media * self._layout.num_visual_tokens
        if visual != expected or (media and not visual):
            figures.add("misfit", f"{name}: {visual} slots for {expected} visual tokens")
        self._look_at_ids(arrays, name)
        texts = [example.get("question", ""), *example.get("references", ())]
        return "\0".join(texts).encode(errors="replace")

    def _look_at_turns(self, row: _Row, name: str) -> bytes:
        """`_look_at_text` of a conversation: its source has seen to its turns and marks."""
        figures, example, arrays = self.figures, row.example, row.arrays
        text = np.count_nonzero(example["inputs"] != MEDIA_ID) + 1
        figures.prompts.counts[int(text)] += 1
        figures.targets.counts[len(example["targets"])] += 1
        if cut := int(arrays["truncated"]):
            prompt, answer = (int(n) for n in example["sizes"][:2])
            over = max(answer - figures.targets.room, 0)
            later = len(example["inputs"]) + len(example["targets"]) - prompt - answer
            kind = "cut_target" if over else "cut_prompt" if cut > later else "cut_turns"
            figures.add(kind, f"{name}: {cut} tokens too many")
            figures.whole_targets -= bool(over)
        figures.whole_targets += 1
        self._look_at_ids(arrays, name)
        return f"{example['prompt']}\0{example['references']}".encode(errors="replace")

    def _look_at_ids(self, arrays: dict[str, np.ndarray], name: str) -> None:
        highest = int(max(arrays["tokens"].max(), arrays["target_ids"].max()))
        if self._part.rows is not None and highest >= self._part.rows:
            self.figures.add("outside_table", f"{name}: id {highest}, table of {self._part.rows} rows")

    def example(self, row: _Row) -> Example:
        """Returns a row for the contact sheet."""
        media, bad = row.media, row.example["error"]
        pixels = "text only"
        if len(media):
            frames = f", {media.shape[1]} frames" if media.shape[1] > 1 else ""
            pixels = f"{media.shape[3]} x {media.shape[2]} pixels{frames}"
        shown = media[0] if len(media) == 1 else _in_row(row)
        prompt, target = self._task.rows.shown(row.example, row.arrays)
        return Example(
            where=f"{self._part.where}, {self._task.name}",
            name=self._name(row),
            error=bad,
            picture=pictures.input_uri(shown) if len(shown) and not bad else None,
            pixels=pixels,
            prompt=tuple(prompt),
            target=tuple(target),
            references=tuple(row.example.get("references", ())),
        )
