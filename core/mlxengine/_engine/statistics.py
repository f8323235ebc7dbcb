"""What is counted of the requests of each model, and said of each in the log."""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .._memory.live import LiveModel
    from .._scheduling.task import Task
    from ..contract.events import Usage
    from ..metrics import ModelMetrics

log = logging.getLogger("mlxengine.requests")

# Upper bounds in seconds: from a token's time to that of a large picture on a slow machine.
BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Times:
    """A histogram of durations."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


class _Counted:
    def __init__(self) -> None:
        self.requests: dict[str, int] = {}
        self.usage: dict[str, float] = {}
        self.unfinished: dict[str, float] = {}
        self.device_seconds = 0.0
        self.queue, self.first_event, self.whole = Times(), Times(), Times()
        self.peak_memory: int | None = None


class Statistics:
    """Counts what ended; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[tuple[str, str], _Counted] = {}

    def record(self, live: LiveModel, task: Task, error: BaseException | None) -> None:
        """A request is over: with a `Finished` event, or with an error."""
        finished = task.finished
        outcome = type(error).__name__ if finished is None else str(finished.reason)
        with self._lock:
            counted = self._models.setdefault((live.card.id, live.claim.kind), _Counted())
            counted.requests[outcome] = counted.requests.get(outcome, 0) + 1
            counted.device_seconds += task.device_seconds
            if task.spent is not None:
                _add(counted.unfinished, task.spent)
            if finished is not None:
                metrics = finished.metrics
                _add(counted.usage, finished.usage)
                counted.queue.add(metrics.queue_seconds)
                counted.whole.add(metrics.total_seconds)
                if metrics.first_event_seconds is not None:
                    counted.first_event.add(metrics.first_event_seconds)
                if metrics.peak_memory_bytes is not None:
                    counted.peak_memory = max(counted.peak_memory or 0, metrics.peak_memory_bytes)
        if log.isEnabledFor(logging.INFO):
            _say(live, task, outcome)

    def report(self) -> tuple[ModelMetrics, ...]:
        """The values so far, by model."""
        from ..metrics import Histogram, ModelMetrics

        def histogram(times: Times) -> Histogram:
            return Histogram(bounds=BOUNDS, counts=tuple(times.counts), total=times.total)

        with self._lock:
            return tuple(
                ModelMetrics(
                    id=id,
                    kind=kind,
                    requests=dict(counted.requests),
                    usage=dict(counted.usage),
                    unfinished=dict(counted.unfinished),
                    device_seconds=counted.device_seconds,
                    queue_seconds=histogram(counted.queue),
                    first_event_seconds=histogram(counted.first_event),
                    total_seconds=histogram(counted.whole),
                    peak_memory_bytes=counted.peak_memory,
                )
                for (id, kind), counted in self._models.items()
            )


def _add(sums: dict[str, float], usage: Usage) -> None:
    for unit, number in usage.counts.items():
        sums[unit] = sums.get(unit, 0) + number


def _say(live: LiveModel, task: Task, outcome: str) -> None:
    """One record for each request; what it says stands in its attributes too, for structured logs."""
    fields: dict[str, object] = {
        "model": live.card.id,
        "kind": live.claim.kind,
        "plugin": live.record.name,
        "outcome": outcome,
        "device_seconds": round(task.device_seconds, 6),
    }
    if task.finished is not None:
        metrics = task.finished.metrics
        fields |= task.finished.usage.counts
        fields |= {
            "queue_seconds": round(metrics.queue_seconds, 6),
            "first_event_seconds": metrics.first_event_seconds,
            "total_seconds": round(metrics.total_seconds, 6),
        }
    elif task.spent is not None:
        fields |= task.spent.counts
    words = " ".join(f"{name}={value}" for name, value in fields.items())
    log.info("request %s", words, extra=fields)


__all__ = ["BOUNDS", "Statistics"]
