"""What an engine does for its callers, whether they wait on threads or in asyncio: all but the waiting."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from .._memory.live import LiveModel, PendingLoad
from .._scheduling.channel import Channel
from .._scheduling.task import FutureSink, Task
from .._scheduling.threads import refuse_fork
from ..contract._convert import only
from ..contract._core_features import DEGRADE, most_waiting
from ..contract.features import Features, Layer, Level
from ..contract.hookspecs import RunContext
from ..errors import (
    CancelledError,
    EngineClosedError,
    InvalidParameterError,
    ModelClosedError,
    UnsupportedInputError,
)
from .base import EngineBase
from .pool import LoadKey

if TYPE_CHECKING:
    from ..contract.configuration import ModelConfiguration
    from ..contract.loading import LoadOptions
    from ..contract.requests import Request


class Serving(EngineBase):
    """An engine that loads models and runs requests; whoever asks waits by its own means."""

    def _start_load(
        self, handle: type | None, model: str | Path | ModelConfiguration, options: LoadOptions
    ) -> PendingLoad:
        return self._start(self._wish(handle, model, options), options)

    def _start(self, key: LoadKey, options: LoadOptions) -> PendingLoad:
        return self._pool.start(key, options.get("on_progress"), options.get("wait_for_memory", 0))

    def _wish(
        self, handle: type | None, model: str | Path | ModelConfiguration, options: LoadOptions
    ) -> LoadKey:
        """What is to be loaded; what is wrong with the wish itself is said before anything is done."""
        from ..contract.loading import LoadOptions, check_idle_ttl, check_patience

        self._refuse_closing()
        only(options, LoadOptions)
        verify = options.get("verify")
        if verify not in (None, "deep"):
            raise InvalidParameterError(f"verify={verify!r} is not known.", hint='Write verify="deep".')
        check_idle_ttl(options.get("idle_ttl"))
        check_patience(options.get("wait_for_memory", 0))
        configuration = self._configure(model)
        plugin, features = options.get("plugin"), options.get("features")
        if plugin is not None:
            configuration = attrs.evolve(configuration, plugin=plugin)
        if features:
            merged = {**dict(configuration.features), **features}
            configuration = attrs.evolve(configuration, features=tuple(sorted(merged.items())))
        return LoadKey(configuration, handle, verify)

    def _handle(self, live: LiveModel, options: LoadOptions, which: str = "handle") -> Any:
        """What the caller gets for a model that it holds; one that has no handle is given up."""
        if "idle_ttl" in options:
            live.idle_ttl = options["idle_ttl"]
            self._pool.changed()
        if "wait_for_memory" in options:
            live.patience = options["wait_for_memory"]
        try:
            return self._host.kind(live.claim.kind).find(which)(self, live)
        except BaseException:
            self._release(live)
            raise

    def _start_warming_up(self, live: LiveModel) -> tuple[Future[None], Callable[[], None]]:
        """Warm a model up beside whatever runs; its end, and the way to cancel it."""

        def begin() -> Any:
            loaded = live.loaded
            return iter(() if loaded is None or loaded.warm_up is None else loaded.warm_up())

        sink = FutureSink()
        task = Task(group=live, record=live.record, start=begin, sink=sink, answers=False, hook="warm_up")
        self._pool.submit(live, task)
        return sink.future, lambda: self._scheduler.cancel(task)

    def _refuse_closing(self) -> None:
        if self._closed:
            raise EngineClosedError("The engine is closed.")
        if self._draining:
            raise EngineClosedError("The engine is closing: what runs may end, and nothing new begins.")

    def _refuse_closed(self, live: LiveModel, closed: bool) -> None:
        refuse_fork(self._process)
        self._refuse_closing()
        if closed or live.closed:
            raise ModelClosedError(f"The handle of {live.card.id} is closed.")

    def _evict(self, live: LiveModel, closed: bool) -> bool:
        self._refuse_closed(live, closed)
        return self._pool.evict(live)

    def _open(self, live: LiveModel, request: Request, closed: bool) -> tuple[Channel, Callable[[], None]]:
        """Put a request on the scheduler; the channel it is read from, and the way to cancel it."""
        self._refuse_closed(live, closed)
        from .._scheduling.recovery import RecoveringSink
        from ..contract.requests import Request

        if not isinstance(request, Request):
            raise InvalidParameterError(f"A request is a Request, found {type(request).__name__}.")

        def features() -> Features:
            # Asked again when the request begins: an evicted model may come back with other flags.
            own = dict(request.features)
            if not own:
                return live.features
            found = live.features.over(Layer(Level.CALL, own))
            found.registry.refuse_foreign(own, live.record.name, live.claim.honours)
            return found

        def begin() -> Any:
            context = RunContext(
                features=features(),
                budget_ms=self._budget,
                cancelled=lambda: current[0].cancelled,
                fetch=self._loader.fetching(lambda: self._closed or current[0].cancelled),
            )
            return self._generate(live, request, context)

        most = most_waiting(features())
        submitted = time.perf_counter()
        channel = Channel(self._queue_size, self._scheduler.nudge, later=self._scheduler.later)
        current: list[Task] = []

        def submit(bound: int | None = None) -> None:
            task = Task(
                group=live,
                record=live.record,
                start=begin,
                sink=sink,
                submitted=submitted,
                wait_timeout=request.wait_timeout,
                run_timeout=request.run_timeout,
                cancelled=any(earlier.cancelled for earlier in current),
            )
            current[:] = [task]
            self._pool.submit(live, task, bound)

        sink = RecoveringSink(
            channel,
            submit,
            lambda then, relieve: self._pool.aside(live, then, relieve=relieve),
            relieves=live.features.get(DEGRADE),
        )
        submit(most)
        scheduler = self._scheduler
        return channel, lambda: scheduler.cancel(current[0])

    def _generate(self, live: LiveModel, request: Request, context: RunContext) -> Any:
        if live.closed or live.loaded is None:
            raise CancelledError(f"{live.card.id} was closed before the request began.")
        iterator = self._host.call(
            live.record, "generate", model=live.loaded.model, request=request, context=context
        )
        if iterator is None:
            raise UnsupportedInputError(
                f"{live.card.id} (plugin {live.record.name}) does not take a {type(request).__name__}."
            )
        return iterator

    def _release(self, live: LiveModel, drain: float = 0) -> None:
        if not self._closed:
            self._pool.release(live, drain)


__all__ = ["Serving"]
