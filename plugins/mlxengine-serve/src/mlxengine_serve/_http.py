"""One request of a client: its body read within bounds, its answer sent, its leaving noticed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeVar

from attrs import define, field

from ._refusals import Refusal, Told, encoded
from .options import Key, ServerOptions

T = TypeVar("T")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = dict[str, str]

CALLER = "mlxengine_serve.caller"
LEFT = "the client left"  # why work was cancelled; without it the server ends
LARGE = 256 << 10  # a body from here on is handled beside the event loop
_MOST_NAMED = 20
_AT_ONCE = 4  # frames after which others have their turn: neither a fast model nor an open socket waits


class ClientGone(Exception):
    """The client has left; nobody reads an answer."""


@define(eq=False, kw_only=True)
class Caller:
    """Who asks, and what is known of the request by the time it is answered.

    ``large``: its body is, and reading things from it takes a while. ``told``: says the engine's errors in
    the words of its dialect. ``beyond``: what goes on for it when the connection is lost.
    """

    id: str
    key: Key | None = None
    status: int = 0
    model: str | None = None
    large: bool = False
    told: Told | None = None
    beyond: asyncio.Task[None] | None = None

    async def aside(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function whose time grows with the body: beside the event loop where that is large."""
        return await asyncio.to_thread(function, *arguments) if self.large else function(*arguments)


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do the work for as long as the client is there.

    Raises:
        ClientGone: it left; the work was cancelled, wherever it was.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel(LEFT)
        raise ClientGone
    finally:
        leaving.cancel()
        if not task.done():
            if not task.cancelling():
                task.cancel()
            await asyncio.wait((task,))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def read_body(scope: Scope, receive: Receive, options: ServerOptions) -> bytes:
    """The body of a request.

    Raises:
        Refusal: 413, it is too large; 408, it does not arrive; 415, it is compressed.
        ClientGone: the client left in the middle of it.
    """
    if (header(scope, b"content-encoding") or "identity").lower() != "identity":
        raise Refusal(415, "Send the body as it is, without a Content-Encoding.", code="unsupported_encoding")
    declared = header(scope, b"content-length")
    if declared is not None and declared.isdecimal() and int(declared) > options.max_body:
        raise _too_large(options)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(options.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > options.max_body:
                    raise _too_large(options)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise Refusal(408, f"The body did not arrive within {options.body_seconds:g} s.") from None


def _too_large(options: ServerOptions) -> Refusal:
    return Refusal(413, f"A body may have {options.max_body} bytes.", code="request_too_large")


async def read_json(scope: Scope, receive: Receive, options: ServerOptions) -> dict[str, Any]:
    """The body as a JSON object; none at all is an empty one.

    Raises:
        Refusal: 400, it is no JSON object, or names a field twice; and as `read_body`.
        ClientGone: as `read_body`.
    """
    body = await read_body(scope, receive, options)
    if not body:
        return {}
    caller: Caller = scope[CALLER]
    caller.large = len(body) > LARGE
    try:
        found = await caller.aside(parsed, body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"The body is not JSON: {error}.", code="invalid_json") from None
    if not isinstance(found, dict):
        raise Refusal(400, "The body must be a JSON object.", code="invalid_json")
    return found


def parsed(body: bytes) -> Any:
    """The value of a text of JSON.

    Raises:
        ValueError: it is none, or names something twice.
    """
    return json.loads(body, object_pairs_hook=_named_once, parse_constant=_no_number)


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):  # which of the two was meant?
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {twice[:100]!r} stands twice in an object")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of this lower-case name."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None


def ignored(names: list[str]) -> Headers:
    """The header that names the fields of a request which nobody here knows."""
    shown = [name for name in names if name.isascii() and name.isprintable() and "," not in name]
    more = len(names) - min(len(shown), _MOST_NAMED)
    words = [*(name[:100] for name in shown[:_MOST_NAMED]), *([f"and {more} more"] if more else [])]
    return {"x-mlxengine-ignored": ", ".join(words)} if names else {}


async def send_bytes(
    send: Send, status: int, body: bytes, content_type: str, headers: Headers | None = None
) -> None:
    """Send a whole answer."""
    found = {"content-type": content_type, "content-length": str(len(body)), **(headers or {})}
    await send({"type": "http.response.start", "status": status, "headers": raw(found)})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, value: Any, status: int = 200, headers: Headers | None = None) -> None:
    """Send a whole answer of JSON."""
    await send_bytes(send, status, encoded(value), "application/json", headers)


def raw(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Headers as ASGI has them."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


@define(eq=False)
class EventWriter:
    """A stream of server-sent events: begun by the first event or by the clock, never silent for long.

    Args:
        send: where it goes.
        headers: besides those of every such stream.
        first_seconds: when it begins without an event.
        beat_seconds: how long it may be silent.
        opening: what it begins with.
        beat: what shows that it lives.
    """

    send: Send
    headers: Headers = field(kw_only=True)
    first_seconds: float = field(kw_only=True)
    beat_seconds: float = field(kw_only=True)
    opening: bytes = field(kw_only=True)
    beat: Callable[[], bytes] = field(kw_only=True)
    started: bool = field(default=False, init=False)
    _opened: bool = field(default=False, init=False)
    _said: bool = field(default=False, init=False)
    _written: int = field(default=0, init=False)
    _turn: asyncio.Lock = field(factory=asyncio.Lock, init=False)
    _clock: asyncio.Task[None] | None = field(default=None, init=False)

    async def __aenter__(self) -> EventWriter:
        self._clock = asyncio.ensure_future(self._tick())
        return self

    async def __aexit__(self, *_error: object) -> None:
        assert self._clock is not None
        self._clock.cancel()
        await asyncio.wait((self._clock,))

    async def write(self, data: bytes) -> None:
        """Send frames; the headers and the opening go before the first."""
        self._said = True
        if self._opened:
            await self._send(data)
        else:
            async with self._turn:
                opening = b"" if self.started else await self._start()
                await self._send(opening + data)
                self._opened = True
        self._written += 1
        if self._written % _AT_ONCE == 0:
            await asyncio.sleep(0)

    async def end(self) -> None:
        """The stream is complete."""
        await self.send({"type": "http.response.body", "body": b""})

    async def _send(self, data: bytes) -> None:
        if data:
            await self.send({"type": "http.response.body", "body": data, "more_body": True})

    async def _start(self) -> bytes:
        self.started = True
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache, no-transform",
            "x-accel-buffering": "no",  # nginx would hold frames back
            **self.headers,
        }
        await self.send({"type": "http.response.start", "status": 200, "headers": raw(headers)})
        return self.opening

    async def _tick(self) -> None:
        await asyncio.sleep(self.first_seconds)
        if not self.started:
            await self.write(b"")
        while True:
            self._said = False
            await asyncio.sleep(self.beat_seconds)
            if not self._said:
                await self.write(self.beat())


__all__ = [
    "CALLER",
    "LARGE",
    "LEFT",
    "ASGIApp",
    "Caller",
    "ClientGone",
    "EventWriter",
    "Headers",
    "Receive",
    "Scope",
    "Send",
    "header",
    "ignored",
    "parsed",
    "raw",
    "read_body",
    "read_json",
    "send_bytes",
    "send_json",
    "until_gone",
]
