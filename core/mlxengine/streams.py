"""The two readers of a running request: one for threads, one for asyncio."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self
from weakref import WeakKeyDictionary, ref

from ._scheduling.bell import Bell
from ._scheduling.channel import Channel
from .contract.events import Event, Finished
from .errors import StreamConsumedError

if TYPE_CHECKING:
    import asyncio


class Reader:
    """What both readers share: the request's channel, its result, and the way to cancel it."""

    def __init__(self, channel: Channel, cancel: Callable[[], None]) -> None:
        self._channel = channel
        self._cancel = cancel
        self._over = False
        self.finished: Finished | None = None

    def cancel(self) -> None:
        """Stop the request; it takes effect before its next step. Harmless when it is over."""
        self._cancel()

    def arrived(self, most: int = 16) -> list[Event]:
        """The events that have come since the one that was read last, at most so many; it waits for none.

        Whoever passes events on can do so with all of them at once. What the request failed with is raised
        by the next step of the loop, as ever.
        """
        found = self._channel.take(most)
        for event in found:
            self._seen(event)
        return found

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


class EventStream(Reader, Iterator[Event]):
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


class AsyncEventStream(Reader, AsyncIterator[Event]):
    """The events of one request, as they come; ``finished`` holds the last one after it was read.

    A task that is cancelled while it waits cancels the request; so does leaving the loop early, once the
    stream is closed (``async with``, `aclose`) or dropped.

    Raises:
        StreamConsumedError: it is iterated again after its end.
        MLXEngineError: what the request ended with, after all events that came before.
    """

    def __aiter__(self) -> AsyncIterator[Event]:
        self._not_over()
        return self

    async def __anext__(self) -> Event:
        import asyncio

        while True:
            there, event = self._channel.poll(None)
            if not there:
                loop = asyncio.get_running_loop()
                arrived = loop.create_future()
                there, event = self._channel.poll(partial(_mailbox(loop).wake, arrived))
            if there:
                if self._seen(event) is None:
                    raise StopAsyncIteration
                assert event is not None
                return event
            try:
                await arrived
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


class _Mailbox:
    """Wakes the readers on one event loop.

    Calling into a loop from another thread costs as much as all the rest of an event, so one call serves
    the events of all readers that come before the loop gets to it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._arrived: deque[asyncio.Future[None]] = deque()
        self._called = False
        self._bell = Bell(loop, self._deliver)

    def wake(self, arrived: asyncio.Future[None]) -> None:
        """Set a future of the loop; from any thread."""
        self._arrived.append(arrived)
        if not self._called:  # else `_deliver` is still to come, and takes this one too
            self._called = True
            self._bell.ring()

    def _deliver(self) -> None:
        self._called = False  # before the last look, or what comes behind it would wait for ever
        while self._arrived:
            arrived = self._arrived.popleft()
            if not arrived.done():
                arrived.set_result(None)


# The loop itself holds its mailbox, until it is closed. Here it would stay for ever with a future that comes
# too late, since that holds the loop.
_mailboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, ref[_Mailbox]] = WeakKeyDictionary()


def _mailbox(loop: asyncio.AbstractEventLoop) -> _Mailbox:
    kept = _mailboxes.get(loop)
    found = None if kept is None else kept()
    if found is None:
        found = _Mailbox(loop)
        _mailboxes[loop] = ref(found)
    return found


__all__ = ["AsyncEventStream", "EventStream"]
