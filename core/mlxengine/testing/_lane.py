"""The two threads that a plugin meets: one that loads, one that does everything else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TypeVar

from .._machine import mlx_backend
from ..contract.device import DeviceBackend

T = TypeVar("T")


class Lane:
    """Runs calls where the engine would: loading on one thread, each step on another, one mlx stream."""

    def __init__(self, *, uses_mlx: bool) -> None:
        self._owner = ThreadPoolExecutor(1, thread_name_prefix="conformance-steps")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="conformance-load")
        self.backend: DeviceBackend | None = self._owner.submit(mlx_backend).result() if uses_mlx else None

    def _under_stream(self, call: Callable[[], T]) -> T:
        with self.backend.stream() if self.backend else nullcontext():
            return call()

    def step(self, call: Callable[[], T]) -> T:
        """Run on the thread that owns the models."""
        return self._owner.submit(self._under_stream, call).result()

    def load(self, call: Callable[[], T]) -> T:
        """Run on the loader's thread."""
        return self._loader.submit(self._under_stream, call).result()

    def active_bytes(self) -> int:
        """Memory that mlx holds for live arrays; 0 without mlx."""
        if self.backend is None:
            return 0
        self.step(self.backend.clear_cache)
        return self.step(self.backend.memory).active

    def close(self) -> None:
        for thread in (self._loader, self._owner):
            if self.backend is not None:
                thread.submit(self.backend.end_thread).result()
            thread.shutdown()
