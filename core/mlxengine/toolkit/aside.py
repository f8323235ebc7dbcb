"""Work for a request that does not touch the device, done beside the scheduler's thread."""

from __future__ import annotations

import queue
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from ..contract.events import Event, Usage, Waiting

T = TypeVar("T")
_Job = Callable[[], None]
_HAND_OVER = 0.0005  # seconds


class _HandingOver:
    """While it is entered, Python's threads hand over its lock to each other ten times as soon as usual.

    A step of the batch gives the lock away and takes it again many times. Beside a thread that computes in
    Python each of these costs what `sys.getswitchinterval` says, 5 ms, which is longer than a step.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._usual = self._ours = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._usual = sys.getswitchinterval()
                if self._usual > _HAND_OVER:
                    sys.setswitchinterval(_HAND_OVER)
                self._ours = sys.getswitchinterval()
            self._users += 1

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._usual > sys.getswitchinterval() == self._ours:  # ours, not another's
                sys.setswitchinterval(self._usual + 1e-7)  # it is cut down to whole microseconds


_handing_over = _HandingOver()


class Aside:
    """A few threads for what is prepared before a request reaches the device; they end with it.

    They are daemons: a tokenizer that cannot be interrupted must not keep the process from ending.
    """

    def __init__(self, threads: int = 4, name: str = "mlxengine-prepare") -> None:
        self._most = threads
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._busy = 0
        self.close = weakref.finalize(self, _end, self._jobs, threads)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Do the work on one of the threads. What has not begun can be cancelled."""
        future: Future[T] = Future()

        def job() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    with _handing_over:
                        found = work()
                except BaseException as error:
                    self._finished()
                    future.set_exception(error)
                else:
                    self._finished()
                    future.set_result(found)
            else:
                self._finished()

        with self._lock:
            self._busy += 1
            if self._busy > len(self._threads) < self._most:
                thread = threading.Thread(target=_serve, args=(self._jobs,), name=self._name, daemon=True)
                self._threads.append(thread)
                thread.start()
        self._jobs.put(job)
        return future

    def prepared(self, work: Callable[[], T], then: Callable[[T], Iterator[Event | None]]) -> Prepared:
        """An iterator that waits for ``work`` beside the device, then goes on with what ``then`` gives."""
        return Prepared(self.submit(work), then)

    def beside(self, work: Callable[[], T]) -> Generator[Event | None, None, T]:
        """Within an iterator, ``found = yield from aside.beside(work)``: the device is not held meanwhile."""
        future = self.submit(work)
        try:
            while not future.done():
                yield Waiting(until=future)
        finally:
            future.cancel()
        return future.result()

    def _finished(self) -> None:
        with self._lock:
            self._busy -= 1


class Prepared(Iterator[Event | None]):
    """A request whose preparation runs beside the device; then whatever its answers are."""

    def __init__(self, future: Future[T], then: Callable[[T], Iterator[Event | None]]) -> None:
        self._future = future
        self._then: Callable[[Any], Iterator[Event | None]] = then
        self._answers: Iterator[Event | None] | None = None
        self._closed = False

    def __next__(self) -> Event | None:
        if self._closed:
            raise StopIteration
        if self._answers is None and not self._future.done():
            return Waiting(until=self._future)
        return next(self.answers())

    def answers(self) -> Iterator[Event | None]:
        """What follows the preparation, for which this waits."""
        if self._answers is None:
            self._answers = self._then(self._future.result())
        return self._answers

    @property
    def usage(self) -> Usage | None:
        """What the answers used so far."""
        found: Usage | None = getattr(self._answers, "usage", None)
        return found

    @property
    def waiting(self) -> bool:
        """Whether the answers wait for their place."""
        return bool(getattr(self._answers, "waiting", False))

    @property
    def step_seconds(self) -> float | None:
        """What the answers say that their step should take."""
        found: float | None = getattr(self._answers, "step_seconds", None)
        return found

    def close(self) -> None:
        """Give up the preparation, or the answers."""
        self._closed = True
        self._future.cancel()
        close = getattr(self._answers, "close", None)
        if close is not None:
            close()


def _serve(jobs: queue.SimpleQueue[_Job | None]) -> None:
    # No reference to the `Aside`: it must be able to go while a thread waits.
    while (job := jobs.get()) is not None:
        job()
        del job


def _end(jobs: queue.SimpleQueue[_Job | None], threads: int) -> None:
    for _ in range(threads):
        jobs.put(None)


__all__ = ["Aside", "Prepared"]
