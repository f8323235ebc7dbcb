"""What has to be done for loaded models from time to time: idle ones leave, others are told what is held."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from .ledger import Ledger
from .live import LiveModel, PendingLoad

_LOOK = 10.0  # seconds between two looks at the machine's free memory
_PAUSE = 0.25  # seconds between two notes to other processes, which need not know of every request


class Caretaker:
    """A thread's work.

    Args:
        ledger: evicts, and writes what is held where `mlxengine ps` reads it.
        live: the models that somebody holds.
        loads: the loads that are under way.
        shortage: why memory is short on this machine, whoever took it; ``None`` while it is not.
    """

    def __init__(
        self,
        ledger: Ledger,
        live: Callable[[], Sequence[LiveModel]],
        loads: Callable[[], Sequence[PendingLoad]],
        shortage: Callable[[], str | None],
    ) -> None:
        self._shortage = shortage
        self._ledger = ledger
        self._live = live
        self._loads = loads
        self._changed = threading.Event()
        self._stopped = threading.Event()

    def changed(self) -> None:
        """Something is worth telling; never waits."""
        self._changed.set()

    def stop(self) -> None:
        """End `run` soon."""
        self._stopped.set()
        self._changed.set()

    def run(self) -> None:
        """Until `stop`."""
        looked = time.monotonic()
        while not self._stopped.is_set():
            ttls = [live.idle_ttl for live in self._live() if live.idle_ttl is not None]
            pause = min(1.0, min(ttls) / 4) if ttls else _LOOK
            if self._changed.wait(pause) and not self._stopped.is_set():
                self._changed.clear()
                self._ledger.publish(
                    [self._described(live) for live in self._live() if not live.evicted],
                    [_under_way(load) for load in self._loads()],
                )
            self._reap()
            if time.monotonic() - looked >= _LOOK:
                looked = time.monotonic()
                self._ease()
            self._stopped.wait(min(_PAUSE, pause))
        self._ledger.publish([], [])

    def _reap(self) -> None:
        for live in self._live():
            ttl = live.idle_ttl
            if ttl is not None and live.idle and time.monotonic() - live.last_used >= ttl:
                self._ledger.evict(live, f"after {ttl:g} s without a request")
                self._changed.set()

    def _ease(self) -> None:
        """Give the machine something back if it is short: caches first, next time an idle model."""
        if any(live.state.caches or live.idle for live in self._live()):
            reason = self._shortage()
            if reason is not None and self._ledger.ease(f"because {reason}"):
                self._changed.set()

    def _described(self, live: LiveModel) -> dict[str, Any]:
        state = live.state
        return {
            "id": live.card.id,
            "kind": live.claim.kind,
            "reserved_bytes": self._ledger.charged(live),
            "cache_bytes": state.caches,
            "running": live.running,
            "waiting": live.waiting,
            "rows": state.rows,
            "kv_used_bytes": state.kv_used,
            "kv_total_bytes": state.kv_total,
            "pinned": live.pinned,
            "kept_by": list(live.inhibitors),
            "degraded": live.degraded,
            "ttl_seconds": live.idle_ttl,
            "used_at": time.time() - (time.monotonic() - live.last_used),
        }


def _under_way(load: PendingLoad) -> dict[str, Any]:
    said = load.progress
    return {
        "id": load.id,
        "stage": None if said is None else said.stage,
        "done": None if said is None else said.done,
        "total": None if said is None else said.total,
        "unit": None if said is None else said.unit,
        "began_at": time.time() - (time.monotonic() - load.began),
    }


__all__ = ["Caretaker"]
