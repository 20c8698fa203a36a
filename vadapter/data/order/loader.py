"""`Loader`: batches of a seqio task or mixture, in an order that is a function of (seed, step) alone.

Batch s is made by one group of tasks, those with the same media shape, so that every batch is homogeneous. Which group,
and which record is in which row, is closed-form (`schedule`): batch s can be made without the batches before it, and
host h of n makes the h-th contiguous block of its rows.
"""

import collections
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from vadapter.base.batch import Batch, LabelledImages
from vadapter.base.errors import UserError
from vadapter.data.order import groups
from vadapter.data.order.config import LoaderConfig
from vadapter.data.order.groups import Group
from vadapter.data.order.schedule import Schedule, mix, shuffled
from vadapter.data.reading.sources import Chunk, Loaded, Shape
from vadapter.data.rows.converters import VLMFeatureConverter

Arrays = dict[str, Any]  # of a batch, on the host
_BATCH_FIELDS = tuple(f.name for f in dataclasses.fields(Batch))
_KEPT = ("id", "choice", "error")  # of a record, by every preprocessor
_ROW_TEXT = ("prompt", "question", "question_type", "answer_type", "domain", "image")
_ROW_TEXTS = ("references", "answers")
_ABSENT = b"\0"  # pads lists of texts, which may have empty ones


class _Part:
    """Records of one task: their text goes through tf.data, their media wait here until it has come out."""

    def __init__(self, task: seqio.Task, split: str, chunks: Callable[[], Iterable[Chunk]], media_shape: Shape):
        """`chunks`: those of one batch each."""
        self.task, self._split, self._chunks, self._shape = task, split, chunks, media_shape
        self._waiting: collections.deque[Loaded] = collections.deque()

    def features(self) -> tf.data.Dataset:
        def loaded() -> Iterator[Loaded]:
            for found in self.task.source.load(self._split, self._chunks(), self._shape):
                self._waiting.append(found)
                yield found

        return self.task.source.features(loaded)

    def take(self, choices: np.ndarray) -> np.ndarray:
        """Returns the media of the next chunk, which has the given choices."""
        found = self._waiting.popleft()
        if not np.array_equal(found.choices, choices):
            raise UserError(
                f"Expected preprocessors that make one example of each record, in their order; those of "
                f"{self.task.name} do not. Let them set `error` instead of leaving a record out."
            )
        return found.media


def _joined(parts: Sequence[_Part], which: np.ndarray, choices: np.ndarray) -> np.ndarray:
    """Returns the media of a batch, uint8 [B, M, F, h, w, 3], whose rows are of the parts `which` [B]."""
    if len(parts) == 1:
        return parts[0].take(choices)
    taken = {i: parts[i].take(choices[which == i]) for i in np.unique(which)}
    media = np.empty((len(which), *next(iter(taken.values())).shape[1:]), np.uint8)
    for i, some in taken.items():
        media[which == i] = some
    return media


class Loader:
    """Makes host-local batches. See `LoaderConfig`.

    `batches` and `eval_batches` can be called any number of times; the counters count on.
    """

    def __init__(self, config: LoaderConfig, process_index: int = 0, process_count: int = 1):
        """Raises:
        UserError: no such mixture or split, a batch that does not divide over the hosts, or lengths without room.
        """
        with contextlib.suppress(RuntimeError):  # TensorFlow is running already
            tf.config.set_visible_devices([], "GPU")  # or it takes the memory of the GPU that jax needs
        self.config = config
        self._provider = groups.provider(config.mixture)
        self._tasks = groups.tasks(self._provider, config.split)
        if config.batch_size < 1 or config.batch_size % process_count:
            raise UserError(
                f"Expected a batch size that {process_count} processes can share equally; found {config.batch_size}. "
                "Change LoaderConfig.batch_size."
            )
        if config.long_text not in ("truncate", "error"):
            raise UserError(
                f"Expected long_text 'truncate' or 'error'; found {config.long_text!r}. Choose one of them."
            )
        self._local = config.batch_size // process_count
        self._first = process_index * self._local
        self._groups = groups.grouped(self._provider, self._tasks, config)
        self._bad: collections.deque[str] = collections.deque(maxlen=3)
        self._counts = {"seen": 0, "skipped": 0, "truncated": 0}
        self._small = min(1000, sum(task.source.num_examples(config.split) for task in self._tasks))

    @property
    def vocabulary(self) -> seqio.Vocabulary:
        """Vocabulary of the targets. A `UserError` where the tasks have labels instead of text."""
        features = self._tasks[0].output_features
        if "targets" not in features:
            raise UserError(f"Expected a mixture with text; {self.config.mixture} has labels. Choose another mixture.")
        return features["targets"].vocabulary

    @property
    def eos_id(self) -> int:
        """Id that ends a text. A `UserError` where the vocabulary has none: then nothing would end."""
        if self.vocabulary.eos_id is None:
            raise UserError(
                f"Expected a vocabulary with an end token; {self.vocabulary} has none. Choose another vocabulary."
            )
        return self.vocabulary.eos_id

    def num_examples(self) -> int:
        """Returns the number of records in the split, all tasks together."""
        return sum(task.source.num_examples(self.config.split) for task in self._tasks)

    def counters(self) -> dict[str, float]:
        """Returns what this host counted so far: rows seen, skipped (unreadable), truncated, and the shares.

        `left_out` are records that its sources found to be unusable when they were opened: they are in no row.
        """
        seen = max(self._counts["seen"], 1)
        counts: dict[str, float] = {k: self._counts[k] / seen for k in ("skipped", "truncated")}
        counts = {f"{k}_share": share for k, share in counts.items()}
        counts["left_out"] = sum({id(t.source): t.source.left_out for t in self._tasks}.values())
        return {k: float(v) for k, v in (self._counts | counts).items()}

    # Training

    def batches(self, start_step: int = 0) -> "BatchIterator":
        """Returns an endless iterator of the batches of steps `start_step`, `start_step + 1`, ..."""
        return BatchIterator(self, start_step)

    def _train_batches(self, start_step: int) -> Iterator[Batch | LabelledImages]:
        schedule = Schedule([sum(g.rates) for g in self._groups], seed=int(mix(self.config.seed, 1) >> np.uint64(1)))
        streams: dict[int, Iterator[Arrays]] = {}
        step = start_step
        while True:
            chosen = int(schedule.at(np.asarray([step]))[0][0])
            if chosen not in streams:
                first = schedule.before(step, chosen)
                streams[chosen] = self._stream(chosen, first)
            yield self._finish(self._groups[chosen], next(streams[chosen]))
            step += 1

    def _stream(self, group_index: int, first_batch: int) -> Iterator[Arrays]:
        """Returns this host's batches `first_batch`, ... of a group."""
        group, config = self._groups[group_index], self.config
        seed = int(mix(config.seed, 2, group_index) >> np.uint64(1))
        schedule = Schedule(group.rates, seed)
        sizes = [task.source.num_examples(config.split) for task in group.tasks]
        blocks = [task.source.blocks(config.split) for task in group.tasks]

        def slots() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            batch = first_batch
            while True:
                rows = np.arange(self._first, self._first + self._local) + batch * config.batch_size
                yield rows, *schedule.at(rows)
                batch += 1

        def chunks(which: int) -> Iterator[Chunk]:
            task_seed = int(mix(seed, 3, which) >> np.uint64(1))
            for _, task, ordinal in slots():
                mine = ordinal[task == which]
                if len(mine):
                    choices = (mix(task_seed, 4, mine) >> np.uint64(1)).astype(np.int64)
                    yield shuffled(mine, sizes[which], task_seed, blocks[which]), choices

        parts = [_Part(t, config.split, lambda i=i: chunks(i), group.media_shape) for i, t in enumerate(group.tasks)]
        streams = [self._examples(part, group, for_decoding=False, keep=_KEPT) for part in parts]
        examples = streams[0]
        if len(streams) > 1:
            spec = tf.TensorSpec([None], tf.int64)
            order: Any = tf.data.Dataset.from_generator(lambda: (task for _, task, _ in slots()), output_signature=spec)
            examples = tf.data.Dataset.choose_from_datasets(streams, order.unbatch())
        examples = _tuned(examples.batch(self._local, drop_remainder=True).prefetch(config.prefetch))
        for (_, tasks, _), arrays in zip(slots(), _arrays(examples), strict=False):
            yield {**arrays, "media": _joined(parts, tasks, arrays["choice"])}

    def _examples(self, part: _Part, group: Group, for_decoding: bool, keep: tuple) -> tf.data.Dataset:
        """Returns converted examples of a task, in their order, without media."""
        task = part.task
        lengths = {**self.config.lengths, "media": group.media_shape}
        ds = task.preprocess_postcache(part.features(), sequence_length=lengths)
        passthrough = {k: ds.element_spec[k] for k in keep if k in ds.element_spec}
        if group.labelled:
            wanted = ("labels", *passthrough)
            return ds.map(lambda ex: {k: ex[k] for k in wanted})
        vocabulary: Any = task.output_features["targets"].vocabulary
        converter = VLMFeatureConverter(
            self._visual_tokens(group), vocabulary.bos_id, for_decoding, passthrough, len(vocabulary.tail(""))
        )
        lengths |= dict.fromkeys(passthrough, 1)
        lengths["media"] = (group.media_shape[0], 1, 1, 1, 3)  # a pixel, in place of what comes later
        pixel = tf.zeros(lengths["media"], tf.uint8)
        ds = ds.map(lambda ex: {**ex, "media": pixel})
        return converter(ds, lengths)

    def _visual_tokens(self, group: Group) -> int:
        """R for the group's number of frames."""
        tokens = self.config.num_visual_tokens
        return tokens if isinstance(tokens, int) else tokens.get(group.media_shape[1], 0)

    def _finish(self, group: Group, arrays: Arrays, real: int | None = None) -> Batch | LabelledImages:
        """Counts and checks a batch, and wraps it. Rows from `real` on are padding, without weight."""
        real = len(arrays["error"]) if real is None else real
        errors = arrays["error"]
        self._count(errors[:real], arrays["id"][:real], arrays.get("truncated", np.zeros(0))[:real])
        valid = (errors == b"") & (np.arange(len(errors)) < real)
        if group.labelled:
            labels = np.where(valid[:, None], arrays["labels"], -1).astype(np.int32)
            rows: Any = (arrays["media"][:, 0, 0], labels, valid.astype(np.float32))
            return LabelledImages(*rows)
        visual = np.count_nonzero(arrays["media_index"] >= 0, axis=1)
        expected = group.media_shape[0] * self._visual_tokens(group)
        if (visual != expected).any():
            row = int(np.flatnonzero(visual != expected)[0])
            raise UserError(
                f"Expected room for {expected} visual tokens in every prompt of {self.config.mixture}; found "
                f"{visual[row]} in {arrays['id'][row].decode()!r}. Its inputs need one marker "
                "(preprocessors.MEDIA_ID) a medium."
            )
        arrays = {**arrays, "target_weights": arrays["target_weights"] * valid[:, None].astype(np.float32)}
        return Batch(**{k: arrays[k] for k in _BATCH_FIELDS})

    def _count(self, errors: np.ndarray, ids: np.ndarray, truncated: np.ndarray) -> None:
        """Counts rows, names bad ones, and stops when they are too many."""
        counts = self._counts
        counts["seen"] += len(errors)
        counts["truncated"] += int(np.count_nonzero(truncated))
        if self.config.long_text == "error" and truncated.any():
            row = int(np.flatnonzero(truncated)[0])
            raise UserError(
                f"Expected text within lengths {dict(self.config.lengths)}; {ids[row].decode()!r} has {truncated[row]} "
                "tokens more. Raise LoaderConfig.lengths, or set long_text to 'truncate'."
            )
        for row in np.flatnonzero(errors != b""):
            counts["skipped"] += 1
            self._bad.append(f"{ids[row].decode()}: {errors[row].decode()}")
            logging.warning("skipped %s", self._bad[-1])
        if counts["skipped"] > self.config.max_bad_share * max(counts["seen"], self._small):
            raise UserError(
                f"Expected at most {self.config.max_bad_share:.1%} of the records of {self.config.mixture} "
                f"({self.config.split}) to be unreadable; found {counts['skipped']} of {counts['seen']}, last "
                f"{'; '.join(dict.fromkeys(self._bad))}. Repair or remove them, or raise "
                "LoaderConfig.max_bad_share."
            )

    # Evaluation

    def eval_batches(self, for_decoding: bool = False) -> Iterator[tuple[Batch | LabelledImages, list[dict[str, Any]]]]:
        """Yields one pass over the split: (host-local batch, a dict a row), task by task.

        Every host makes the same number of batches. The last batch of a task is filled with rows without weight, whose
        dict has `valid` False, as it has for records that cannot be read: theirs says in `error` why.

        Args:
            for_decoding: rows hold prompts only, to be continued.

        A row's dict: `id`, `task`, `valid`, `error`, `prompt`, `references` (list), `question`, `answers` (list),
        `question_type`, `answer_type`, `domain` and `image`, the file's name (where the data set has them) and
        `thumbnail`, the medium as uint8 [F, h, w, 3] (None without media). Labelled images have `id`, `task`, `valid`
        and `thumbnail`.
        """
        for group in self._groups:
            for task in group.tasks:
                yield from self._eval_task(group, task, for_decoding)

    def _eval_task(self, group: Group, task: seqio.Task, for_decoding: bool) -> Iterator[tuple[Any, list[dict]]]:
        total = task.source.num_examples(self.config.split)
        total = min(total, self.config.eval_limit or total)
        starts = range(
            self._first, -(-total // self.config.batch_size) * self.config.batch_size, self.config.batch_size
        )

        def chunks() -> Iterator[Chunk]:
            for start in starts:
                rows = np.arange(start, start + self._local) % total
                yield rows, rows.astype(np.int64)

        part = _Part(task, self.config.split, chunks, group.media_shape)
        keep = _KEPT if group.labelled else (*_KEPT, *_ROW_TEXT, *_ROW_TEXTS)
        ds = self._examples(part, group, for_decoding, keep)
        specs: Any = ds.element_spec
        fill: Any = {k: _ABSENT if spec.dtype == tf.string else None for k, spec in specs.items()}
        ds = ds.padded_batch(self._local, padding_values=fill, drop_remainder=True)
        ds = _tuned(ds.prefetch(self.config.prefetch))
        for start, arrays in zip(starts, _arrays(ds), strict=True):
            arrays = {**arrays, "media": part.take(arrays["choice"])}
            real = min(max(total - start, 0), self._local)
            yield self._finish(group, arrays, real), _rows(arrays, task.name, real, group.media_shape[0])


class BatchIterator:
    """Endless batches, with the loader's `counters()` beside. `close()` (or dropping it) ends the reading ahead."""

    def __init__(self, loader: Loader, start_step: int):
        self._loader = loader
        self._batches = loader._train_batches(start_step)

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch | LabelledImages:
        return next(self._batches)

    def counters(self) -> dict[str, float]:
        return self._loader.counters()

    def close(self) -> None:
        self._batches.close()


def _rows(arrays: Arrays, task: str, real: int, num_media: int) -> list[dict[str, Any]]:
    rows = []
    for i in range(len(arrays["id"])):
        row: dict[str, Any] = {
            "id": arrays["id"][i].decode(),
            "task": task,
            "valid": bool(i < real and arrays["error"][i] == b""),
            "error": arrays["error"][i].decode() if i < real else "",
            "thumbnail": arrays["media"][i, 0] if num_media else None,
        }
        for key in _ROW_TEXT:
            if key in arrays:
                row[key] = arrays[key][i].decode()
        for key in _ROW_TEXTS:
            if key in arrays:
                row[key] = [t.decode() for t in arrays[key][i] if t != _ABSENT]
        rows.append(row)
    return rows


def _arrays(ds: tf.data.Dataset) -> Iterator[Arrays]:
    return iter(ds.as_numpy_iterator())  # type: ignore[return-value]


def _tuned(ds: tf.data.Dataset) -> tf.data.Dataset:
    """One thread a stream and no hand-over between threads: examples are cheap and the device needs the cores."""
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    options.experimental_optimization.map_fusion = True
    return ds.with_options(options)
