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
    _probing: asyncio.Task[str | None] | None = field(default=None, init=False)

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
        found = await self._token()
        return found or (health.reason if unwell and not self._can_probe() else None)

    def _can_probe(self) -> bool:
        return any(isinstance(handle, AsyncTextHandle) for handle in self.server.models.loaded().values())

    async def _token(self) -> str | None:
        """Make one token, once for all who ask at the same time."""
        if self._probing is None or self._probing.done():
            self._probing = asyncio.get_running_loop().create_task(self._make_token())
        return await asyncio.shield(self._probing)

    async def _make_token(self) -> str | None:
        bound = self.server.options.ready_seconds
        for name, handle in self.server.models.loaded().items():
            if isinstance(handle, AsyncTextHandle):
                try:
                    async with asyncio.timeout(bound):
                        await handle.run(_PROBE)
                except TimeoutError:
                    return f"{name} made no token within {bound:g} s"
                except (MLXEngineError, MisuseError) as error:
                    return f"{name} made no token: {error}"
                break
        self._proved = time.monotonic()
        return None


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
