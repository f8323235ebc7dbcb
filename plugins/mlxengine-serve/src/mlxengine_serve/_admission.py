"""Who is let in now, and when whoever is not may come again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from attrs import define, field

from ._http import Caller
from ._refusals import Refusal
from .options import Key

if TYPE_CHECKING:
    from mlxengine import InferenceEngine

_MOST_SECONDS = 600.0


@define(eq=False)
class Admission:
    """How many requests of each key run."""

    _running: dict[bytes, int] = field(factory=dict)

    @contextmanager
    def admitted(self, caller: Caller) -> Iterator[None]:
        """Count a request for as long as the block runs, and what goes on beyond it.

        Raises:
            Refusal: 429, the key has as many as it may.
        """
        key = caller.key
        if key is None:
            yield
            return
        running = self._running.get(key.digest, 0)
        if key.limit is not None and running >= key.limit:
            raise Refusal(
                429,
                f"This key has {running} requests at once already.",
                code="rate_limit_exceeded",
                retry_after=1,
            )
        self._running[key.digest] = running + 1
        try:
            yield
        finally:
            if caller.beyond is None or caller.beyond.done():
                self._ended(key)
            else:
                caller.beyond.add_done_callback(lambda _task: self._ended(key))

    def _ended(self, key: Key) -> None:
        self._running[key.digest] -= 1


def retry_after(engine: InferenceEngine, model: str | None) -> float:
    """Seconds until those that wait for the model now have had their turn, by what requests took so far.

    The device is shared, so one request leaves it every so many seconds as one takes of it; that, times how
    many wait. 1 where nothing was measured.
    """
    waiting = sum(item.waiting for item in engine.status().queues if model in (None, item.id))
    measured = [item for item in engine.metrics() if item.total_seconds.count]
    mine = [item for item in measured if item.id == model] or measured
    requests = sum(item.total_seconds.count for item in mine)
    if not requests:
        return 1.0
    each = sum(item.device_seconds for item in mine) / requests
    return min(_MOST_SECONDS, max(1.0, waiting * each))


__all__ = ["Admission", "retry_after"]
