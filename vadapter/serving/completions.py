"""Chat completions: the body of a request in, an answer out, whole or as server-sent events."""

import asyncio
import contextlib
import json
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from vadapter.base.batch import Batch
from vadapter.base.errors import UserError
from vadapter.serving import prompts, requests
from vadapter.serving.api_errors import ApiError, busy, wrong
from vadapter.serving.engine import Engine
from vadapter.serving.limits import Limits
from vadapter.serving.media import Fetch
from vadapter.serving.metrics import Metrics
from vadapter.serving.reply import Reply
from vadapter.serving.requests import Asked

_T = TypeVar("_T")
_READERS = 2  # threads that parse requests and decode media: more would take the processors from the model
_FETCHERS = 16  # where they fetch as well: mostly they wait then, and a slow host is not to hold all others up
_LAST_WORDS = 1.0  # seconds in which a client can be told that its time is over
HUNG_UP = 499  # nginx's status of a client that went away


class HungUp(Exception):
    """The client went away: nobody is to be told anything."""


class _Record:
    """What the metrics say of a request."""

    def __init__(self, metrics: Metrics):
        self.metrics, self.started = metrics, time.perf_counter()
        self.model, self.status = "", 500

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def end(self) -> None:
        self.metrics.ended(self.model, self.status, self.seconds)


class Completions:
    """The endpoint of chat completions.

    Args:
        engine: decodes.
        limits: of the server.
        metrics: are told of everything.
        fetch: as of `prompts.make`.
    """

    def __init__(self, engine: Engine, limits: Limits, metrics: Metrics, fetch: Fetch | None = None):
        self._engine, self._limits, self._metrics, self._fetch = engine, limits, metrics, fetch
        self._readers = ThreadPoolExecutor(_READERS if fetch is None else _FETCHERS, "reader")
        self._count = self._held = 0

    async def answer(self, request: Request) -> Response:
        """Answers a request. What is wrong with it is an answer too."""
        deadline = asyncio.get_running_loop().time() + self._limits.seconds
        with contextlib.ExitStack() as stack:
            record = _Record(self._metrics)
            stack.callback(record.end)
            try:
                stack.enter_context(self._place())
                async with asyncio.timeout_at(deadline):
                    asked, prompt = await self._read(request, record)
                    reply = stack.enter_context(Reply(self._engine, asked, prompt, self._limits, record))
                    if asked.stream:
                        return _Events(reply, record, deadline, self._limits, stack.pop_all())
                    await _while_there(request.receive, reply.finish())
                    record.status = 200
                    return JSONResponse(reply.whole())
            except (ApiError, UserError, TimeoutError) as e:
                return error_response(_told(e, self._limits), record)
            except (HungUp, ClientDisconnect):
                record.status = HUNG_UP
                return Response(status_code=HUNG_UP)

    def close(self) -> None:
        """Gives the threads back."""
        self._readers.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """Holds one of the places for requests."""
        if self._count >= self._limits.requests:
            raise busy(f"The server has {self._count} requests, as many as it holds; ask again in a moment.")
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1

    async def _read(self, request: Request, record: _Record) -> tuple[Asked, Batch]:
        def prompt() -> tuple[Asked, Batch]:
            asked = requests.parse(bytes(body), list(self._engine.lanes), self._limits)
            record.model = asked.model
            lane = self._engine.lanes[asked.model]
            return asked, prompts.make(lane.trained, asked.messages, lane.media, self._limits, self._fetch)

        async def in_a_thread() -> tuple[Asked, Batch]:
            return await asyncio.get_running_loop().run_in_executor(self._readers, prompt)

        body = bytearray()
        try:
            await self._body(request, body)
            return await _while_there(request.receive, in_a_thread())
        finally:
            self._held -= len(body)

    async def _body(self, request: Request, body: bytearray) -> None:
        """Reads the body, as it comes and no more than the limits let in."""
        limits = self._limits
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" or request.headers.get("content-encoding", "identity") != "identity":
            raise ApiError(415, "Expected a body of the content type application/json, not compressed.")
        large = ApiError(413, f"The body has more than the {limits.body_bytes} bytes that are read.", "body_too_large")
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limits.body_bytes:
            raise large
        try:
            async with asyncio.timeout(limits.body_seconds):
                async for part in request.stream():
                    if len(body) + len(part) > limits.body_bytes:
                        raise large
                    if self._held + len(part) > limits.held_bytes:
                        raise busy("The server is reading as many uploads as it holds; ask again in a moment.")
                    body += part
                    self._held += len(part)
        except TimeoutError:
            raise ApiError(408, f"The body was not there after {limits.body_seconds:g} seconds.") from None


def error_response(error: ApiError, record: _Record | None = None) -> JSONResponse:
    """Returns an error as an answer."""
    if record is not None:
        record.status = error.status
    return JSONResponse(error.body(), error.status, error.headers)


def _told(error: Exception, limits: Limits) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UserError):
        return wrong(str(error))
    return ApiError(503, f"The answer was not there after {limits.seconds:g} seconds.", "timeout")


class _Events(Response):
    """An answer as server-sent events, piece by piece. A client that goes away ends it."""

    def __init__(self, reply: Reply, record: _Record, deadline: float, limits: Limits, held: contextlib.ExitStack):
        super().__init__(None, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._reply, self._record, self._deadline, self._limits, self._held = reply, record, deadline, limits, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            headers = [(k, v) for k, v in self.raw_headers if k not in (b"content-length", b"content-type")]
            headers.append((b"content-type", b"text/event-stream; charset=utf-8"))
            try:
                async with asyncio.timeout_at(self._deadline):
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    await _while_there(receive, self._pieces(send))
                    self._record.status = 200
            except (ApiError, TimeoutError) as e:
                error = _told(e, self._limits)
                self._record.status = error.status
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LAST_WORDS):
                        await send(_event(error.body()))
                        await send({"type": "http.response.body", "body": b"", "more_body": False})
            except HungUp:
                self._record.status = HUNG_UP

    async def _pieces(self, send: Send) -> None:
        async for chunk in self._reply.chunks():
            await send(_event(chunk))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


def _event(content: Any) -> dict[str, Any]:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return {"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True}


async def _while_there(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """Waits for some work, and gives it up with `HungUp` when the client goes away. The body has been read."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HungUp
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
