"""The two threads that a plugin meets: one that loads, one that does everything else."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from typing import TypeVar

from .._machine import mlx_backend
from ..contract.device import DeviceBackend
from ._clauses import Broken

T = TypeVar("T")
_ENDING = 1.0


class Worker:
    """A thread that a call may keep for ever: it is waited for so long, and never again."""

    def __init__(self, name: str, seconds: float) -> None:
        self._seconds = seconds
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._kept = False
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # it holds what it gave

    def run(self, function: Callable[[], T]) -> T:
        """Run a function there.

        Raises:
            Broken: it has not returned in time, or one before it has not.
        """
        if self._kept:
            raise Broken(f"an earlier call has not returned within {self._seconds:g} s")
        future: Future[T] = Future()

        def call() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._calls.put(call)
        try:
            return future.result(self._seconds)
        except TimeoutError:
            if future.done():
                raise
            self._kept = True
            raise Broken(f"a call has not returned within {self._seconds:g} s") from None

    def close(self) -> None:
        self._calls.put(None)
        if not self._kept:
            self.thread.join(_ENDING)


class Lane:
    """Runs calls where the engine would: loading on one thread, each step on another, one mlx stream.

    Args:
        uses_mlx: whether they need the stream.
        seconds: how long one call may take; what takes longer is left behind.
    """

    def __init__(self, *, uses_mlx: bool, seconds: float) -> None:
        self._owner = Worker("conformance-steps", seconds)
        self._loader = Worker("conformance-load", seconds)
        self.backend: DeviceBackend | None = self._owner.run(mlx_backend) if uses_mlx else None

    def _under_stream(self, call: Callable[[], T]) -> Callable[[], T]:
        def run() -> T:
            with self.backend.stream() if self.backend else nullcontext():
                return call()

        return run

    def step(self, call: Callable[[], T]) -> T:
        """Run on the thread that owns the models."""
        return self._owner.run(self._under_stream(call))

    def load(self, call: Callable[[], T]) -> T:
        """Run on the loader's thread."""
        return self._loader.run(self._under_stream(call))

    def active_bytes(self) -> int:
        """Memory that mlx holds for live arrays; 0 without mlx."""
        if self.backend is None:
            return 0
        self.step(self.backend.clear_cache)
        return self.step(self.backend.memory).active

    def close(self) -> None:
        """End the threads, but for one that a call keeps."""
        for worker in (self._loader, self._owner):
            if self.backend is not None:
                try:
                    worker.run(self.backend.end_thread)
                except Broken:
                    continue
            worker.close()
