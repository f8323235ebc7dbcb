"""Whether the process lives, whether it serves, and its figures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

from attrs import define, field
from mlxengine import (
    AsyncModelHandle,
    EngineCollector,
    HealthState,
    Request,
)
from mlxengine.errors import ConfigurationError, MisuseError, MLXEngineError, UnsupportedInputError

from ._http import Receive, Scope, Send, send_bytes, send_json
from ._server import Server

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_LOOK_SECONDS = 0.05
T = TypeVar("T")


class _Shared(Generic[T]):
    """A call that waits for the engine, made once at a time for all who ask.

    It takes a thread for as long as the device does not answer, and no further one.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._running: asyncio.Future[T] | None = None

    async def result(self) -> T:
        """What it returns."""
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(asyncio.to_thread(self._function))
        return await asyncio.shield(self._running)


@define(eq=False)
class Health:
    """``GET /health``: the process answers. It says nothing of inference: that is ``/ready``."""

    server: Server

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await send_json(send, {"status": "ok"})


@define(eq=False)
class Ready:
    """``GET /ready``: requests are served. 200, or 503 with the reason.

    It believes what really ran: a step that does not return, a device thread that died and memory that ran
    out are seen at once. Where nothing runs, a loaded language model makes a token, or another one a vector,
    unless one did lately. Of other kinds a request has to show that what failed works again: after
    ``ready_seconds`` one may come.
    """

    server: Server
    _report: _Shared[Any] = field(init=False)
    _proved: float = field(default=float("-inf"), init=False)
    _failed: str | None = field(default=None, init=False)
    _probing: asyncio.Task[None] | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._report = _Shared(self.server.engine.sync.memory)

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        reason = await self.trouble()
        if reason is None:
            await send_json(send, {"status": "ready"})
        else:
            await send_json(send, {"status": "not ready", "reason": reason}, 503, {"retry-after": "1"})

    async def trouble(self) -> str | None:
        """Why requests are not served; ``None`` where they are."""
        engine = self.server.engine.sync
        if engine.closed:
            return "the engine is closed"
        if loading := self.server.loading - self.server.models.loaded().keys():
            return f"loading {', '.join(sorted(loading))}"
        if (stuck := self.server.watch.trouble()) is not None:
            return stuck
        health = engine.health()
        unwell = health.state is HealthState.UNHEALTHY
        if engine.status().tasks and not unwell:
            return None  # it is at work, and no step is stuck
        if not unwell and time.monotonic() - self._proved < self.server.options.ready_seconds:
            return None
        # What failed last may have been mended since: a token tells.
        if (stuck := await self._probe()) is not None:
            return stuck
        health = engine.health()
        lately = (health.since_failure or 0.0) < self.server.options.ready_seconds
        unwell = health.state is HealthState.UNHEALTHY and health.since_failure is not None and lately
        return self._failed or (health.reason if unwell else None)

    async def _probe(self) -> str | None:
        """Make a token, once for all who ask at the same time; why no end of that is to be waited for."""
        if self._probing is None or self._probing.done():
            self._probing = asyncio.get_running_loop().create_task(self._make_token())
        while not self._probing.done():
            await asyncio.wait((self._probing,), timeout=_LOOK_SECONDS)
            if (stuck := self.server.watch.trouble()) is not None:
                return stuck
        return None

    async def _make_token(self) -> None:
        bound = self.server.options.ready_seconds
        self._failed = None
        try:
            async with asyncio.timeout(bound):
                report = await self._report.result()
                # one that was evicted would come back for it, and others have to go
                there = {item.id for item in report.models if not item.evicted}
                here = [item for item in self.server.models.loaded().values() if item.id in there]
                for kind, request in _probes() if here else ():
                    if (handle := next((item for item in here if isinstance(item, kind)), None)) is not None:
                        # one that ranks makes no vectors, and has said so on the device's thread
                        with suppress(ConfigurationError, UnsupportedInputError):
                            await handle.run(request)
                        break
            self._proved = time.monotonic()
        except TimeoutError:
            self._failed = f"no token was made within {bound:g} s"
        except (MLXEngineError, MisuseError) as error:
            self._failed = f"no token was made: {error}"


def _probes() -> tuple[tuple[type[AsyncModelHandle], Request], ...]:
    """The least that a model can be asked for, by its handle."""
    from mlxengine import AsyncEmbeddingHandle, AsyncTextHandle, EmbedRequest, GenerateParams, TextRequest

    text = TextRequest(prompt="a", params=GenerateParams(max_tokens=1), priority=1000)
    return (AsyncTextHandle, text), (AsyncEmbeddingHandle, EmbedRequest(texts=("a",), priority=1000))


@define(eq=False)
class Metrics:
    """``GET /metrics``: the engine's figures and those of HTTP, as OpenMetrics text."""

    server: Server
    _figures: _Shared[bytes] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._figures = _Shared(self._text)

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self.server.options.ready_seconds):
                text = await self._figures.result()
        except TimeoutError:
            await send_json(send, {"status": "the engine does not answer"}, 503)
            return
        await send_bytes(send, 200, text, OPENMETRICS)

    def _text(self) -> bytes:
        from prometheus_client import CollectorRegistry
        from prometheus_client.openmetrics.exposition import generate_latest

        registry = CollectorRegistry(auto_describe=False)
        collectors: tuple[Any, ...] = (EngineCollector(self.server.engine.sync), self.server.counts)
        for collector in collectors:
            registry.register(collector)
        found: bytes = generate_latest(registry)
        return found


__all__ = ["Health", "Metrics", "Ready"]
