"""Whether the process lives, whether it serves, and its figures."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from attrs import define, field
from mlxengine import (
    AsyncTextHandle,
    EngineCollector,
    GenerateParams,
    HealthState,
    TextRequest,
)
from mlxengine.errors import MisuseError, MLXEngineError

from ._http import Receive, Scope, Send, send_bytes, send_json
from ._server import Server

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_PROBE = TextRequest(prompt="a", params=GenerateParams(max_tokens=1), priority=1000)


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
    out are seen at once. Where nothing runs, a loaded language model makes a token, unless one did lately.
    """

    server: Server
    _proved: float = field(default=float("-inf"), init=False)
    _failed: str | None = field(default=None, init=False)
    _probing: asyncio.Task[None] | None = field(default=None, init=False)

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
        if self.server.loading:
            return f"loading {', '.join(sorted(self.server.loading))}"
        health = engine.health()
        if health.running_seconds > self.server.options.stuck_seconds:
            return f"a step of {health.running} has not returned for {health.running_seconds:.0f} s"
        unwell = health.state is HealthState.UNHEALTHY
        if engine.status().tasks and not unwell:
            return None  # it is at work, and no step is stuck
        if not unwell and time.monotonic() - self._proved < self.server.options.ready_seconds:
            return None
        # What failed last may have been mended since: a token tells.
        await self._token()
        health = engine.health()
        return self._failed or (health.reason if health.state is HealthState.UNHEALTHY else None)

    async def _token(self) -> None:
        """Make one token, once for all who ask at the same time."""
        if self._probing is None or self._probing.done():
            self._probing = asyncio.get_running_loop().create_task(self._make_token())
        await asyncio.shield(self._probing)

    async def _make_token(self) -> None:
        bound = self.server.options.ready_seconds
        self._failed = None
        try:
            async with asyncio.timeout(bound):
                report = await asyncio.to_thread(self.server.engine.sync.memory)
                # one that was evicted would come back for it, and others have to go
                there = {item.id for item in report.models if not item.evicted}
                for handle in self.server.models.loaded().values():
                    if isinstance(handle, AsyncTextHandle) and handle.id in there:
                        await handle.run(_PROBE)
                        break
            self._proved = time.monotonic()
        except TimeoutError:
            self._failed = f"no token was made within {bound:g} s"
        except (MLXEngineError, MisuseError) as error:
            self._failed = f"no token was made: {error}"


@define(eq=False)
class Metrics:
    """``GET /metrics``: the engine's figures and those of HTTP, as OpenMetrics text."""

    server: Server

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self.server.options.ready_seconds):
                text = await asyncio.to_thread(self._text)
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
