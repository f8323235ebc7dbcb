"""mlx behind the small protocol that the scheduler knows."""

from __future__ import annotations

import ctypes
import sys
import time
import warnings
import weakref
from contextlib import AbstractContextManager, suppress
from functools import cache
from typing import cast

from attrs import frozen

from ..contract.device import MemoryReading
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


CACHE_SHARE = 8


@frozen(kw_only=True)
class Probe:
    """What mlx says of the device it computes on by default; sizes in bytes, ``None`` is unknown."""

    backend: str
    name: str = ""
    total_memory: int | None = None
    free_memory: int | None = None
    working_set: int | None = None
    architecture: str | None = None
    compute_capability: tuple[int, int] | None = None
    uuid: str | None = None


def probe() -> Probe:
    """Ask mlx for its default device: ``"metal"``, ``"cuda"`` or ``"cpu"``, and the GPU's name and memory."""
    info = mx.device_info()
    architecture = str(info["architecture"]) if "architecture" in info else None
    if mx.default_device().type == mx.DeviceType.cpu:
        return Probe(backend="cpu", architecture=architecture)

    def size(*names: str) -> int | None:
        return next((int(info[name]) for name in names if name in info), None)

    major = size("compute_capability_major")
    return Probe(
        backend="metal" if mx.metal.is_available() else "cuda",
        name=str(info.get("device_name", "")),
        total_memory=size("total_memory", "memory_size"),
        free_memory=size("free_memory"),
        working_set=size("max_recommended_working_set_size"),
        architecture=architecture,
        compute_capability=None if major is None else (major, size("compute_capability_minor") or 0),
        uuid=str(info["uuid"]) if "uuid" in info else None,
    )


@cache
def new_shape_seconds() -> float:
    """Seconds that mlx takes longer over sizes that it has not met before, measured once in a process.

    On CUDA attention and products are planned for each size, for tens of milliseconds.
    """

    def timed(size: int) -> float:
        x = mx.ones((1, 2, size, 64), dtype=mx.bfloat16)
        mx.eval(x)
        began = time.perf_counter()
        mx.eval(mx.fast.scaled_dot_product_attention(x, x, x, scale=1.0, mask="causal") @ x[0, 0, 0])
        return time.perf_counter() - began

    timed(48)  # what compiles once for all sizes
    # the least of several: whatever else the machine does only adds
    return max(0.0, min(timed(size) - timed(size) for size in (77, 83, 91)))


# glibc's names of what `mallopt` sets
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_kept = False


@cache
def keep_pages() -> bool:
    """On a CPU, let the process keep what mlx frees until `release_pages`; whether it does.

    mlx asks the C library for the memory of each array, and glibc asks the system for what is large: pages to
    be cleared and entered one by one, as often as a layer is computed. Without glibc nothing changes.
    """
    library = _glibc()
    if library is None or mx.default_device().type != mx.DeviceType.cpu:
        return False
    global _kept
    # the largest int: memory is never given back by itself, and what is larger still is mapped as before
    _kept = all(library.mallopt(name, 2**31 - 1) for name in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
    return _kept


def release_pages() -> None:
    """Give the system back what the C library keeps since `keep_pages` and nothing uses.

    It takes time by what was freed: 0.2 ms where nothing was, some 0.2 s after half a gigabyte in pieces; and
    none where pages are not kept.
    """
    if _kept and (library := _glibc()) is not None:
        library.malloc_trim(ctypes.c_size_t(0))


@cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def clear_cache() -> None:
    """Give cached memory back to the system: what mlx keeps on a GPU, the C library on a CPU.

    On a CPU mlx keeps none, but ``mx.clear_cache`` waits for every stream that any thread ever used and
    starts a thread for each, which nothing ends.
    """
    if mx.default_device().type != mx.DeviceType.cpu:
        mx.clear_cache()
    else:
        release_pages()


def limit_cache(memory: int | None) -> int | None:
    """Let mlx keep an eighth of a GPU's memory in freed buffers at most; it has no limit of its own.

    A smaller limit that somebody set before stays. Returns the limit in bytes, ``None`` where the size of the
    memory is unknown (on a CPU, where mlx keeps 32 MiB).
    """
    if memory is None:
        return None
    limit = memory // CACHE_SHARE
    before = mx.set_cache_limit(limit)
    if before < limit:
        mx.set_cache_limit(before)
    return min(before, limit)


# A stream of mlx's, with its thread, lasts as long as the process: the next engine uses it again.
_idle: list[mx.Stream] = []


def _take_stream() -> mx.Stream:
    device = mx.default_device()
    for stream in list(_idle):
        if stream.device == device:
            with suppress(ValueError):  # another engine took it
                _idle.remove(stream)
                return stream
    return mx.new_thread_unsafe_stream(device)


class MLXBackend:
    """mlx with one stream that any thread may use, one thread at a time.

    The default streams of mlx belong to the thread that made them; a model that is built on the loader's
    thread must be evaluated on the scheduler's, so both run under this one.
    """

    def __init__(self) -> None:
        found = probe()
        limit_cache(found.working_set or found.total_memory)
        self._stream, self._loader_stream = streams = _take_stream(), _take_stream()
        weakref.finalize(self, _idle.extend, streams).atexit = False

    def stream(self) -> AbstractContextManager[object]:
        return cast(AbstractContextManager[object], mx.stream(self._stream))

    def loader_stream(self) -> AbstractContextManager[object]:
        return cast(AbstractContextManager[object], mx.stream(self._loader_stream))

    def synchronize(self) -> None:
        mx.synchronize(self._stream)

    def memory(self) -> MemoryReading:
        return MemoryReading(
            active=mx.get_active_memory(), cache=mx.get_cache_memory(), peak=mx.get_peak_memory()
        )

    def reset_peak(self) -> None:
        mx.reset_peak_memory()

    def end_thread(self) -> None:
        # mlx 0.32 aborts the process at exit ("terminate called without an active exception") when a
        # thread that used a stream ended without this.
        mx.clear_streams()

    def clear_cache(self) -> None:
        clear_cache()
