"""One request, made on a thread of its own: whoever waits for its answer can leave at any moment.

A socket cannot be asked to wait "until somebody gives up", and looking a name up cannot be broken off at all.
So the waiting is done by a thread that nobody has to wait for. It sends, and while the answer's body is read
by its owner, it watches over him: when he gives up, or the request takes too long, it shuts the connection
down, which wakes him up. Whatever the client library raises becomes a `Trouble` here, and nowhere else.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

from .._shown import shown
from ..errors import MLXEngineError
from .access import SLICE, Cancelled, check
from .secrets import scrub, silent

T = TypeVar("T")
AGAIN = frozenset({408, 429, 500, 502, 503, 504})
"""Status codes that may pass."""

_here = threading.local()


class Trouble(Exception):
    """A request that brought no answer of use.

    Args:
        reason: what happened, for people.
        again: whether the request is worth making again.
        unreachable: whether nobody answered.
        wait: seconds that the server asks us to wait.
        final: the error to end with when patience is used up.
    """

    def __init__(
        self,
        reason: str,
        *,
        again: bool = True,
        unreachable: bool = False,
        wait: float | None = None,
        final: MLXEngineError | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.again, self.unreachable = shown(reason), again, unreachable
        self.wait, self.final = wait, final


class Line(Generic[T]):
    """A thread that makes one request.

    Args:
        cancelled: whether the caller gave up.
        seconds: how long the request may take,
        slowest: but for what it has brought already, at so many bytes a second.
    """

    def __init__(self, cancelled: Cancelled, seconds: float, slowest: float) -> None:
        self._cancelled = cancelled
        self._seconds, self._slowest = seconds, slowest
        self._deadline = time.monotonic() + seconds
        self._answered, self._over = threading.Event(), threading.Event()
        self._abandoned = False
        self._result: T | None = None
        self._error: BaseException | None = None
        self._stream: Any = None
        self._fresh: socket.socket | None = None
        self.secrets: Sequence[str] = ()

    def check(self) -> None:
        """Go on only if somebody still waits, and has not waited too long.

        Raises:
            CancelledError: the caller gave up.
            Trouble: time is up.
        """
        check(self._cancelled)
        if time.monotonic() > self._deadline:
            raise Trouble(f"after {self._seconds:g} s it was not there, or too slow", unreachable=True)

    def open(self, send: Callable[[], T], close: Callable[[T], None]) -> T:
        """What ``send()`` brings; ``close`` is for a result that comes when nobody waits any more.

        Raises:
            CancelledError, Trouble: as `check`.
            MLXEngineError, Trouble: what ``send`` ended with.
        """
        thread = threading.Thread(
            target=self._carry, args=(send, close), name="mlxengine-hub-line", daemon=True
        )
        thread.start()
        try:
            while not self._answered.wait(SLICE):
                self.check()
        except BaseException:
            self._abandoned = True
            self.hang_up()
            raise
        error, self._error = self._error, None
        if error is not None:
            self._over.set()
            raise self.typed(error)
        result, self._result = self._result, None
        return result  # type: ignore[return-value]

    def _carry(self, send: Callable[[], T], close: Callable[[T], None]) -> None:
        _here.line = self
        try:
            self._result = send()
        except BaseException as error:
            self._error = error
        finally:
            _here.line = None
        self._answered.set()
        while not self._over.wait(SLICE):
            try:
                self.check()
            except BaseException:  # whatever it is: whoever reads finds out for himself
                self._cut()
                break
        self._over.wait()
        if self._abandoned and self._result is not None:
            close(self._result)
        if self._fresh is not None:
            self._fresh.close()

    def hang_up(self) -> None:
        """Nobody reads any more; a connection that still brings something is shut down."""
        self._over.set()
        if self._abandoned:
            self._cut()

    def hold(self, stream: Any, *, new: bool = False) -> None:
        """This connection is the one that the request uses."""
        self._stream = stream
        fresh, self._fresh = self._fresh, None
        if fresh is not None:
            fresh.close()
        if new and (raw := stream.get_extra_info("socket")) is not None:
            # While TLS is agreed upon, the connection belongs to an object that is not there yet.
            self._fresh = raw.dup()
        if self._over.is_set():
            self._cut()

    def _cut(self) -> None:
        raw = self._stream.get_extra_info("socket") if self._stream is not None else None
        for connection in (self._fresh, raw):
            if connection is not None:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def read(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The chunks of a body, as they come.

        Raises:
            CancelledError, Trouble: the caller gave up, time is up, or the connection failed.
        """
        problem: Exception | None = None
        while True:
            try:
                chunk = next(chunks, None)
            except Exception as error:
                problem = error
                break
            self.check()
            if chunk is None:
                return
            self._deadline += len(chunk) / self._slowest
            yield chunk
        self.check()  # a connection that was shut down fails, but that is not the reason
        raise self.typed(problem)

    def typed(self, error: BaseException) -> BaseException:
        """What is raised instead of what the client library raised: with a type of ours, without a secret."""
        import httpx2

        if isinstance(error, MLXEngineError | Trouble) or not isinstance(error, Exception):
            return error
        text = scrub(str(error), self.secrets) or "the connection failed"
        trouble = Trouble(
            f"{type(error).__name__}: {text[:500]}",
            again=_may_pass(error),
            unreachable=isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout),
        )
        trouble.__cause__ = silent(error, self.secrets)
        return trouble


def _may_pass(error: Exception) -> bool:
    """Whether another attempt can end otherwise: not if the address, the proxy, a certificate or the request
    itself is what is wrong."""
    import httpx2

    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError):
        return False
    if isinstance(error, httpx2.ProxyError):
        return not re.match(r"\d\d\d", str(error)) or int(str(error)[:3]) in AGAIN
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return False
        if isinstance(cause, ssl.SSLError) and cause.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
            return False  # the other side does not speak TLS
        cause = cause.__cause__ or cause.__context__
    return isinstance(error, httpx2.TransportError | httpx2.StreamError)


def trace(event: str, info: dict[str, Any]) -> None:
    """httpx's ``trace`` extension, called on the thread that sends: takes note of each new connection.

    A connection that is used again is not told of, so each one tells by itself when it is read.
    """
    if not event.endswith((".connect_tcp.complete", ".start_tls.complete", ".connect_unix_socket.complete")):
        return
    stream = info.get("return_value")
    line: Line[Any] | None = getattr(_here, "line", None)
    if stream is None or line is None:
        return
    line.hold(stream, new=event.endswith(".connect_tcp.complete"))
    receive = stream.read

    def read(*arguments: Any, **options: Any) -> bytes:
        current: Line[Any] | None = getattr(_here, "line", None)
        if current is not None:
            current.hold(stream)
        data: bytes = receive(*arguments, **options)
        return data

    with suppress(AttributeError):  # a stream of somebody else's making; then it is known when it is new
        stream.read = read
