"""A model that somebody holds, and a load that is under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from attrs import define, field

from ._task import Task
from .configuration import ModelCard, ModelConfiguration
from .events import Event
from .features import Features
from .hookspecs import Claim, Loaded, MemoryEstimate
from .plugins import PluginRecord

Report = Callable[[Event], None]


@define(eq=False, kw_only=True)
class LiveModel:
    """A model that somebody holds, in memory or evicted, and what it costs.

    ``loaded`` is ``None`` before it is loaded and while it is evicted; its next request loads it again.
    Sizes are in bytes, ``last_used`` is a ``time.monotonic`` reading.
    """

    card: ModelCard
    configuration: ModelConfiguration
    record: PluginRecord
    claim: Claim
    features: Features
    path: Path
    loaded: Loaded | None = None
    capabilities: frozenset[str] = frozenset()
    info: Mapping[str, Any] = field(factory=dict)
    holders: int = 0
    closed: bool = False
    predicted: MemoryEstimate
    weights: int | None = None
    tasks: set[Task] = field(factory=set, repr=False)
    crashes: int = 0
    pinned: bool = False
    inhibitors: dict[str, int] = field(factory=dict)
    last_used: float = field(factory=time.monotonic)

    @property
    def running(self) -> int:
        """Requests that run on it, or wait for it to be loaded again."""
        return len(self.tasks)

    @property
    def evicted(self) -> bool:
        """Whether the model is out of memory."""
        return self.loaded is None

    @property
    def idle(self) -> bool:
        """Whether the model may be evicted."""
        return not (self.running or self.pinned or self.inhibitors or self.evicted or self.closed)

    @property
    def why_kept(self) -> str:
        """Why it may not be evicted, for people."""
        reasons = [f"{self.running} running" if self.running else "", "pinned" if self.pinned else ""]
        return ", ".join(filter(None, [*reasons, *self.inhibitors])) or "idle"

    @property
    def need(self) -> int:
        """Bytes to charge: what loading took, or should take, with room for caches and work."""
        weights = self.predicted.weights if self.weights is None else self.weights
        return weights + self.predicted.cache + self.predicted.workspace


@define(eq=False, kw_only=True)
class PendingLoad:
    """A load that is under way, and how many callers wait for it (once ``counted``, they hold the model)."""

    future: Future[LiveModel] = field(factory=Future)
    cancelled: threading.Event = field(factory=threading.Event)
    waiters: int = 0
    counted: bool = False
    reports: list[Report] = field(factory=list)

    def report(self, event: Event) -> None:
        for report in list(self.reports):
            report(event)
