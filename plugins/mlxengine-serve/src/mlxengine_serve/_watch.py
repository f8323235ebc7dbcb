"""Whether the device's thread gets on, and the end of what waits for it where it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from attrs import define, field

from ._refusals import Refusal

if TYPE_CHECKING:
    from mlxengine import InferenceEngine

_LOOK_SECONDS = 0.2


@define(eq=False)
class Watch:
    """Looks at the step that runs.

    One that takes far longer than it should (`mlxengine.Health`) is trouble at once. It may still return, so
    requests wait for it, up to ``seconds``; a step of which nothing is known is trouble only then.
    """

    engine: InferenceEngine
    seconds: float
    _open: set[asyncio.Timeout] = field(factory=set, init=False)
    _given_up: bool = field(default=False, init=False)

    def trouble(self) -> str | None:
        """Why nothing gets on; ``None`` where it does."""
        health = self.engine.health()
        if health.hung:
            return health.reason
        if health.running_seconds > self.seconds:
            what = f"a step of {health.running}" if health.running else "the engine's thread"
            return f"{what} has not returned for {health.running_seconds:.0f} s"
        return None

    @asynccontextmanager
    async def over(self) -> AsyncIterator[None]:
        """Around what waits for the device.

        Raises:
            Refusal: 503, a step does not return, now or any more.
        """
        if self._given_up and self._look():  # a look goes through all models: too much for each request
            raise self._refusal()
        try:
            async with asyncio.timeout(None) as scope:
                self._open.add(scope)
                try:
                    yield
                finally:
                    self._open.discard(scope)
        except TimeoutError:
            if not scope.expired():
                raise
            raise self._refusal() from None

    async def run(self) -> None:
        """End what is open when a step does not return; until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if self._look():
                now = asyncio.get_running_loop().time()
                for scope in tuple(self._open):
                    self._open.discard(scope)
                    scope.reschedule(now)

    def _look(self) -> bool:
        self._given_up = self.engine.health().running_seconds > self.seconds
        return self._given_up

    def _refusal(self) -> Refusal:
        reason = self.trouble() or "a step did not return in time"
        return Refusal(503, f"The device does not answer: {reason}.", code="device_stuck", retry_after=5)


__all__ = ["Watch"]
