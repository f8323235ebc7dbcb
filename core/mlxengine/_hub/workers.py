"""A few files at once, on threads that neither outlive a cancel nor hold up the end of the program."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from attrs import evolve

from .download import Job

T = TypeVar("T")
R = TypeVar("R")
_GRACE = 0.5


@contextmanager
def stoppable(job: Job) -> Iterator[tuple[Job, threading.Event]]:
    """The job, with a switch that stops it besides its own ``cancelled``."""
    stop = threading.Event()
    asked = job.cancelled
    yield evolve(job, cancelled=lambda: stop.is_set() or asked()), stop


def each(job: Job, items: Iterable[T], act: Callable[[Job, T], R]) -> list[R]:
    """``act(job, item)`` for every item, on as many threads as the policy says; results in order.

    The first failure stops the others and is raised. A cancel, or an exception such as
    ``KeyboardInterrupt`` in the calling thread, stops all of them and returns at once.
    """
    todo: queue.SimpleQueue[tuple[int, T]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, R | None, BaseException | None]] = queue.SimpleQueue()
    count = 0
    for count, item in enumerate(items, 1):
        todo.put((count - 1, item))
    with stoppable(job) as (job, stop):

        def work() -> None:
            while not stop.is_set():
                try:
                    index, item = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((index, act(job, item), None))
                except BaseException as error:
                    done.put((index, None, error))
                    return

        threads = [
            threading.Thread(target=work, name=f"mlxengine-hub-{number}", daemon=True)
            for number in range(min(job.access.policy.workers, count))
        ]
        for thread in threads:
            thread.start()
        results: dict[int, R] = {}
        try:
            while len(results) < count:
                try:
                    index, result, error = done.get(timeout=0.1)
                except queue.Empty:
                    job.check()
                    continue
                if error is not None:
                    raise error
                results[index] = result  # type: ignore[assignment]
        finally:
            stop.set()
            if len(results) < count:
                end = time.monotonic() + _GRACE
                for thread in threads:
                    thread.join(max(0.0, end - time.monotonic()))
    return [results[index] for index in range(count)]
