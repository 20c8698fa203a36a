"""The answer to one request while the engine decodes it."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any, Protocol

import numpy as np

from vadapter.base.batch import Batch
from vadapter.serving.answer_text import AnswerText
from vadapter.serving.api_errors import ApiError
from vadapter.serving.engine import Engine, Failed, Told
from vadapter.serving.limits import Limits
from vadapter.serving.metrics import Metrics
from vadapter.serving.requests import Asked


class Record(Protocol):
    """Where the time to the first token is told."""

    metrics: Metrics

    @property
    def seconds(self) -> float: ...


class Reply:
    """An answer that is decoded for as long as it is open; leaving it frees its row.

    Args:
        engine: decodes.
        asked: the request.
        prompt: its prompt.
        limits: of the server.
        record: of the request.
    """

    def __init__(self, engine: Engine, asked: Asked, prompt: Batch, limits: Limits, record: Record):
        self._engine, self._asked, self._prompt, self._record = engine, asked, prompt, record
        self._limit = limits.tokens(asked.max_tokens)
        vocabulary = engine.lanes[asked.model].trained.vocabulary
        assert vocabulary is not None
        self._text = AnswerText(vocabulary, asked.stop)
        self._name, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        self._prompt_tokens = int((np.asarray(prompt.segment_ids) > 0).sum())
        self._finish = "stop"

    def __enter__(self) -> "Reply":
        loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[Told]()

        def tell(told: Told) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(self._queue.put_nowait, told)

        asked = self._asked
        self._ticket = self._engine.submit(
            asked.model,
            self._prompt,
            self._limit,
            tell,
            temperature=asked.temperature,
            top_p=asked.top_p,
            seed=secrets.randbits(32) if asked.seed is None else asked.seed,
            streams=asked.stream,
        )
        self._record.metrics.read(asked.model, self._prompt_tokens)
        return self

    def __exit__(self, *_: Any) -> None:
        self._engine.cancel(self._ticket)

    async def finish(self) -> None:
        """Waits for the end. Raises `ApiError` where decoding failed."""
        async for _ in self._texts():
            pass

    def whole(self) -> dict[str, Any]:
        """Returns the answer, which has ended, as the JSON of a chat completion."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": self._text.text, "refusal": None},
            "logprobs": None,
            "finish_reason": self._finish,
        }
        return {**self._head("chat.completion"), "choices": [choice], "usage": self._usage()}

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """Yields the answer as the JSON of a stream's chunks. Raises `ApiError` where decoding failed."""
        yield self._chunk({"role": "assistant", "content": ""})
        async for text in self._texts():
            if text:
                yield self._chunk({"content": text})
        yield self._chunk({}, self._finish)
        if self._asked.usage:
            yield {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()}

    async def _texts(self) -> AsyncIterator[str]:
        first = True
        while True:
            told = await self._queue.get()
            if isinstance(told, Failed):
                raise ApiError(500, "The server failed at this request; its log says why.", "decoding_failed")
            metrics = self._record.metrics
            if first:
                metrics.first(self._asked.model, self._record.seconds)
                first = False
            metrics.wrote(self._asked.model, len(told.ids))
            yield self._text.add(told.ids, told.ended)
            if self._text.stopped:
                return
            if told.ended:
                self._finish = "length" if len(self._text.ids) >= self._limit else "stop"
                return

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._name, "object": kind, "created": self._created, "model": self._asked.model}

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _usage(self) -> dict[str, int]:
        prompt, written = self._prompt_tokens, len(self._text.ids)
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
