"""Continuous batching: a row that ends is replaced by a waiting prompt, while the other rows go on.

    decoder = ContinuousDecoder(model, params, end_ids=vocabulary.ends, slots=128)
    first = decoder.submit(prompt)          # any time, also while others run
    while decoder.busy:
        for piece in decoder.step():        # the new tokens of each request
            ...

Each prompt is read by itself, in a row of a bucketed length, and each row of the running batch has slots of its own:
what other requests there are changes no text. The idea is Orca's (Yu et al. 2022, iteration-level scheduling).
"""

import collections
import dataclasses
import itertools
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from vadapter.base.array_types import PyTree
from vadapter.base.batch import Batch
from vadapter.base.errors import UserError
from vadapter.generation.config import EMPTY, DecodingConfig
from vadapter.generation.rows import SHORTEST, SLOTS, Choice, Programs, Rows, bucket
from vadapter.models.kv_cache import KVCache
from vadapter.models.vlm import VLM
from vadapter.partitioning import Partitioner

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Piece:
    """What one step gave of one request.

    Attributes:
        request: as `ContinuousDecoder.submit` named it.
        ids: tokens since its last piece, without an end token.
        ended: whether this is the last piece.
    """

    request: int
    ids: tuple[int, ...]
    ended: bool


@dataclasses.dataclass
class _Request:
    name: int
    prompt: Batch  # one row on the host, cut to its length
    limit: int
    choice: Choice
    told: int = 0


class ContinuousDecoder:
    """Decodes requests that come one by one, several of them at a time. One device, greedy or sampling.

    The thread that calls `step` owns the device. Others may call `submit` and `cancel` meanwhile.

    Attributes:
        params: all parameters; may be replaced while nothing runs.
        calls: of the language model so far, reading prompts not counted.

    Args:
        model: the VLM.
        params: its whole parameters, on the device.
        config: how texts are chosen; default greedy. `max_new_tokens` is the largest that a request may ask for.
        end_ids: ids of the end tokens: any of them ends a text.
        slots: of the longest prompt, visual tokens included.
        rows: requests that run at the same time.
        chunk: tokens of each row that a step gives at most, or with drafts calls of the language model, each of which
            may give several tokens: fewer stream sooner, more cost less.
        share: a prompt that starts like the one before it (the same text, or the same picture and another question)
            takes what was computed of that start. Texts are then equal but for the rounding of sums.
        partitioner: of one device.

    Raises:
        UserError: the method is `beam`, the mesh has several devices, a size is below 1, or the model cannot give the
            drafts (`vadapter.generation.drafts.check`).
    """

    def __init__(
        self,
        model: VLM,
        params: PyTree,
        config: DecodingConfig | None = None,
        *,
        end_ids: Sequence[int],
        slots: int,
        rows: int = 8,
        chunk: int = 16,
        share: bool = True,
        partitioner: Partitioner | None = None,
    ):
        self.params, self._config = params, config or DecodingConfig()
        self._slots, self._chunk, self._share = slots, chunk, share
        self._partitioner = partitioner or Partitioner()
        if min(slots, rows, chunk) < 1:
            raise UserError(
                f"Expected slots, rows and chunk of 1 or more; found {slots}, {rows} and {chunk}. Raise them."
            )
        if why := unfit(self._partitioner, self._config):
            raise UserError(f"Continuous decoding {why}.")
        self._size = bucket(slots) + max(self._config.max_new_tokens, SHORTEST)
        self._programs = Programs(model, self._config, tuple(end_ids), self._size, slots)
        self._waiting: collections.deque[_Request] = collections.deque()
        self._running: list[_Request | None] = [None] * rows
        self._cancelled: set[int] = set()
        self._lock = threading.Lock()  # of what other threads change: the two above
        self._names = itertools.count()
        self._rows: Rows | None = None
        self._last: tuple[Batch, KVCache, Any] | None = None
        self.calls = 0

    @property
    def most_new_tokens(self) -> int:
        """The largest limit of a request."""
        return self._config.max_new_tokens

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._waiting) or any(self._running)

    @property
    def waiting(self) -> int:
        """Requests that no row was free for yet."""
        return len(self._waiting)

    def submit(
        self,
        prompt: Batch,
        max_new_tokens: int | None = None,
        *,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> int:
        """Adds a request.

        Args:
            prompt: one row that ends with its prompt, on the host.
            max_new_tokens: limit of this one, the end token included; default and largest that of the configuration.
            temperature: of this one, where the method is `sample`; 0 takes the most likely token. The default of each
                of the three is the configuration's.
            top_p: of this one.
            seed: of this one.

        Returns:
            Its name, by which pieces are told apart: 0, 1, 2, ... in the order of the calls.

        Raises:
            UserError: more rows than one, an empty or too long prompt, or a setting that the decoder cannot give.
        """
        limit = self._config.max_new_tokens if max_new_tokens is None else max_new_tokens
        if not 1 <= limit <= self._config.max_new_tokens:
            raise UserError(
                f"max_new_tokens of a request is {limit}; expected 1 .. {self._config.max_new_tokens}, which is "
                "DecodingConfig.max_new_tokens of the decoder. Change one of them."
            )
        segments = np.asarray(prompt.segment_ids)
        length = int((segments > 0).sum())
        if segments.shape[0] != 1 or not 0 < length <= self._slots:
            raise UserError(
                f"Expected one row with a prompt of 1 .. {self._slots} slots; found {segments.shape[0]} rows and "
                f"{length} slots. Give rows one by one, shorten the prompt or make the decoder with more slots."
            )
        request = _Request(next(self._names), _cut(prompt, length), limit, self._choice(temperature, top_p, seed))
        with self._lock:
            self._waiting.append(request)
        return request.name

    def cancel(self, request: int) -> None:
        """Gives a request up: it has no further piece. One that has ended, or is not known, is left alone."""
        with self._lock:
            self._cancelled.add(request)

    def reset(self) -> None:
        """Forgets all requests and all rows: after a step that raised, the rows on the device are lost."""
        with self._lock:
            self._waiting.clear()
            self._cancelled.clear()
        self._running = [None] * len(self._running)
        self._rows = self._last = None

    def step(self, chunk: int | None = None) -> list[Piece]:
        """Reads prompts into free rows, then goes on with all rows until one ends or has a chunk of new tokens.

        Args:
            chunk: default that of the decoder.

        Returns:
            A piece of each request that has new tokens or has ended. Nothing where nobody waits or runs.
        """
        self._drop_cancelled()
        with self._partitioner.activate():
            for place, there in enumerate(self._running):
                while there is None and self._waiting:
                    there = self._running[place] = self._admit(place, self._waiting.popleft())
            if self._rows is None or not any(self._running):
                return []
            steps = self._chunk if chunk is None else chunk
            now, calls = self._programs.advance(self.params, self._rows, steps, bool(self._waiting))
        self._rows = now
        self.calls += int(calls)
        ids, ended = np.asarray(now.ids), np.asarray(now.ended)
        return [piece for place in range(len(self._running)) if (piece := self._piece(place, ids, ended)) is not None]

    def texts(self, prompts: Iterable[tuple[Batch, _T]]) -> Iterator[tuple[_T, list[int]]]:
        """Decodes a data set.

        Args:
            prompts: (one row, what it is called); read as rows come free, a few ahead.

        Yields:
            What it is called and its new ids, in the order in which texts end.

        Raises:
            UserError: as `submit`; or other requests wait or run.
        """
        if self.busy:
            raise UserError("The decoder has other requests. Let them end, or make a decoder for the data set.")
        source, names, found = iter(prompts), dict[int, _T](), dict[int, list[int]]()
        while True:
            for prompt, name in itertools.islice(source, max(0, 2 * len(self._running) - len(names))):
                request = self.submit(prompt)
                names[request], found[request] = name, []
            if not self.busy:
                return
            for piece in self.step():
                found[piece.request] += piece.ids
                if piece.ended:
                    yield names.pop(piece.request), found.pop(piece.request)

    def _choice(self, temperature: float | None, top_p: float | None, seed: int | None) -> Choice:
        config = self._config
        if config.method == "greedy":
            if temperature:
                raise UserError(
                    f"temperature of a request is {temperature}, and the decoder's method is 'greedy'. Make it with "
                    "the method 'sample'."
                )
            return Choice(0.0, 1.0, 0)
        found = Choice(
            config.temperature if temperature is None else temperature,
            config.top_p if top_p is None else top_p,
            config.seed if seed is None else seed,
        )
        if not (0 <= found.temperature < math.inf and 0 < found.top_p <= 1 and 0 <= found.seed < 2**32):
            raise UserError(
                f"A request has {found}; expected a temperature of 0 or more, a top_p above 0 and up to 1, and a seed "
                "of 0 .. 2**32 - 1. Change it."
            )
        return found

    def _drop_cancelled(self) -> None:
        with self._lock:
            gone, self._cancelled = self._cancelled, set()
            if not gone:
                return
            self._waiting = collections.deque(r for r in self._waiting if r.name not in gone)
        for place, request in enumerate(self._running):
            if request is not None and request.name in gone:
                self._running[place] = None
                assert self._rows is not None
                self._rows = self._rows.replace(ended=self._rows.ended.at[place].set(True))

    def _admit(self, place: int, request: _Request) -> _Request:
        if self._rows is None:
            self._rows = self._programs.empty(len(self._running))
        rest, cache, words = self._rest(request.prompt)
        limit, choice = request.limit, request.choice
        key = self._programs.key(request.prompt, choice)
        text = self._programs.text(request.prompt)
        self._rows, *read = self._programs.admit(
            self.params, self._rows, rest, cache, place, limit, key, choice.temperature, choice.top_p, text, words
        )
        if self._share:
            self._last = request.prompt, *read
        return request

    def _rest(self, prompt: Batch) -> tuple[Batch, KVCache, Any]:
        """What is to be read of a prompt, padded to a bucket; and of what was read before, the cache and the words."""
        length, shared = prompt.tokens.shape[1], 0
        cache, words = self._programs.nothing, np.full((1, self._programs.num_words), EMPTY, np.int32)
        if self._last is not None:
            shared = min(_common(prompt, self._last[0]), length - 1)
            shared = shared if shared >= SHORTEST and shared + bucket(length - shared) <= self._size else 0
            cache = self._last[1] if shared else cache
        rest = prompt
        slots = {name: getattr(prompt, name)[:, shared:] for name in SLOTS}
        if shared and not (slots["media_index"] >= 0).any():
            rest = rest.replace(media=prompt.pixels[:, :0])  # its tokens are in the cache: the encoder need not run
            words = self._last[2] if self._last else words
        pad = [(0, 0), (0, bucket(length - shared) - (length - shared))]
        padded = {name: np.pad(x, pad, constant_values=-1 if name == "media_index" else 0) for name, x in slots.items()}
        return rest.replace(**padded), cache.replace(length=np.int32(shared)), words

    def _piece(self, place: int, ids: np.ndarray, ended: np.ndarray) -> Piece | None:
        request = self._running[place]
        if request is None:
            return None
        row = ids[place]
        new = tuple(int(i) for i in row[request.told :] if i >= 0)
        request.told += len(new)
        if ended[place]:
            self._running[place] = None
        return Piece(request.name, new, bool(ended[place])) if new or ended[place] else None


def unfit(partitioner: Partitioner, config: DecodingConfig) -> str | None:
    """Returns why continuous decoding cannot be used; None if it can."""
    if config.method == "beam":
        return "has no beam search: its method is 'greedy' or 'sample'"
    if partitioner.mesh.size > 1:
        return f"runs on one device, and the mesh has {partitioner.mesh.size}: make a Partitioner of one"
    return None


def _cut(prompt: Batch, length: int) -> Batch:
    slots = {name: np.asarray(getattr(prompt, name))[:, :length] for name in SLOTS}
    none = np.zeros((1, 0), np.int32)
    rest = {"target_positions": none, "target_ids": none, "target_weights": none.astype(np.float32)}
    return prompt.replace(**slots, **rest, media=np.asarray(prompt.media))


def _common(a: Batch, b: Batch) -> int:
    """How many slots two prompts have alike from their start on."""
    length = min(a.tokens.shape[1], b.tokens.shape[1])
    alike = np.ones(length, bool)
    for name in SLOTS:
        alike &= getattr(a, name)[0, :length] == getattr(b, name)[0, :length]
    if a.media.shape != b.media.shape or not np.array_equal(a.pixels, b.pixels):
        alike &= a.media_index[0, :length] < 0
    return length if alike.all() else int(np.argmin(alike))
