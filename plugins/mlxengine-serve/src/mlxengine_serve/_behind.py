"""One of several servers: a whole one on a socket of this machine that only whoever started it may open."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from ._guard import ID
from ._http import ASGIApp, Receive, Scope, Send, header
from .options import ServerOptions

PASSED_ID = b"x-mlxengine-request-id"
"""The header by which a front says what it calls a request."""


@frozen(kw_only=True)
class Figures:
    """How a server is: its process, its socket, its requests, and for how long its device's step has run."""

    pid: int
    path: str
    running: int
    waiting: int
    step_seconds: float


class Behind:
    """A server that begins with the first question how it is.

    Args:
        options: of the server.
        folder: where its socket is made; nobody else may enter it.
        engine: what its engine is made with.
    """

    def __init__(self, options: ServerOptions, folder: Path, engine: Mapping[str, Any]) -> None:
        self._options = options
        self._path = str(folder / str(os.getpid()))
        self._made_with = engine
        self._engine: Any = None
        self._task: asyncio.Task[None] | None = None
        self._trouble: BaseException | None = None

    async def figures(self) -> Figures:
        """How it is.

        Raises:
            MLXEngineError: a model that it has to serve cannot be loaded, or it has ended otherwise.
        """
        if self._task is None:
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(self._path)
            listening.listen(2048)
            self._task = asyncio.create_task(self._serve(listening))
        if self._task.done():
            self._task.result()
        if self._trouble is not None:
            raise self._trouble
        status = None if self._engine is None else self._engine.sync.status()
        queues = () if status is None else status.queues
        return Figures(
            pid=os.getpid(),
            path=self._path,
            running=sum(item.running for item in queues),
            waiting=sum(item.waiting for item in queues),
            step_seconds=0.0 if status is None else status.running_seconds,
        )

    async def _serve(self, listening: socket.socket) -> None:
        from mlxengine import AsyncInferenceEngine

        from ._uvicorn import Runner, config
        from .app import create_app

        def failed(error: BaseException) -> None:
            self._trouble = error

        async with AsyncInferenceEngine(**self._made_with) as engine:
            self._engine = engine
            app = create_app(engine, self._options, failed=failed)
            await Runner(config(_named(app))).serve(sockets=[listening])


def _named(app: ASGIApp) -> ASGIApp:
    """An application whose requests are called as the front calls them."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (name := header(scope, PASSED_ID)) is not None:
            scope[ID] = name
        await app(scope, receive, send)

    return call


__all__ = ["PASSED_ID", "Behind", "Figures"]
