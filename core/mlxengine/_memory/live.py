"""A model that somebody holds, and a load that is under way."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field

from .._scheduling.task import Task
from .._scheduling.threads import collect
from ..contract.events import Event, Progress
from ..contract.features import Explanation, Feature, Features
from ..contract.hookspecs import Claim, Loaded, MemoryEstimate, ModelState
from ..contract.plugins import PluginRecord
from ..errors import MLXEngineError, PluginError

if TYPE_CHECKING:
    from ..contract.configuration import ModelCard, ModelConfiguration
    from ..contract.device import DeviceBackend
    from ..contract.requests import Request
    from .plan import Plan

log = logging.getLogger("mlxengine.memory")
Report = Callable[[Event], None]


@define(eq=False, kw_only=True)
class LiveModel:
    """A model that somebody holds, in memory or evicted, and what it costs.

    ``ladder`` are the ways to load it, from what was asked for to what takes the least; ``plan`` is the one
    in use. ``loaded`` is ``None`` before it is loaded and while it is evicted; its next request loads it
    again, and ``setup`` brings it to where requests had brought it, or says why that cannot be done.
    Sizes are in bytes, ``last_used`` is a ``time.monotonic`` reading, ``idle_ttl`` the seconds after it that
    the model stays in memory (``None``: for ever). While it is ``returning`` to memory it stays, even if the
    request that needed it was given up: others may wait by then. ``patience`` is how many seconds it may wait
    for memory, ``load_seconds`` how long it took to load. ``held`` are the ``tasks`` that stand back for a
    load that waits for memory: they do not keep the model there.
    """

    card: ModelCard
    configuration: ModelConfiguration
    record: PluginRecord
    claim: Claim
    ladder: tuple[Plan, ...]
    plan: Plan
    path: Path
    loaded: Loaded | None = None
    capabilities: frozenset[str] = frozenset()
    info: Mapping[str, Any] = field(factory=dict)
    setup: tuple[Request, ...] | PluginError = ()
    holders: int = 0
    closed: bool = False
    weights: int | None = None
    tasks: set[Task] = field(factory=set, repr=False)
    held: deque[Task] = field(factory=deque, repr=False)
    crashes: int = 0
    pinned: bool = False
    inhibitors: dict[str, int] = field(factory=dict)
    last_used: float = field(factory=time.monotonic)
    idle_ttl: float | None = None
    returning: bool = False
    patience: float = 0.0
    load_seconds: float | None = None

    @property
    def features(self) -> Features:
        """The flags in force."""
        return self.plan.features

    def explain(self, feature: str | Feature[Any]) -> Explanation:
        """The same, one flag, with what this model turned out not to have."""
        found = self.features.explain(feature)
        registry = self.features.registry
        why = registry.foreign(found.name, self.record.name, self.claim.honours)
        if why is None and self.loaded is not None:
            why = self.loaded.missing.get(found.name)
        if why is None:
            return found
        off = registry.find(found.name).off
        return evolve(found, value=off, available=False, reason=f"not with this model: {why}")

    @property
    def predicted(self) -> MemoryEstimate:
        """What it should take."""
        return self.plan.estimate

    @property
    def state(self) -> ModelState:
        """What the plugin says of it now; nothing while it is out of memory."""
        loaded = self.loaded
        try:
            return ModelState() if loaded is None else loaded.state()
        except PluginError as error:
            return ModelState(degraded=str(error))

    @property
    def degraded(self) -> str | None:
        """What it serves less than was asked for, and why."""
        now = None if self.evicted else "; ".join(filter(None, (self.plan.reason, self.state.degraded)))
        return now or None

    @property
    def running(self) -> int:
        """Requests that have had their first step."""
        return sum(not task.waits for task in list(self.tasks))

    @property
    def waiting(self) -> int:
        """Requests whose first step is still to come."""
        return sum(task.waits for task in list(self.tasks))

    @property
    def evicted(self) -> bool:
        """Whether the model is out of memory."""
        return self.loaded is None

    @property
    def idle(self) -> bool:
        """Whether the model may be evicted."""
        busy = len(self.tasks) > len(self.held) or self.returning
        return not (busy or self.pinned or self.inhibitors or self.evicted or self.closed)

    @property
    def why_kept(self) -> str:
        """Why it may not be evicted, for people."""
        reasons = [f"{len(self.tasks)} running" if self.tasks else "", "pinned" if self.pinned else ""]
        return ", ".join(filter(None, [*reasons, *self.inhibitors])) or "idle"

    @property
    def need(self) -> int:
        """Bytes to charge: what loading took, or should take, with room for caches and work."""
        weights = self.predicted.weights if self.weights is None else self.weights
        measured = None if self.loaded is None else self.loaded.cache
        cache = self.predicted.cache if measured is None else measured
        return weights + cache + self.predicted.workspace


@define(eq=False, kw_only=True)
class PendingLoad:
    """A load that is under way, and how many callers wait for it (once ``counted``, they hold the model).

    ``patience``: seconds that it may wait for memory.
    """

    future: Future[LiveModel] = field(factory=Future)
    cancelled: threading.Event = field(factory=threading.Event)
    waiters: int = 0
    counted: bool = False
    reports: list[Report] = field(factory=list)
    id: str
    began: float = field(factory=time.monotonic)
    progress: Progress | None = None
    patience: float = 0.0

    def report(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.progress = event
        for report in list(self.reports):
            try:
                report(event)
            except BaseException:  # the load may be others' too, and this thread is the engine's
                log.exception("A callback for progress raised; it is not called again")
                with suppress(ValueError):
                    self.reports.remove(report)

    def end(self, result: LiveModel | BaseException) -> None:
        """Tell whoever waits, unless closing did."""
        with suppress(InvalidStateError):
            if isinstance(result, BaseException):
                self.future.set_exception(result)
            else:
                self.future.set_result(result)


def free(live: LiveModel, backend: DeviceBackend | None) -> int | None:
    """Take a model out of memory; on the scheduler's thread. Returns the bytes that came back."""
    before = backend.memory().active if backend is not None else 0
    loaded, live.loaded = live.loaded, None
    if loaded is not None and loaded.close is not None:
        try:
            loaded.close()
        except MLXEngineError as error:
            log.warning("Closing %s: %s", live.card.id, error)
    del loaded
    if backend is None:
        return None
    # Models are full of reference cycles; what they hold must go now, not at some later collection.
    collect()
    backend.clear_cache()
    return before - backend.memory().active
