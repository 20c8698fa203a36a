"""What a client is told that asked for something wrong, or at a wrong time."""

from collections.abc import Mapping
from typing import Any

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is an error, in OpenAI's form.

    Args:
        status: of HTTP.
        message: one sentence or two: what is wrong and what to change.
        code: for programs.
        param: the field of the request.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Returns the JSON of the answer."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def wrong(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Makes the error of a request that is wrong in itself, status 400."""
    return ApiError(400, message, code, param)


def busy(message: str) -> ApiError:
    """Makes the error of a request that came when there was no room, status 429."""
    return ApiError(429, message, "server_busy", headers={"Retry-After": "1"})
