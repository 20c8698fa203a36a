"""The server's addresses.

POST /v1/chat/completions    GET /v1/models    GET /v1/models/NAME    GET /health    GET /metrics    GET /
"""

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator
from importlib import resources

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from vadapter.serving.api_errors import ApiError
from vadapter.serving.completions import Completions, error_response
from vadapter.serving.engine import Engine
from vadapter.serving.limits import Limits
from vadapter.serving.media import Fetch
from vadapter.serving.metrics import CONTENT_TYPE, Metrics

# The page is one file: it loads nothing, speaks with this server alone, and stands in no other page.
_PAGE = {
    "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; media-src blob:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_OPEN = ("/health", "/")  # need no key: neither tells anything


def make(engine: Engine, limits: Limits, *, key: str = "", page: bool = False, fetch: Fetch | None = None) -> Starlette:
    """Makes the application. It starts the engine, and ends it when it ends itself.

    Args:
        engine: decodes.
        limits: of the server.
        key: that a client has to give; "" asks for none.
        page: whether there is a page for people at /.
        fetch: gets a picture from the web; None where that is not allowed.
    """
    metrics = Metrics({name: lambda name=name: engine.counts(name) for name in engine.lanes})
    completions = Completions(engine, limits, metrics, fetch)

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(name) for name in engine.lanes]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in engine.lanes:
            there = ", ".join(engine.lanes)
            raise ApiError(404, f"There is no model {name[:80]!r} here; there is {there}.", "model_not_found", "model")
        return JSONResponse(_model(name))

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def figures(request: Request) -> Response:
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def front(request: Request) -> Response:
        return HTMLResponse(content, headers=_PAGE)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine.start()
        yield
        completions.close()
        await asyncio.to_thread(engine.stop)

    routes = [
        Route("/v1/chat/completions", completions.answer, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/health", health),
        Route("/metrics", figures),
    ]
    if page:
        content = (resources.files("vadapter.serving") / "page.html").read_text(encoding="utf-8")
        routes.append(Route("/", front))
    return Starlette(
        routes=routes,
        middleware=[Middleware(_Guard, key=key)],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, Exception: _fault},
        lifespan=lifespan,
    )


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "vadapter"}


class _Guard:
    """Lets those in who have the key."""

    def __init__(self, app: ASGIApp, key: str):
        self._app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._key and scope["path"] not in _OPEN:
            given = dict(scope["headers"]).get(b"authorization", b"")
            scheme, _, key = given.partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._key):
                error = ApiError(
                    401,
                    "The API key is missing or is not the server's: send the header Authorization: Bearer KEY.",
                    "invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                return await error_response(error)(scope, receive, send)
        await self._app(scope, receive, send)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {
        404: f"There is nothing at {request.url.path[:80]}.",
        405: f"{request.url.path[:80]} does not take {request.method[:20]}.",
    }
    message = said.get(error.status_code, str(error.detail))
    return error_response(ApiError(error.status_code, message, headers=error.headers))


async def _fault(request: Request, error: Exception) -> Response:
    return error_response(ApiError(500, "The server failed at this request; its log says why."))
