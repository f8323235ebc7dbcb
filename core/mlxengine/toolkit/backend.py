"""mlx behind the small protocol that the scheduler knows."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from typing import cast

from ..device import MemoryReading
from ..errors import BackendUnavailableError
from . import blas

BLAS = blas.load()
"""What was done about a fast BLAS, which has to be in the process before mlx is."""

try:
    import mlx.core as mx
except ImportError as error:  # pragma: no cover - exercised in a subprocess
    raise BackendUnavailableError(
        f"mlx cannot be used on this machine: {error}.",
        hint='Install a back end: "mlxengine[cpu]", "mlxengine[cuda12]" or "mlxengine[cuda13]" on Linux, '
        "plain mlx on a Mac.",
    ) from error

if BLAS.status is blas.BlasStatus.TOO_LATE and (speed := blas.measure(repeats=3)) < blas.SLOW_GFLOPS:
    warnings.warn(
        f"mlx was imported before MLXEngine could load a fast BLAS: products run at {speed:.1f} GFLOP/s. "
        f"{BLAS.remedy} {blas.VARIABLE}=off silences this.",
        RuntimeWarning,
        stacklevel=2,
    )


class MLXBackend:
    """mlx with one stream that any thread may use, one thread at a time.

    The default streams of mlx belong to the thread that made them; a model that is built on the loader's
    thread must be evaluated on the scheduler's, so both run under this one.
    """

    def __init__(self) -> None:
        self._stream = mx.new_thread_unsafe_stream(mx.default_device())

    def stream(self) -> AbstractContextManager[object]:
        return cast(AbstractContextManager[object], mx.stream(self._stream))

    def synchronize(self) -> None:
        mx.synchronize(self._stream)

    def memory(self) -> MemoryReading:
        return MemoryReading(
            active=mx.get_active_memory(), cache=mx.get_cache_memory(), peak=mx.get_peak_memory()
        )

    def reset_peak(self) -> None:
        mx.reset_peak_memory()

    def clear_cache(self) -> None:
        mx.clear_cache()
