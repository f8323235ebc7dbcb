"""What this machine is, and what the scheduler needs of an array library."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from attrs import frozen


@frozen(kw_only=True)
class MemoryReading:
    """Bytes that the array library holds: in use, cached for reuse, and the highest use so far."""

    active: int
    cache: int
    peak: int


class DeviceBackend(Protocol):
    """What the scheduler needs of an array library. mlx's is `backend` of `mlxengine.toolkit`."""

    def stream(self) -> AbstractContextManager[object]:
        """Make the engine's own stream the default one of the current thread."""
        ...

    def loader_stream(self) -> AbstractContextManager[object]:
        """The same for a thread that builds models while the engine's stream is in use elsewhere."""
        ...

    def synchronize(self) -> None:
        """Wait until everything that was queued on the engine's stream is done."""
        ...

    def memory(self) -> MemoryReading:
        """What is held now."""
        ...

    def reset_peak(self) -> None:
        """Start a new peak."""
        ...

    def end_thread(self) -> None:
        """Give up the streams that the current thread made; call it last on every thread that computes."""
        ...

    def clear_cache(self) -> None:
        """Give cached memory back to the system."""
        ...


@frozen(kw_only=True)
class Device:
    """What this machine is. Sizes in bytes; ``None`` is unknown.

    Args:
        backend: ``"metal"``, ``"cuda"``, ``"cpu"``, or ``"none"`` where mlx cannot run.
        name: the chip or GPU.
        total_memory: memory that models can use at most (unified memory, the GPU's, or the container's).
        free_memory: of that, free now.
        working_set: what should not be exceeded in use (Metal's recommendation; else a share of total).
        cpu: the processor's name.
        cores: processor cores that this process may use.
        problem: why mlx cannot run, where it cannot.
        family: the chip's or GPU's generation: ``"Apple M3"``, ``"Hopper"``; ``None`` on a CPU.
        architecture: as mlx names it: ``"applegpu_g15s"``, ``"sm_90"``, ``"x86_64"``.
        gpu_cores: the GPU's cores, as its maker counts them.
        compute_capability: of an NVIDIA GPU, (major, minor).
        driver: the GPU driver's version; on a Mac it comes with the system, whose version it is then.
    """

    backend: str
    name: str
    total_memory: int | None = None
    free_memory: int | None = None
    working_set: int | None = None
    cpu: str = ""
    cores: int = 1
    problem: str | None = None
    family: str | None = None
    architecture: str | None = None
    gpu_cores: int | None = None
    compute_capability: tuple[int, int] | None = None
    driver: str | None = None

    @classmethod
    def detect(cls) -> Device:
        """Look at this machine; never raises, and imports mlx only where it is installed."""
        from .._machine.detect import detect

        return detect()


__all__ = ["Device", "DeviceBackend", "MemoryReading"]
