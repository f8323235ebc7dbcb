"""uvicorn as this server runs it: its own signals, no log of requests."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from mlxengine.errors import InvalidParameterError
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from ._http import ASGIApp, Receive, Scope, Send

DRAIN_SECONDS = 10
HEAD_SECONDS = 20.0
HEAD_BYTES = 64 * 1024
WRITE_SECONDS = 60.0
LAST_SECONDS = 1.0  # from the second signal until the process ends, however far it is


class Protocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """A connection whose next request has to begin in time, and whose answer has to be read.

    uvicorn waits for either for ever, and httptools keeps headers of any length.

    Args:
        write_seconds: how long a full connection may take no byte.
    """

    _late: asyncio.TimerHandle | None = None
    _full: asyncio.TimerHandle | None = None
    _unread = 0  # bytes since the parser gave a head, a part of a body or an end

    def __init__(self, *arguments: Any, write_seconds: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._write_seconds = write_seconds

    def connection_made(self, transport: Any) -> None:
        """The first request may take so long."""
        super().connection_made(transport)
        self._late = self.loop.call_later(HEAD_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request; its headers have to be there soon after the first of them."""
        self._unread += len(data)
        super().data_received(data)
        if self._unread > HEAD_BYTES:
            self.transport.abort()
        elif self.cycle is not None and not self.cycle.response_complete:
            self._in_time()
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def on_headers_complete(self) -> None:
        """A request's head is whole."""
        self._unread = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Its end, which headers may stand before too."""
        self._unread = 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Nothing more goes into the connection until its client reads."""
        super().pause_writing()
        self._watch(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """It has room again."""
        self._read()
        super().resume_writing()

    def _watch(self, left: int) -> None:
        self._full = self.loop.call_later(self._write_seconds, self._look, left)

    def _look(self, left: int) -> None:
        now = self.transport.get_write_buffer_size()
        if now < left:
            self._watch(now)
        else:
            self.transport.abort()

    def _read(self) -> None:
        if self._full is not None:
            self._full.cancel()
            self._full = None

    def connection_lost(self, error: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._in_time()
        self._read()
        super().connection_lost(error)

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def config(
    app: ASGIApp,
    certificate: Path | None = None,
    key: Path | None = None,
    write_seconds: float = WRITE_SECONDS,
) -> uvicorn.Config:
    """How uvicorn runs an application of ours.

    Args:
        app: the application.
        certificate, key: for HTTPS.
        write_seconds: how long a client may read nothing of what waits for it; then its connection ends.

    Raises:
        InvalidParameterError: the certificate or its key cannot be used.
    """
    if key is not None and certificate is None:
        raise InvalidParameterError("--tls-key goes with --tls-cert.")

    async def ended(scope: Scope, receive: Receive, send: Send) -> None:
        # Who is cut off at the end has been told; uvicorn would show the trace of each.
        with suppress(asyncio.CancelledError):
            await app(scope, receive, send)

    found = uvicorn.Config(
        ended,
        http=partial(Protocol, write_seconds=write_seconds),  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=DRAIN_SECONDS,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    try:
        found.load()  # else it would fail once the address was said
    except OSError as error:
        raise InvalidParameterError(
            f"{certificate} cannot be served with: {error}.",
            hint="--tls-cert names a chain in PEM, --tls-key its private key.",
        ) from error
    return found


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InvalidParameterError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off for sockets that say that they are TCP, and for no others
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(2048)
    except (OSError, OverflowError) as error:
        made.close()
        raise InvalidParameterError(
            f"{host}:{port} cannot be listened on: {str(error).rstrip('.')}.",
            hint="Choose another --port or --host.",
        ) from error
    return made


def catch_signals(call: Callable[[int], None]) -> None:
    """Call a function with each SIGINT and SIGTERM, until the loop is closed or another is to be called."""
    if threading.current_thread() is threading.main_thread():  # other threads get no signals
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, call, number)


class Runner(uvicorn.Server):
    """A server that ends in order at SIGTERM and SIGINT; uvicorn's own would raise them again behind it."""

    interrupted = False

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ask for the end at the first signal, for a quick one at the second, until the loop is closed.

        So the second one counts too where the engine waits for a step, after the last connection.
        """
        catch_signals(self.end)
        yield

    def end(self, number: int) -> None:
        """What a signal asks for."""
        self.interrupted = number == signal.SIGINT
        if self.should_exit:
            self.force_exit = True
            # A step that does not return would keep the process for as long as it takes.
            last = threading.Timer(LAST_SECONDS, os._exit, (128 + number,))
            last.daemon = True
            last.start()
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the application in any case: uvicorn would cut it off, and Starlette show the trace of that."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()


__all__ = ["Runner", "bind", "catch_signals", "config"]
