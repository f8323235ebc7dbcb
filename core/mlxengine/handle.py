"""Handles: what ``load`` returns. A kind's own only builds requests and gathers events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from attrs import frozen

from .contract.configuration import ModelCard, ModelConfiguration
from .contract.events import Event, Finished, Metrics, Usage
from .contract.features import Explanation, Feature
from .contract.loading import check_drain, check_idle_ttl
from .contract.requests import Request
from .streams import AsyncEventStream, EventStream

if TYPE_CHECKING:
    from ._engine.serving import Serving
    from ._memory.live import LiveModel


@frozen(kw_only=True)
class Result:
    """All events of a request, the last one apart."""

    events: tuple[Event, ...]
    finished: Finished

    @property
    def usage(self) -> Usage:
        """What the request counted, in the kind's own units."""
        return self.finished.usage

    @property
    def metrics(self) -> Metrics:
        """How long it took, and how long it waited."""
        return self.finished.metrics

    @classmethod
    def of(cls, events: Iterable[Event]) -> Result:
        """Gather a stream that ended with `Finished`."""
        *rest, last = list(events)  # unpacking a stream directly would iterate it twice
        assert isinstance(last, Finished)
        return cls(events=tuple(rest), finished=last)


class _Handle:
    """What the sync and the async handles share."""

    def __init__(self, engine: Serving, live: LiveModel) -> None:
        self._engine = engine
        self._live = live
        self._closed = False

    @property
    def id(self) -> str:
        """Repository id, or local path."""
        return self._live.card.id

    @property
    def kind(self) -> str:
        """The kind of model, as its plugin claimed it."""
        return self._live.claim.kind

    @property
    def plugin(self) -> str:
        """The plugin that serves the model."""
        return self._live.record.name

    @property
    def card(self) -> ModelCard:
        """What was found out about the model."""
        return self._live.card

    @property
    def configuration(self) -> ModelConfiguration:
        """What was asked for."""
        return self._live.configuration

    @property
    def capabilities(self) -> frozenset[str]:
        """Facts about the loaded model, for example ``"vision"`` or ``"tools"``."""
        return self._live.capabilities

    @property
    def info(self) -> Mapping[str, Any]:
        """What the plugin says about the loaded model; which keys there are is the plugin's own."""
        return self._live.info

    @property
    def evicted(self) -> bool:
        """Whether the model is out of memory now; its next request loads it again."""
        return self._live.evicted

    @property
    def closed(self) -> bool:
        """Whether this handle was closed."""
        return self._closed

    def pin(self, on: bool = True) -> None:
        """Never evict the model while this is on (and somebody holds it)."""
        self._live.pinned = on
        self._engine._pool.changed()

    @property
    def idle_ttl(self) -> float | None:
        """Seconds after its last request that the model is evicted; ``None``: it stays. It may be set.

        All handles of the model share it.

        Raises:
            InvalidParameterError: set to what is no positive number.
        """
        return self._live.idle_ttl

    @idle_ttl.setter
    def idle_ttl(self, seconds: float | None) -> None:
        check_idle_ttl(seconds)
        self._live.idle_ttl = seconds
        self._engine._pool.changed()

    @contextmanager
    def keep(self, name: str) -> Iterator[None]:
        """Keep the model in memory while the block runs; ``name`` tells others why it cannot go."""
        held = self._live.inhibitors
        held[name] = held.get(name, 0) + 1
        self._engine._pool.changed()
        try:
            yield
        finally:
            held[name] -= 1
            if not held[name]:
                del held[name]
            self._engine._pool.changed()

    def explain(self, feature: str | Feature[Any]) -> Explanation:
        """Value, source, availability and reason of a feature for this model.

        Raises:
            UnknownFeatureError: no plugin lists it.
        """
        return self._live.explain(feature)

    def _release(self, drain: float = 0) -> None:
        if not self._closed:
            self._closed = True
            self._engine._release(self._live, drain)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<{type(self).__name__} {self.id} kind={self.kind} plugin={self.plugin} {state}>"


class ModelHandle(_Handle):
    """A loaded model of any kind: `stream` events, or `run` to the end.

    Close it (or leave its ``with`` block) to free the model when nobody else holds it.
    """

    def stream(self, request: Request) -> EventStream:
        """Start a request; its events come as they happen.

        Raises:
            ModelClosedError, EngineClosedError: the handle or its engine was closed.
            InvalidParameterError: ``request`` is not a request, or one that this model cannot take.
        """
        return EventStream(*self._engine._open(self._live, request, self._closed))

    def run(self, request: Request) -> Result:
        """Run a request to its end.

        Raises:
            MLXEngineError: what the request ended with.
        """
        return Result.of(self.stream(request))

    def evict(self) -> bool:
        """Take the model out of memory now; the handle stays, and its next request loads the model again.

        Returns:
            Whether it is out. A model that is pinned, kept, or has requests of anybody stays.

        Raises:
            ModelClosedError, EngineClosedError: the handle or its engine was closed.
        """
        return self._engine._evict(self._live, self._closed)

    def close(self, drain: float = 0) -> None:
        """Give the model up. It is freed when no other handle holds it. May be called twice.

        Args:
            drain: seconds that the model's requests may go on before; ``math.inf`` waits for all that run
                now. This handle takes no new ones: they get `ModelClosedError`.

        Raises:
            InvalidParameterError: ``drain`` is no number from 0 on.
        """
        check_drain(drain)
        self._release(drain)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncModelHandle(_Handle):
    """A loaded model of any kind, for asyncio: `stream` events, or `run` to the end.

    Close it (or leave its ``async with`` block) to free the model when nobody else holds it.
    """

    def stream(self, request: Request) -> AsyncEventStream:
        """Start a request; its events come as they happen, to an ``async for``.

        Raises:
            ModelClosedError, EngineClosedError: the handle or its engine was closed.
            InvalidParameterError: ``request`` is not a request, or one that this model cannot take.
        """
        return AsyncEventStream(*self._engine._open(self._live, request, self._closed))

    async def run(self, request: Request) -> Result:
        """Run a request to its end; cancelling the task cancels the request.

        Raises:
            MLXEngineError: what the request ended with.
        """
        return Result.of([event async for event in self.stream(request)])

    async def evict(self) -> bool:
        """Take the model out of memory now; the handle stays, and its next request loads the model again.

        Returns:
            Whether it is out. A model that is pinned, kept, or has requests of anybody stays.

        Raises:
            ModelClosedError, EngineClosedError: the handle or its engine was closed.
        """
        import asyncio

        return await asyncio.to_thread(self._engine._evict, self._live, self._closed)

    async def close(self, drain: float = 0) -> None:
        """Give the model up. It is freed when no other handle holds it. May be called twice.

        Args:
            drain: seconds that the model's requests may go on before; ``math.inf`` waits for all that run
                now. This handle takes no new ones: they get `ModelClosedError`.

        Raises:
            InvalidParameterError: ``drain`` is no number from 0 on.
        """
        import asyncio

        check_drain(drain)
        if drain:
            await asyncio.to_thread(self._release, drain)
        else:
            self._release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


__all__ = [
    "AsyncModelHandle",
    "ModelHandle",
    "Result",
]
