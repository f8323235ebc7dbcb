"""The bounded queue between the scheduler and the reader of one request."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..contract.events import Event

if TYPE_CHECKING:
    from queue import SimpleQueue


class Channel:
    """Events of one request, written by the scheduler and read by one caller.

    The writer never blocks: it looks at ``full`` before it takes another step of the request. ``on_space``
    is called on the reader's thread when a full queue has been drained to half.
    """

    # A condition variable wakes each reader through three locks and some Python, which a model with short
    # steps feels once there are many readers.

    def __init__(self, limit: int, on_space: Callable[[], None]) -> None:
        from queue import SimpleQueue  # not needed to import the engine, which has to be quick

        self._limit = limit
        self._on_space = on_space
        self._items: SimpleQueue[Event | _End] = SimpleQueue()
        self._ended = False
        self._waker: Callable[[], None] | None = None
        self._was_full = False

    @property
    def full(self) -> bool:
        return self._items.qsize() >= self._limit

    @property
    def ended(self) -> bool:
        """Whether the last event, or the error, has been written."""
        return self._ended

    def put(self, event: Event) -> None:
        """Write an event (scheduler)."""
        self._write(event)
        self._was_full = self._was_full or self.full

    def end(self, error: BaseException | None = None) -> None:
        """Write the end (scheduler); the first call counts."""
        if not self._ended:
            self._ended = True
            self._write(_End(error))

    def get(self) -> Event | None:
        """The next event, waiting for it; ``None`` at the end.

        Raises:
            BaseException: the error that the request ended with, after all its events.
        """
        return self._taken(self._items.get())

    def poll(self, waker: Callable[[], None]) -> tuple[bool, Event | None]:
        """``(True, event or None at the end)``, or ``(False, None)``: then ``waker`` is called later."""
        if self._items.empty():
            self._waker = waker
            if self._items.empty():  # else it was written before the writer could see the waker
                return False, None
        self._waker = None
        return True, self.get()

    def _write(self, item: Event | _End) -> None:
        self._items.put(item)
        waker = self._waker
        if waker is not None:
            waker()

    def _taken(self, item: Event | _End) -> Event | None:
        if isinstance(item, _End):
            self._items.put(item)  # the end stays
            if item.error is not None:
                raise item.error
            return None
        if self._was_full and self._items.qsize() <= self._limit // 2:
            self._was_full = False
            self._on_space()
        return item


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error
