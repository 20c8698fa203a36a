"""`Loader`: batches of a seqio task or mixture, in an order that is a function of (seed, step) alone.

Batch s is made by one group of tasks, those with the same media shape, so that every batch is homogeneous. Which group,
and which record is in which row, is closed-form (`schedule`): batch s can be made without the batches before it, and
host h of n makes the h-th contiguous block of its rows.
"""

import collections
import functools
import itertools
import logging
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from vadapter.base.batch import Batch, LabelledImages
from vadapter.base.errors import UserError
from vadapter.data.order import groups, packing
from vadapter.data.order.config import LoaderConfig
from vadapter.data.order.groups import Group, RowBatch
from vadapter.data.order.schedule import Schedule, mix, shuffled
from vadapter.data.reading import features
from vadapter.data.reading.loading import Share, read_ahead
from vadapter.data.rows.converters import TINY
from vadapter.data.rows.sizes import Layout, Sizes, layout_of
from vadapter.data.rows.text_vocabulary import TextVocabulary
from vadapter.data.seqio_tasks import Task

AnyBatch: TypeAlias = Batch | LabelledImages
_ROW_TEXT = ("prompt", "question", "question_type", "answer_type", "domain", "image")
_ROW_TEXTS = ("references", "answers", "options")
_LONG_TEXT = ("truncate", "drop", "error")
_MOST_CUT = 0.05  # share of the targets; a cut one has no end, so a model learns from many not to stop
_TO_JUDGE = 200  # rows before a share says something


class Loader:
    """Makes host-local batches. See `LoaderConfig`.

    `batches` and `eval_batches` can be called any number of times; the counters count on.
    """

    def __init__(
        self,
        config: LoaderConfig,
        sizes: Sizes,
        process_index: int = 0,
        process_count: int = 1,
        features: features.Store | None = None,
    ):
        """Args:
            config: what is read.
            sizes: what the model takes.
            process_index, process_count: this host's share of the rows, and the number of shares.
            features: a cache that training reads in place of media; a pass over a split reads media.

        Raises:
            UserError: no such mixture or split, a batch that does not divide over the hosts, lengths without room, or
                media that the model was not made for.
        """
        self.config, self.sizes, self._features = config, sizes, features
        self._tasks = groups.tasks_with_records(config.mixture, config.split)
        if config.batch_size < 1 or config.batch_size % process_count:
            raise UserError(
                f"Expected a batch size that {process_count} processes can share equally; found {config.batch_size}. "
                "Change LoaderConfig.batch_size."
            )
        if config.long_text not in _LONG_TEXT:
            raise UserError(
                f"Expected long_text 'truncate', 'drop' or 'error'; found {config.long_text!r}. Choose one of them."
            )
        self._hosts, self._local = process_count, config.batch_size // process_count
        self._first = process_index * self._local
        self._samples = config.packing.samples if config.packing else 1  # a row, in training
        self._groups = groups.grouped(config.mixture, self._tasks, config.lengths, sizes)
        for group in self._groups if config.packing else ():
            self._budgets(group)  # refuses early
        self._bad: collections.deque[str] = collections.deque(maxlen=3)
        self._counts = {"seen": 0, "skipped": 0, "truncated": 0, "dropped": 0}
        if config.packing:
            self._counts |= {"unpacked": 0, "slots": 0, "useful": 0}
        self._cut_targets, self._warned = 0, False

    @property
    def vocabulary(self) -> TextVocabulary:
        """Vocabulary of the targets. A `UserError` where the tasks have no text."""
        found = self._tasks[0].rows.vocabulary
        if found is None:
            raise UserError(f"Expected a mixture with text; {self.config.mixture} has none. Choose another mixture.")
        return found

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end a text. A `UserError` where the vocabulary has none: then nothing would end."""
        return self.vocabulary.ends

    def num_examples(self) -> int:
        """Returns the number of records in the split, all tasks together."""
        return sum(task.num_examples(self.config.split) for task in self._tasks)

    def counters(self) -> dict[str, float]:
        """Returns what this host counted so far: rows seen, skipped (unreadable), truncated or dropped since their
        text is too long, and the shares.

        With packing also `unpacked`, samples that found no room in their window, and `packing_efficiency`: the slots
        with text or visual tokens over all slots.

        `left_out` are records that its sources found to be unusable when they were opened: they are in no row.
        """
        seen = max(self._counts["seen"], 1)
        counts: dict[str, float] = {k: self._counts[k] / seen for k in ("skipped", "truncated", "dropped")}
        counts = {f"{k}_share": share for k, share in counts.items()}
        if self.config.packing:
            counts["unpacked_share"] = self._counts["unpacked"] / seen
            counts["packing_efficiency"] = self._counts["useful"] / max(self._counts["slots"], 1)
        counts["left_out"] = sum({id(t.records): t.records.left_out for t in self._tasks}.values())
        return {k: float(v) for k, v in (self._counts | counts).items()}

    def _layout(self, group: Group, for_decoding: bool = False) -> Layout:
        return layout_of(self.config.lengths, self.sizes, group.media_shape, for_decoding)

    # Training

    def batches(self, start_step: int = 0) -> "BatchIterator":
        """Returns an endless iterator of the batches of steps `start_step`, `start_step + 1`, ..."""
        return BatchIterator(self, start_step)

    def record_ids(self, step: int) -> list[str]:
        """Returns the ids of the records in the batch of step 0, 1, ..., on all hosts, in the order of its rows
        (with packing: in the order in which they are drawn).

        They are read anew, without their media. One that cannot be read is named by its place.
        """
        chosen = int(self._group_schedule().at(np.asarray([step]))[0][0])
        rows = range(self.config.batch_size * self._samples)
        plan = next(self._plans(chosen, self._group_schedule().before(step, chosen), rows))
        ids = [""] * len(rows)
        for share in plan:
            source, split = self._groups[chosen].tasks[share.which].records, self.config.split
            records, errors = source.read_some(split, share.records)
            for row, index, record, error in zip(share.rows, share.records, records, errors, strict=True):
                ids[row] = f"{split} record {index}" if error else str(source.features(record)["id"])
        return ids

    def _group_schedule(self) -> Schedule:
        return Schedule([sum(g.rates) for g in self._groups], seed=int(mix(self.config.seed, 1) >> np.uint64(1)))

    def _train_batches(self, start_step: int) -> Iterator[AnyBatch]:
        schedule = self._group_schedule()
        streams: dict[int, Iterator[RowBatch]] = {}
        try:
            for step in itertools.count(start_step):
                chosen = int(schedule.at(np.asarray([step]))[0][0])
                if chosen not in streams:
                    plans = self._plans(chosen, schedule.before(step, chosen))
                    layout = self._layout(self._groups[chosen])
                    rows = self._groups[chosen].read(self.config.split, plans, layout, features=self._features)
                    streams[chosen] = read_ahead(rows, self.config.prefetch)
                found = self._finish(self._groups[chosen], next(streams[chosen]))
                found = self._packed(self._groups[chosen], found) if self.config.packing else found
                yield found.replace(media=features.featured(found.media)) if self._features else found
        finally:
            for stream in streams.values():
                stream.close()  # type: ignore[attr-defined] a generator

    def _plans(self, group_index: int, first_batch: int, of: range | None = None) -> Iterator[list[Share]]:
        """Yields which records are in which rows of batches `first_batch`, ... of a group.

        Args:
            group_index: of the group.
            first_batch: of the group's batches, from 0.
            of: rows of the global batch before they are packed; default this host's.
        """
        first = self._first * self._samples
        of = range(first, first + self._local * self._samples) if of is None else of
        group, config = self._groups[group_index], self.config
        seed = int(mix(config.seed, 2, group_index) >> np.uint64(1))
        schedule = Schedule(group.rates, seed)
        sizes = [task.num_examples(config.split) for task in group.tasks]
        blocks = [task.records.blocks(config.split) for task in group.tasks]
        for batch in itertools.count(first_batch):
            slots = np.asarray(of) + batch * config.batch_size * self._samples
            tasks, ordinals = schedule.at(slots)
            plan = []
            for which in np.unique(tasks):
                rows = np.flatnonzero(tasks == which)
                mine, task_seed = ordinals[rows], int(mix(seed, 3, which) >> np.uint64(1))
                choices = (mix(task_seed, 4, mine) >> np.uint64(1)).astype(np.int64)
                records = shuffled(mine, sizes[which], task_seed, blocks[which])
                plan.append(Share(int(which), rows, records, choices))
            yield plan

    def _budgets(self, group: Group) -> packing.Budgets:
        """Returns the room of a packed row. A `UserError` where the group's samples cannot be packed so."""
        assert self.config.packing is not None
        packing.check_kind(group.rows.batch_type, self.config.mixture)
        return packing.budgets(self.config.packing, self._layout(group), self.config.batch_size, self._hosts)

    def _packed(self, group: Group, samples: Any) -> Batch:
        """Packs the samples of a batch, and counts."""
        budgets = self._budgets(group)
        rows, left_over = packing.pack(budgets, samples, self._layout(group).num_visual_tokens)
        if left_over and not self._counts["unpacked"]:
            logging.warning(
                "%d samples found no room in their rows and are left out; data/unpacked_share counts them. Raise "
                "PackingConfig.tokens or window, or lower samples, to keep them.",
                left_over,
            )
        if left_over and self.config.long_text == "error":
            raise UserError(
                f"Expected room for all samples in rows of {budgets.tokens} tokens; {left_over} of a batch "
                "found none, and long_text is 'error'. Raise PackingConfig.tokens or window, or lower samples."
            )
        self._counts["unpacked"] += left_over
        unpacked, seen = self._counts["unpacked"], self._counts["seen"]
        if seen >= _TO_JUDGE and unpacked > _MOST_CUT * seen:
            raise UserError(
                f"Expected room for nearly all samples in rows of {budgets.tokens} tokens; {unpacked} of "
                f"{seen} found none. Raise PackingConfig.tokens, targets, media or window, or lower samples."
            )
        self._counts["slots"] += rows.segment_ids.size
        self._counts["useful"] += int(np.count_nonzero(rows.segment_ids))
        return rows

    def _finish(self, group: Group, found: RowBatch, real: int | None = None) -> AnyBatch:
        """Counts and checks a batch, and wraps it. Rows from `real` on are padding, without weight."""
        count = len(found.examples)
        real = count if real is None else real
        cut = found.arrays.get("truncated", np.zeros(count)) + found.arrays.get(f"{TINY}truncated", 0)
        self._count(found.examples[:real], cut[:real])
        errors = np.asarray([bool(example["error"]) for example in found.examples])
        if self.config.long_text == "drop":
            errors |= cut > 0
        if "media_index" in found.arrays:
            self._check_visual(group, found)
        return group.rows.batch(found.arrays, found.media, ~errors & (np.arange(count) < real))

    def _check_visual(self, group: Group, found: RowBatch) -> None:
        """Refuses rows without room for exactly their visual tokens."""
        visual, layout = np.count_nonzero(found.arrays["media_index"] >= 0, axis=1), self._layout(group)
        # A record that says its `num_media` may have fewer than its row has room for. So may a conversation, and its
        # source gives each a marker.
        media = [example.get("num_media", layout.num_media) for example in found.examples]
        expected = np.asarray(media) * layout.num_visual_tokens
        wrong = (visual != expected) & ["sizes" not in example for example in found.examples]
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise UserError(
                f"Expected room for {expected[row]} visual tokens in every prompt of {self.config.mixture}; found "
                f"{visual[row]} in {found.examples[row]['id']!r}. Its inputs need one marker (prompts.MEDIA_ID) a "
                "medium."
            )

    def _count(self, examples: list[dict[str, Any]], truncated: np.ndarray) -> None:
        """Counts rows, names bad ones, and stops when they are too many."""
        counts = self._counts
        counts["seen"] += len(examples)
        dropped = self.config.long_text == "drop"
        counts["dropped" if dropped else "truncated"] += int(np.count_nonzero(truncated))
        if self.config.long_text == "error" and truncated.any():
            row = int(np.flatnonzero(truncated)[0])
            raise UserError(
                f"Expected text within lengths {dict(self.config.lengths)}; {examples[row]['id']!r} has "
                f"{truncated[row]} tokens more. Raise LoaderConfig.lengths, or set long_text to 'drop' or 'truncate'."
            )
        self._judge_lengths(examples, truncated)
        for example in examples:
            if example["error"]:
                counts["skipped"] += 1
                self._bad.append(f"{example['id']}: {example['error']}")
                tell_skipped(self._bad[-1])
        if counts["skipped"] > self.config.max_bad_share * max(counts["seen"], min(1000, self.num_examples())):
            raise UserError(
                f"Expected at most {self.config.max_bad_share:.1%} of the records of {self.config.mixture} "
                f"({self.config.split}) to be unreadable; found {counts['skipped']} of {counts['seen']}, last "
                f"{'; '.join(dict.fromkeys(self._bad))}. Repair or remove them, or raise "
                "LoaderConfig.max_bad_share."
            )

    def _judge_lengths(self, examples: list[dict[str, Any]], truncated: np.ndarray) -> None:
        """Warns once of many targets without an end, and stops where all rows were dropped."""
        room, seen = self.config.lengths.get("targets", 0), self._counts["seen"]
        # A conversation is cut behind an answer, which keeps its end.
        cut = (x for x, over in zip(examples, truncated, strict=True) if over and not x["error"])
        self._cut_targets += sum(x.get("sizes", (0, len(x.get("targets", ()))))[1] > room for x in cut)
        if seen < min(_TO_JUDGE, self.num_examples()):
            return
        if self._counts["dropped"] == seen:
            raise UserError(
                f"Expected rows to train on in {self.config.mixture} ({self.config.split}); all {seen} so far have "
                f"more text than the lengths {dict(self.config.lengths)}, and long_text='drop' leaves such rows out. "
                "Raise LoaderConfig.lengths."
            )
        if self.config.long_text == "truncate" and not self._warned and self._cut_targets > _MOST_CUT * seen:
            self._warned = True
            logging.warning(
                "%d of %d targets of %s (%s) so far are longer than the %d tokens of lengths['targets'] and are cut: "
                "the model does not learn to end them. Raise TASK_FEATURE_LENGTHS['targets'], or leave such records "
                "out with LoaderConfig.long_text = 'drop'.",
                *(self._cut_targets, seen, self.config.mixture, self.config.split, room),
            )

    # Evaluation

    def eval_batches(self, for_decoding: bool = False) -> Iterator[tuple[AnyBatch, list[dict[str, Any]]]]:
        """Yields one pass over the split: (host-local batch, a dict a row), task by task.

        Every host makes the same number of batches. The last batch of a task is filled with rows without weight, whose
        dict has `valid` False, as it has for records that cannot be read: theirs says in `error` why.

        Args:
            for_decoding: rows hold prompts only, to be continued.

        A row's dict: `id`, `task`, `valid`, `error`, `prompt`, `references` (list), `question`, `answers` (list),
        `question_type`, `answer_type`, `domain`, `options` (list) and `image`, the file's name (where the data set has
        them) and `thumbnail`, the first medium as uint8 [F, h, w, 3] (None without media). Rows without text have
        `id`, `task`, `valid` and `thumbnail`.
        """
        if self.config.packing:
            raise UserError(
                f"Expected one sample a row in a pass over {self.config.mixture} ({self.config.split}); found packing, "
                "which is for training. Set train/LoaderConfig.packing, not that of evaluations."
            )
        for group in self._groups:
            for task in group.tasks:
                yield from self._eval_task(Group(group.media_shape, (task,), (1.0,), group.sizes), for_decoding)

    def _eval_task(self, group: Group, for_decoding: bool) -> Iterator[tuple[AnyBatch, list[dict]]]:
        (task,), size = group.tasks, self.config.batch_size
        total = task.num_examples(self.config.split)
        total = min(total, self.config.eval_limit or total)
        starts = range(self._first, -(-total // size) * size, size)
        here = np.arange(self._local)
        indices = ((start + here) % total for start in starts)
        plans = ([Share(0, here, some, some.astype(np.int64))] for some in indices)
        rows = group.read(self.config.split, plans, self._layout(group, for_decoding))
        for start, found in zip(starts, read_ahead(rows, self.config.prefetch), strict=True):
            real = min(max(total - start, 0), self._local)
            yield self._finish(group, found, real), _rows(found, task, real)


class BatchIterator:
    """Endless batches, with the loader's `counters()` beside. `close()` (or dropping it) ends the reading ahead."""

    def __init__(self, loader: Loader, start_step: int):
        self._loader = loader
        self._batches = loader._train_batches(start_step)

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> AnyBatch:
        return next(self._batches)

    def counters(self) -> dict[str, float]:
        return self._loader.counters()

    def record_ids(self, step: int) -> list[str]:
        return self._loader.record_ids(step)

    def close(self) -> None:
        self._batches.close()


@functools.lru_cache(maxsize=100_000)  # records; each is named once a process, however often and by whom it is read
def tell_skipped(record: str) -> None:
    """Names a record that cannot be read, and why, in the log."""
    logging.warning("skipped %s", record)


def _rows(found: RowBatch, task: Task, real: int) -> list[dict[str, Any]]:
    """What is known of each row beside its arrays."""
    rows = []
    for i, example in enumerate(found.examples):
        row: dict[str, Any] = {
            "id": example["id"],
            "task": task.name,
            "valid": i < real and not example["error"],
            "error": example["error"] if i < real else "",
            "thumbnail": found.media[i, 0] if found.media.shape[1] and example.get("num_media", 1) else None,
        }
        rows.append(row | {key: example[key] for key in (*_ROW_TEXT, *_ROW_TEXTS) if key in example})
    return rows
