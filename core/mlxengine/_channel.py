"""The bounded queue between the scheduler and the reader of one request."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from .events import Event


class Channel:
    """Events of one request, written by the scheduler and read by one caller.

    The writer never blocks: it looks at ``full`` before it takes another step of the request. ``on_space``
    is called on the reader's thread when a full queue has been drained to half.
    """

    def __init__(self, limit: int, on_space: Callable[[], None]) -> None:
        self._limit = limit
        self._on_space = on_space
        self._items: deque[Event] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._error: BaseException | None = None
        self._waker: Callable[[], None] | None = None
        self._was_full = False

    @property
    def full(self) -> bool:
        return len(self._items) >= self._limit

    @property
    def ended(self) -> bool:
        """Whether the last event, or the error, has been written."""
        return self._ended

    def put(self, event: Event) -> None:
        """Write an event (scheduler)."""
        with self._changed:
            self._items.append(event)
            self._was_full = self._was_full or self.full
            self._changed.notify()
            waker = self._waker
        if waker is not None:
            waker()

    def end(self, error: BaseException | None = None) -> None:
        """Write the end (scheduler); the first call counts."""
        with self._changed:
            if self._ended:
                return
            self._ended, self._error = True, error
            self._changed.notify_all()
            waker = self._waker
        if waker is not None:
            waker()

    def get(self) -> Event | None:
        """The next event, waiting for it; ``None`` at the end.

        Raises:
            BaseException: the error that the request ended with, after all its events.
        """
        with self._changed:
            while not self._items and not self._ended:
                self._changed.wait()
            event = self._take()
        self._freed()
        return event

    def poll(self, waker: Callable[[], None]) -> tuple[bool, Event | None]:
        """``(True, event or None at the end)``, or ``(False, None)``: then ``waker`` is called later."""
        with self._changed:
            if not self._items and not self._ended:
                self._waker = waker
                return False, None
            self._waker = None
            event = self._take()
        self._freed()
        return True, event

    def _take(self) -> Event | None:
        if self._items:
            return self._items.popleft()
        if self._error is not None:
            raise self._error
        return None

    def _freed(self) -> None:
        if self._was_full and len(self._items) <= self._limit // 2:
            self._was_full = False
            self._on_space()
