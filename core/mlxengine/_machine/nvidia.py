"""What NVIDIA's driver says of a GPU, through its management library (NVML) or else the kernel's file."""

from __future__ import annotations

import ctypes
import logging
import re
from pathlib import Path
from typing import Any

from attrs import frozen

_log = logging.getLogger("mlxengine.device")
_LIBRARY = "libnvidia-ml.so.1"
_TEXT_BYTES = 96  # NVML's version texts have at most 80

# CUDA's programming guide, "Compute Capabilities": the major number, or both, name the architecture.
_FAMILIES = {
    (7, 0): "Volta",
    (7, 2): "Volta",
    (7, 5): "Turing",
    (8, 9): "Ada Lovelace",
    5: "Maxwell",
    6: "Pascal",
    8: "Ampere",
    9: "Hopper",
    10: "Blackwell",
    11: "Blackwell",
    12: "Blackwell",
}


@frozen(kw_only=True)
class Nvidia:
    """``driver``: its version; ``cores``: the GPU's CUDA cores; ``None`` is unknown."""

    driver: str | None = None
    cores: int | None = None


def family_of(capability: tuple[int, int] | None) -> str | None:
    """The architecture's name for a compute capability, or ``None`` for one that is not known here."""
    if capability is None:
        return None
    return _FAMILIES.get(capability) or _FAMILIES.get(capability[0])


def ask(uuid: str | None, root: Path = Path("/"), library: Any = None) -> Nvidia:
    """Ask about the GPU of a UUID (``GPU-…``, as mlx tells it). Never raises.

    Args:
        uuid: which GPU; ``None`` asks for the driver only.
        root: of the file system.
        library: the opened NVML; ``None`` opens the installed one.
    """
    driver = cores = None
    try:
        nvml = library or ctypes.CDLL(_LIBRARY)
        if nvml.nvmlInit_v2() == 0:
            text = ctypes.create_string_buffer(_TEXT_BYTES)
            if nvml.nvmlSystemGetDriverVersion(text, _TEXT_BYTES) == 0:
                driver = text.value.decode()
            cores = _cores(nvml, uuid) if uuid else None
            nvml.nvmlShutdown()
    except (OSError, AttributeError) as error:  # no library, or one that lacks a function
        _log.debug("NVML cannot be asked: %s", error)
    return Nvidia(driver=driver or _from_kernel(root), cores=cores)


def _cores(nvml: Any, uuid: str) -> int | None:
    device, count = ctypes.c_void_p(), ctypes.c_uint()
    if nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(device)) != 0:
        return None
    if nvml.nvmlDeviceGetNumGpuCores(device, ctypes.byref(count)) != 0:
        return None
    return count.value


def _from_kernel(root: Path) -> str | None:
    try:
        text = (root / "proc/driver/nvidia/version").read_text(errors="replace")
    except OSError:
        return None
    found = re.search(r"NVRM version:.*?\s(\d+(?:\.\d+)+)\s", text)
    return found[1] if found else None


__all__ = ["Nvidia", "ask", "family_of"]
