"""The two readers of a running request: one for threads, one for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ._scheduling.channel import Channel
from .contract.events import Event, Finished
from .errors import StreamConsumedError

if TYPE_CHECKING:
    import asyncio


class _Reader:
    """What both readers share: the request's channel, its result, and the way to cancel it."""

    def __init__(self, channel: Channel, cancel: Callable[[], None]) -> None:
        self._channel = channel
        self._cancel = cancel
        self._over = False
        self.finished: Finished | None = None

    def cancel(self) -> None:
        """Stop the request; it takes effect before its next step. Harmless when it is over."""
        self._cancel()

    def _not_over(self) -> None:
        if self._over:
            raise StreamConsumedError("This stream was read to its end already; start a new request.")

    def _seen(self, event: Event | None) -> Event | None:
        if isinstance(event, Finished):
            self.finished = event
        self._over = event is None
        return event

    def __del__(self) -> None:
        # A reader that nobody holds any more cannot be read: its request would run for nobody.
        if self.finished is None and not self._over:
            self._cancel()


class EventStream(_Reader, Iterator[Event]):
    """The events of one request, as they come; ``finished`` holds the last one after it was read.

    Leaving the loop early cancels the request once the stream is closed (``with``, `close`) or dropped.

    Raises:
        StreamConsumedError: it is iterated again after its end.
        MLXEngineError: what the request ended with, after all events that came before.
    """

    def __iter__(self) -> Iterator[Event]:
        self._not_over()
        return self

    def __next__(self) -> Event:
        event = self._seen(self._channel.get())
        if event is None:
            raise StopIteration
        return event

    def close(self) -> None:
        """Cancel what is left."""
        self.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncEventStream(_Reader, AsyncIterator[Event]):
    """The same for asyncio. A task that is cancelled while it waits cancels the request."""

    def __aiter__(self) -> AsyncIterator[Event]:
        self._not_over()
        return self

    async def __anext__(self) -> Event:
        import asyncio

        loop = asyncio.get_running_loop()
        while True:
            arrived = asyncio.Event()
            there, event = self._channel.poll(partial(_wake, loop, arrived))
            if there:
                if self._seen(event) is None:
                    raise StopAsyncIteration
                assert event is not None
                return event
            try:
                await arrived.wait()
            except asyncio.CancelledError:
                self.cancel()
                raise

    async def aclose(self) -> None:
        """Cancel what is left."""
        self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _wake(loop: asyncio.AbstractEventLoop, arrived: asyncio.Event) -> None:
    # The loop may have been closed by then: nobody waits any more.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(arrived.set)


__all__ = ["AsyncEventStream", "EventStream"]
