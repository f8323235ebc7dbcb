"""Detection of the machine, behind `Device.detect`: the system first, then mlx through `backend`."""

from __future__ import annotations

import importlib.util
import logging
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from .._units import GIB, human
from ..contract.device import Device
from ..errors import BackendUnavailableError
from . import nvidia, system

if TYPE_CHECKING:
    from .backend import Probe

_RESERVE = 0.8  # of the memory of a machine without a recommendation of its own, what models may take
_SHORT = 0.03  # of all memory: with less free, other programs are about to fail
_log = logging.getLogger("mlxengine.device")


@frozen(kw_only=True)
class Platform:
    """What the interpreter runs on, apart from what can be read from files; tests make their own."""

    system: str
    machine: str
    release: str = ""
    root: Path = Path("/")

    @classmethod
    def current(cls) -> Platform:
        release = platform.mac_ver()[0] if sys.platform == "darwin" else platform.release()
        return cls(system=platform.system(), machine=platform.machine(), release=release)


def detect(here: Platform | None = None) -> Device:
    """The device that models will run on. Never raises: what could not be found out is ``None``."""
    place = here or Platform.current()
    try:
        base = _machine(place)
    except Exception as error:
        _log.debug("the system could not be read", exc_info=True)
        base = Device(backend="none", name=place.machine, problem=f"{type(error).__name__}: {error}")
    return base if base.problem else _with_mlx(base, place)


def shortage(device: Device, here: Platform | None = None) -> str | None:
    """Why models that nobody needs now should leave this machine's memory; ``None`` while there is enough."""
    place = here or Platform.current()
    if place.system == "Darwin":
        return "the system says that memory is short" if system.mac_pressure() else None
    if device.backend == "cuda":
        from .backend import probe

        found = probe()
        free, total = found.free_memory, found.total_memory
    else:
        memory = system.linux_memory(place.root)
        free, total = memory.free, memory.total
    if free is None or total is None or free >= _SHORT * total:
        return None
    return f"only {human(free)} of {human(total)} are free"


def unsupported(place: Platform) -> str | None:
    """Why mlx cannot run on such a platform at all, or ``None``."""
    if place.system == "Darwin":
        if place.machine != "arm64":
            return "mlx needs Apple silicon and an arm64 Python; this one is x86-64 (Rosetta or an Intel Mac)"
        if place.release and int(place.release.split(".")[0]) < 14:
            return f"mlx needs macOS 14 or later; this is {place.release}"
        return None
    if place.system != "Linux":
        return f"mlx runs on macOS and Linux; this is {place.system or 'an unknown system'}"
    if place.machine not in ("x86_64", "aarch64"):
        return f"mlx has no wheels for Linux on {place.machine}"
    return None


def _machine(place: Platform) -> Device:
    """The machine without mlx: processor, cores, memory."""
    mac = place.system == "Darwin"
    cpu = (system.sysctl("machdep.cpu.brand_string") if mac else system.cpu_name(place.root)) or place.machine
    memory = system.mac_memory() if mac else system.linux_memory(place.root)
    return Device(
        backend="none",
        name=cpu,
        total_memory=memory.total,
        free_memory=memory.free,
        working_set=None if memory.total is None else int(memory.total * _RESERVE),
        cpu=cpu,
        cores=system.cores(place.root),
        problem=unsupported(place),
    )


def _with_mlx(base: Device, place: Platform) -> Device:
    """The same, with what mlx says of the device that it computes on."""
    if importlib.util.find_spec("mlx") is None:
        return evolve(base, problem="mlx is not installed")
    try:
        from .backend import probe

        found = probe()
    except BackendUnavailableError as error:
        return evolve(base, problem=str(error))
    except Exception as error:
        _log.debug("mlx could not be asked", exc_info=True)
        return evolve(base, problem=f"mlx failed with {type(error).__name__}: {error}")
    return _computing(base, found, place)


def _computing(base: Device, found: Probe, place: Platform) -> Device:
    base = evolve(base, architecture=found.architecture)
    if found.backend == "cpu":
        return evolve(base, backend="cpu")
    total = found.total_memory or base.total_memory
    if found.backend == "metal":  # one memory for processor and GPU
        return evolve(
            base,
            backend="metal",
            name=found.name or base.name,
            total_memory=total,
            working_set=found.working_set or base.working_set,
            family=system.apple_family(found.name or base.name),
            gpu_cores=system.apple_gpu_cores(),
            driver=f"macOS {place.release}" if place.release else None,
        )
    told = nvidia.ask(found.uuid, place.root)
    working_set = None if total is None else max(int(total * 0.9), total - 4 * GIB)
    return evolve(
        base,
        backend=found.backend,
        name=found.name or base.name,
        total_memory=total,
        free_memory=found.free_memory,
        working_set=working_set,
        family=nvidia.family_of(found.compute_capability),
        gpu_cores=told.cores,
        driver=told.driver,
        compute_capability=found.compute_capability,
    )
