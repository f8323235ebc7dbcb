"""Models that do not fit into memory together take turns, and no request is lost over it.

The engine refuses a model while those that hold the memory have requests. Here such a request waits instead,
new ones for other models wait behind it, and when what runs has ended it is tried again: so each switch
serves all that came meanwhile, and no model starves another.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from attrs import define, field

if TYPE_CHECKING:
    from mlxengine import InferenceEngine

    from ._models import Models

_LOOK_SECONDS = 0.25
_SETTLE_SECONDS = 0.005


@define(eq=False)
class Turns:
    """Which models' requests run, and which models wait for memory, in their order."""

    _engine: InferenceEngine
    _models: Models
    _running: Counter[str] = field(factory=Counter)
    _short: dict[str, int] = field(factory=dict)
    _changed: asyncio.Event = field(factory=asyncio.Event)

    @asynccontextmanager
    async def turn(self, model: str) -> AsyncGenerator[Turn]:
        """A request of a model, from here to its end; it begins when no other model waits for memory."""
        await self._first(model)
        self._running[model] += 1
        made = Turn(self, model)
        try:
            yield made
        finally:
            self._running[model] -= 1
            made.began()
            self._notify()

    async def _first(self, model: str) -> None:
        """Wait until no other model has waited for longer."""
        while self._short and next(iter(self._short)) != model:
            await self._changed.wait()

    def _busy(self, model: str) -> bool:
        """Whether something may let memory go: requests of other models, or a load. The engine tells too."""
        if any(count for name, count in self._running.items() if name != model) or self._engine.loads:
            return True
        handle = self._models.loaded().get(model)
        queues = self._engine.status().queues
        return any(item.running + item.waiting for item in queues if handle is None or item.id != handle.id)

    async def room(self, model: str) -> bool:
        """Wait for memory that may have become free; whether the next try is the last."""
        self._running[model] -= 1  # who waits here does not run
        try:
            await self._first(model)
            if self._busy(model):
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._changed.wait()
            await asyncio.sleep(_SETTLE_SECONDS)
            return not self._busy(model)
        finally:
            self._running[model] += 1

    def wait(self, model: str) -> Callable[[], None]:
        """A request of the model waits for memory; what to call when it does no more."""
        self._short[model] = self._short.get(model, 0) + 1

        def end() -> None:
            self._short[model] -= 1
            if not self._short[model]:
                del self._short[model]
            self._notify()

        return end

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


@define(eq=False)
class Turn:
    """One request's turn."""

    _turns: Turns
    _model: str
    begun: bool = False
    _last: bool = False
    _end_wait: Callable[[], None] | None = None

    def began(self) -> None:
        """It has what it needs: it runs."""
        self.begun = True
        if self._end_wait is not None:
            end, self._end_wait = self._end_wait, None
            end()

    async def room(self) -> bool:
        """Memory was short: wait until there may be more; ``False`` where nobody else had any."""
        if self.begun or self._last:
            return False
        if self._end_wait is None:
            self._end_wait = self._turns.wait(self._model)
        self._last = await self._turns.room(self._model)
        return True


__all__ = ["Turn", "Turns"]
