"""What a pool's models hold and do, told for people and other programs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .._memory.live import LiveModel
from .._scheduling.scheduler import Scheduler
from .._scheduling.task import ModelQueue
from ..contract._core_features import most_waiting
from .loader import Loader
from .pool import ModelPool

if TYPE_CHECKING:
    from ..health import Health
    from ..memory import LoadUnderWay, MemoryReport, ModelMemory


class Figures:
    """Reads them; nothing here changes anything.

    Args:
        pool: the models.
        loader: knows the array library.
        scheduler: runs their requests.
    """

    def __init__(self, pool: ModelPool, loader: Loader, scheduler: Scheduler) -> None:
        self._pool = pool
        self._loader = loader
        self._scheduler = scheduler

    def under_way(self) -> tuple[LoadUnderWay, ...]:
        """The models that are being loaded, with their progress; never waits."""
        from ..memory import LoadUnderWay

        now = time.monotonic()
        return tuple(
            LoadUnderWay(id=load.id, seconds=now - load.began, progress=load.progress)
            for load in self._pool.loads()
        )

    def health(self) -> Health:
        """Whether what ran last went well, and which models serve less than was asked for."""
        found = [(live.card.id, live.degraded) for live in self._pool.live()]
        degraded = [f"{name}: {reason}" for name, reason in found if reason is not None]
        return self._pool.outcomes.health(self._scheduler.status(), degraded)

    def report(self) -> MemoryReport:
        """The ledger beside what the array library says."""
        from ..memory import MemoryReport

        backend = self._loader.backend
        reading = self._scheduler.run(backend.memory) if backend is not None else None
        return MemoryReport(
            budget=self._pool.ledger.budget,
            reserved=self._pool.ledger.reserved,
            others=self._pool.ledger.others,
            active=reading.active if reading else None,
            cache=reading.cache if reading else None,
            peak=reading.peak if reading else None,
            models=tuple(self._memory_of(live) for live in self._pool.live()),
            evictions=tuple(self._pool.ledger.evictions),
        )

    def _memory_of(self, live: LiveModel) -> ModelMemory:
        from ..memory import ModelMemory

        state = live.state
        return ModelMemory(
            id=live.card.id,
            kind=live.claim.kind,
            reserved=self._pool.ledger.charged(live),
            predicted=live.predicted.total,
            weights=live.weights,
            running=live.running,
            pinned=live.pinned,
            inhibitors=tuple(live.inhibitors),
            idle_seconds=time.monotonic() - live.last_used,
            evicted=live.evicted,
            caches=state.caches,
            degraded=live.degraded,
            shortages=state.shortages,
            waiting=live.waiting,
            kv_used=state.kv_used,
            kv_total=state.kv_total,
        )

    def queues(self) -> tuple[ModelQueue, ...]:
        """What runs and waits, by model; never waits."""
        return tuple(
            ModelQueue(
                id=live.card.id,
                kind=live.claim.kind,
                running=live.running,
                waiting=live.waiting,
                most_waiting=most_waiting(live.features),
                rows=live.state.rows,
            )
            for live in self._pool.live()
        )


__all__ = ["Figures"]
