"""The bounded queue between the scheduler and the reader of one request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ..contract.events import Event

if TYPE_CHECKING:
    from queue import SimpleQueue

MOST_BYTES = 16 * 2**20  # five pictures of 1024 x 1024, or more text than anybody reads
_SMALL = frozenset({int, float, bool, type(None)})
_MANY = 1024  # values; a prompt's token ids are more, and the scheduler waits for the count
_FLAT = frozenset({str, bytes, bytearray})
_fields: dict[type, tuple[str, ...]] = {}  # looking them up costs more than the rest


def weight(value: object) -> int:
    """About how many bytes an event holds on to: its texts, buffers and arrays, at any depth."""
    kind = type(value)
    if kind in _SMALL:
        return 8
    if kind in _FLAT:
        return len(value)  # type: ignore[arg-type]
    if kind is tuple or kind is list:
        if len(value) > _MANY and _SMALL.issuperset(map(type, value)):  # type: ignore[arg-type, call-overload]
            return 8 * len(value)  # type: ignore[arg-type]
        return sum(map(weight, value)) if value else 0  # type: ignore[call-overload]
    names = _fields.get(kind)
    if names is None:
        names = _fields[kind] = tuple(item.name for item in getattr(kind, "__attrs_attrs__", ()))
    if names:
        return sum([weight(getattr(value, name)) for name in names])
    if isinstance(value, Mapping):
        return sum(map(weight, value.values()))
    size = getattr(value, "nbytes", 0)
    return size if isinstance(size, int) else 8


class Channel:
    """Events of one request, written by the scheduler and read by one caller.

    The writer never blocks: it looks at ``full`` before it takes another step of the request. ``on_space``
    is called on the reader's thread when a full queue has been drained to half.

    Args:
        limit: events that may wait.
        on_space: see above.
        most: bytes that may wait; one event more than that always may, whatever its size.
        later: calls what wakes a reader that waits by `poll`; at once if it is not given.
    """

    # A condition variable wakes each reader through three locks and some Python, which a model with short
    # steps feels once there are many readers.

    def __init__(
        self,
        limit: int,
        on_space: Callable[[], None],
        most: int = MOST_BYTES,
        later: Callable[[Callable[[], None]], None] = lambda wake: wake(),
    ) -> None:
        from queue import SimpleQueue  # not needed to import the engine, which has to be quick

        self._limit = limit
        self._most = most
        self._on_space = on_space
        self._later = later
        self._items: SimpleQueue[tuple[Event, int] | _End] = SimpleQueue()
        # Two counters, since each has one thread that changes it: nothing to lock.
        self._written = 0
        self._read = 0
        self._ended = False
        self._waker: Callable[[], None] | None = None
        self._was_full = False

    @property
    def full(self) -> bool:
        return self._items.qsize() >= self._limit or self._written - self._read >= self._most

    @property
    def ended(self) -> bool:
        """Whether the last event, or the error, has been written."""
        return self._ended

    def put(self, event: Event) -> None:
        """Write an event (scheduler)."""
        size = weight(event)
        self._written += size
        self._write((event, size))
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

    def poll(self, waker: Callable[[], None] | None) -> tuple[bool, Event | None]:
        """``(True, event or None at the end)``, or ``(False, None)``: then ``waker`` is called later."""
        if self._items.empty():
            self._waker = waker
            if self._items.empty():  # else it was written before the writer could see the waker
                return False, None
        self._waker = None
        return True, self.get()

    def take(self, most: int) -> list[Event]:
        """The events that are there now, without waiting; an end, or an error, stays for `get` or `poll`."""
        found: list[Event] = []
        for _ in range(min(most, self._items.qsize())):  # no more: a fast writer would never let go
            item = self._items.get()
            if isinstance(item, _End):
                self._items.put(item)
                break
            found.append(self._read_one(item))
        return found

    def _write(self, item: tuple[Event, int] | _End) -> None:
        self._items.put(item)
        waker = self._waker
        if waker is not None:
            self._later(waker)

    def _taken(self, item: tuple[Event, int] | _End) -> Event | None:
        if isinstance(item, _End):
            self._items.put(item)  # the end stays
            if item.error is not None:
                raise item.error
            return None
        return self._read_one(item)

    def _read_one(self, item: tuple[Event, int]) -> Event:
        event, size = item
        self._read += size
        drained = self._written - self._read <= self._most // 2
        if self._was_full and drained and self._items.qsize() <= self._limit // 2:
            self._was_full = False
            self._on_space()
        return event


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error
