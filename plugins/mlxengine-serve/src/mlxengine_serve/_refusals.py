"""What goes wrong, as a status and in the words of each interface."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from typing import Any, Protocol

from attrs import define, field
from mlxengine import errors

log = logging.getLogger("mlxengine.serve")


@define(eq=False)
class Refusal(Exception):
    """A request that is not served, or not to its end.

    Args:
        status: of HTTP.
        message: what was asked, what was found, what to do.
        code: a stable word for programs.
        param: the field that is wrong, ``messages[0].content`` for one inside another.
        retry_after: seconds after which the same request may succeed.
    """

    status: int
    message: str
    code: str | None = field(default=None, kw_only=True)
    param: str | None = field(default=None, kw_only=True)
    retry_after: float | None = field(default=None, kw_only=True)

    @property
    def headers(self) -> dict[str, str]:
        """What the status wants beside it."""
        found = {}
        if self.retry_after is not None:
            found["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        return found


ENDING = Refusal(503, "The server is being ended.", code="shutting_down", retry_after=1)


class Form(Protocol):
    """How an interface says what went wrong."""

    def __call__(self, refusal: Refusal, request_id: str) -> dict[str, Any]: ...


_STATUS: tuple[tuple[tuple[type[Exception], ...], int, str | None], ...] = (
    ((errors.PromptTooLongError,), 400, "context_length_exceeded"),
    ((errors.UnsupportedInputError,), 400, "unsupported_value"),
    ((errors.InvalidModelRefError, errors.AmbiguousModelError), 404, "model_not_found"),
    ((errors.ConfigurationError,), 400, "invalid_value"),
    ((errors.GatedModelError, errors.HubAuthError), 403, "model_not_accessible"),
    ((errors.OfflineError, errors.HubUnavailableError), 503, "model_not_reachable"),
    ((errors.ResolutionError,), 404, "model_not_found"),
    ((errors.DownloadError,), 503, "model_not_fetched"),
    ((errors.InsufficientMemoryError,), 503, "out_of_memory"),
    ((errors.QueueFullError,), 429, "queue_full"),
    ((errors.WaitTimeoutError, errors.RunTimeoutError), 504, "timeout"),
    ((errors.CancelledError, errors.EngineClosedError, errors.ModelClosedError), 503, "shutting_down"),
)


Told = Callable[[str], tuple[str | None, str]]


def refusal_of(error: BaseException, retry_after: float | None = None, told: Told | None = None) -> Refusal:
    """An error of the engine as a status; what nobody foresaw is a 500 that says nothing of the inside.

    Args:
        error: what was raised.
        retry_after: seconds, for what may succeed then.
        told: the client's field and words for a message, where it has any of its own.
    """
    if isinstance(error, Refusal):
        return error
    for kinds, status, code in _STATUS:
        if isinstance(error, kinds):
            wait = retry_after if status in (429, 503) else None
            param, said = told(str(error)) if told and status == 400 else (None, str(error))
            return Refusal(status, said, code=code, param=param, retry_after=wait)
    if isinstance(error, errors.MLXEngineError):
        return Refusal(500, str(error), code="engine_error")
    return Refusal(500, "The server failed; its log says how.", code="internal_error")


def log_failure(request_id: str, refusal: Refusal, error: BaseException) -> None:
    """Say what a request failed with: in a line what is known, with its trace what nobody foresaw."""
    if refusal.status == 500:
        log.error("%s failed", request_id, exc_info=error)
    elif refusal.status > 500:
        log.error("%s failed (%d): %s", request_id, refusal.status, " ".join(refusal.message.split()))


_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def openai_form(refusal: Refusal, request_id: str) -> dict[str, Any]:  # noqa: ARG001 - it is in a header there
    """``{"error": {"message", "type", "param", "code"}}``."""
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": refusal.message,
            "type": _OPENAI_TYPES.get(refusal.status, kind),
            "param": refusal.param,
            "code": refusal.code,
        }
    }


def anthropic_form(refusal: Refusal, request_id: str) -> dict[str, Any]:
    """``{"type": "error", "error": {"type", "message"}}``; the field that is wrong opens the message."""
    kind = "api_error" if refusal.status >= 500 else "invalid_request_error"
    where = f"{refusal.param}: " if refusal.param else ""
    error = {"type": _ANTHROPIC_TYPES.get(refusal.status, kind), "message": where + refusal.message}
    return {"type": "error", "error": error, "request_id": request_id}


def form_of(path: str) -> Form:
    """How the interface under a path says what went wrong."""
    return anthropic_form if path.startswith("/v1/messages") else openai_form


_encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def encoded(value: Any) -> bytes:
    """A value as JSON; a lone surrogate of a client's stays the escape that it came as.

    Raises:
        ValueError: a number in it is none that JSON has.
    """
    return _encoder.encode(value).encode()


def encoded_apart(value: Any) -> bytes:
    """As `encoded`, for a large value on another thread: one item after the other.

    Python's encoder holds up every other thread for as long as a call of it takes.
    """
    if isinstance(value, dict):
        return b"{%s}" % b",".join(encoded(key) + b":" + encoded_apart(item) for key, item in value.items())
    if isinstance(value, list) and value and isinstance(value[0], dict | list):
        return b"[%s]" % b",".join(map(encoded, value))
    return encoded(value)


__all__ = [
    "ENDING",
    "Form",
    "Refusal",
    "Told",
    "anthropic_form",
    "encoded",
    "encoded_apart",
    "form_of",
    "log_failure",
    "openai_form",
    "refusal_of",
]
