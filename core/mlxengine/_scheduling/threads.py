"""What Python's threads do not say about the system's."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import EngineClosedError, InsufficientMemoryError

if TYPE_CHECKING:
    from ..contract.device import DeviceBackend

_quiet = threading.Lock()


def forked(process: int) -> bool:
    """Whether this process is a copy, made by fork, of the one in which an engine was made."""
    return os.getpid() != process


def refuse_fork(process: int) -> None:
    """Neither threads nor the device's state survive a fork, and a lock may be held for ever.

    Raises:
        EngineClosedError: this is not the process in which the engine was made.
    """
    if forked(process):
        raise EngineClosedError(
            f"This engine belongs to process {process}, of which process {os.getpid()} is a fork: make an "
            'engine of its own there, best in a new process (multiprocessing.set_start_method("spawn")).'
        )


def start(thread: threading.Thread) -> None:
    """Start a thread.

    Raises:
        InsufficientMemoryError: the system gives no more: no memory for its stack, or too many.
    """
    try:
        thread.start()
    except RuntimeError as error:
        raise InsufficientMemoryError(
            f"The system starts no more threads: {error}.",
            hint="Close other programs, or raise the limits of memory and processes (ulimit -v, ulimit -u).",
        ) from error


class Threads:
    """The threads of an engine that closing waits for."""

    def __init__(self) -> None:
        self._alive: set[threading.Thread] = set()
        self._lock = threading.Lock()

    def start(self, work: Callable[[], None], *, name: str) -> None:
        """Run something on a thread of its own.

        Raises:
            InsufficientMemoryError: the system gives no more.
        """

        def run() -> None:
            try:
                work()
            finally:
                with self._lock:
                    self._alive.discard(threading.current_thread())

        thread = threading.Thread(target=run, name=name, daemon=True)
        with self._lock:  # nobody may wait for one that has not started
            start(thread)
            self._alive.add(thread)

    def wait(self, deadline: float) -> list[threading.Thread]:
        """Wait for them until a ``time.monotonic`` reading; those that go on."""
        with self._lock:
            others = [thread for thread in self._alive if thread is not threading.current_thread()]
        for thread in others:
            thread.join(max(0.0, deadline - time.monotonic()))
        return [thread for thread in others if thread.is_alive()]


def collect() -> None:
    """Collect garbage, but not while a thread gives up its mlx state."""
    with _quiet:
        gc.collect()


def give_up_streams(backend: DeviceBackend | None) -> None:
    """What every thread that computed does last, when no model is left.

    mlx holds the thread's cache of compiled functions meanwhile and waits for the GIL to empty it. Another
    thread that frees a function of that cache holds the GIL and waits for the cache: neither goes on. So
    garbage waits too.
    """
    if backend is None:
        return
    with _quiet:
        collecting = gc.isenabled()
        gc.disable()
        try:
            backend.end_thread()
        finally:
            if collecting:
                gc.enable()


def wait_until_gone(thread: threading.Thread, seconds: float = 1.0) -> None:
    """Wait until the system's thread is gone, which is a moment after Python's has been joined.

    mlx keeps compiled functions per thread and frees them, under the GIL, when the system's thread exits.
    If the interpreter ends in that moment, the process aborts.
    """
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        time.sleep(0.02)  # elsewhere nothing tells; the GIL is all that the thread waits for
        return
    deadline = time.perf_counter() + seconds
    while tasks.joinpath(str(thread.native_id)).exists() and time.perf_counter() < deadline:
        time.sleep(0.001)
