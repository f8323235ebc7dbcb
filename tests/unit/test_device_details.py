"""Chip family, GPU cores, compute capability and driver, from what machines of each sort really answer.

mlx's dictionary for a Mac and the outputs of the systems' tools are as people published them. That for CUDA
has the keys of mlx's ``device_info.cpp``, and values made up after an H100.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlxengine._machine import detect as detection
from mlxengine._machine import nvidia, system
from mlxengine._machine.detect import Platform, detect
from mlxengine.toolkit import backend

M4_PRO = {
    "resource_limit": 499000,
    "max_buffer_length": 30150672384,
    "architecture": "applegpu_g16s",
    "memory_size": 51539607552,
    "max_recommended_working_set_size": 40200896512,
    "device_name": "Apple M4 Pro",
}
H100 = {
    "device_name": "NVIDIA H100 80GB HBM3",
    "uuid": "GPU-6d21b8a4-57f2-4a36-9a0c-2f6f5e1c7d11",
    "architecture": "sm_90",
    "pci_bus_id": "0000:1b:00.0",
    "compute_capability_major": 9,
    "compute_capability_minor": 0,
    "free_memory": 84_407_746_560,
    "total_memory": 85_520_809_984,
}
IOREG = """\
+-o AGXAcceleratorG15G  <class AGXAcceleratorG15G, id 0x100000481, registered, matched, active, busy 0 (517 ms), retain 88>
    {
      "PerformanceStatistics" = {"In use system memory (driver)"=0,"Alloc system memory"=5437849600,"Device Utilization %"=26}
      "model" = "Apple M3"
      "gpu-core-count" = 10
    }
"""  # noqa: E501 - as it was printed
KERNEL = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  "
    "(dvs-builder@U22-I3-B17-02-5)  Tue Sep 23 09:55:41 UTC 2025\n"
    "GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04.2) \n"
)
PROPRIETARY = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.135  Fri Jan 10 20:00:00 UTC 2025\n"


def mlx_says(monkeypatch: pytest.MonkeyPatch, info: dict[str, Any], *, metal: bool) -> None:
    """A stand-in for ``mlx.core`` on another machine."""
    gpu = SimpleNamespace(type="gpu")
    fake = SimpleNamespace(
        device_info=lambda: info,
        default_device=lambda: gpu,
        DeviceType=SimpleNamespace(cpu="cpu", gpu="gpu"),
        metal=SimpleNamespace(is_available=lambda: metal),
    )
    monkeypatch.setattr(backend, "mx", fake)


class Nvml:
    """The functions of NVML that are used; those named fail."""

    def __init__(self, *failing: str) -> None:
        self.failing = failing
        self.asked: list[Any] = []
        self.open = 0

    def _code(self, name: str) -> int:
        return 999 if name in self.failing else 0

    def nvmlInit_v2(self) -> int:
        self.open += self._code("init") == 0
        return self._code("init")

    def nvmlShutdown(self) -> int:
        self.open -= 1
        return 0

    def nvmlSystemGetDriverVersion(self, text: Any, size: int) -> int:
        assert size >= 80
        text.value = b"580.159.03"
        return self._code("driver")

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, device: Any) -> int:
        self.asked.append(uuid)
        return self._code("handle")

    def nvmlDeviceGetNumGpuCores(self, device: Any, count: Any) -> int:
        count._obj.value = 16896
        return self._code("cores")


def test_a_mac_tells_its_family_gpu_cores_and_the_recommended_working_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = {"sysctl": "Apple M4 Pro", "ioreg": IOREG, "vm_stat": ""}
    monkeypatch.setattr(system, "_output", lambda *command: answers[command[0].rsplit("/", 1)[1]])
    mlx_says(monkeypatch, M4_PRO, metal=True)
    found = detect(Platform(system="Darwin", machine="arm64", release="15.1"))
    assert (found.backend, found.name, found.family) == ("metal", "Apple M4 Pro", "Apple M4")
    assert (found.architecture, found.gpu_cores, found.driver) == ("applegpu_g16s", 10, "macOS 15.1")
    assert (found.total_memory, found.working_set) == (51539607552, 40200896512)
    assert found.compute_capability is None


def test_an_nvidia_gpu_tells_its_family_capability_cores_and_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvml = Nvml()
    mlx_says(monkeypatch, H100, metal=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: nvml)
    found = detect(Platform(system="Linux", machine="x86_64", root=tmp_path))
    assert (found.backend, found.name, found.family) == ("cuda", "NVIDIA H100 80GB HBM3", "Hopper")
    assert (found.architecture, found.compute_capability) == ("sm_90", (9, 0))
    assert (found.gpu_cores, found.driver) == (16896, "580.159.03")
    assert found.free_memory == 84_407_746_560
    assert found.working_set is not None
    assert 0.9 * 85_520_809_984 <= found.working_set < 85_520_809_984
    assert (nvml.asked, nvml.open) == ([H100["uuid"].encode()], 0)


@pytest.mark.parametrize(("text", "version"), [(KERNEL, "580.95.05"), (PROPRIETARY, "550.135")])
def test_without_the_management_library_the_kernel_tells_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, version: str
) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert nvidia.ask("GPU-1", tmp_path) == nvidia.Nvidia()
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(text)
    assert nvidia.ask("GPU-1", tmp_path) == nvidia.Nvidia(driver=version)


@pytest.mark.parametrize(
    ("failing", "driver", "cores"),
    [
        (("init",), None, None),
        (("driver",), None, 16896),
        (("handle",), "580.159.03", None),
        (("cores",), "580.159.03", None),
    ],
)
def test_what_the_management_library_refuses_is_unknown(
    tmp_path: Path, failing: tuple[str, ...], driver: str | None, cores: int | None
) -> None:
    nvml = Nvml(*failing)
    assert nvidia.ask("GPU-1", tmp_path, nvml) == nvidia.Nvidia(driver=driver, cores=cores)
    assert nvml.open == 0


def test_an_old_management_library_without_a_function_is_no_error(tmp_path: Path) -> None:
    old = SimpleNamespace(nvmlInit_v2=lambda: 0, nvmlSystemGetDriverVersion=lambda *_: 1)
    assert nvidia.ask("GPU-1", tmp_path, old) == nvidia.Nvidia()


@pytest.mark.parametrize(
    ("capability", "family"),
    [
        ((7, 0), "Volta"),
        ((7, 5), "Turing"),
        ((8, 6), "Ampere"),
        ((8, 9), "Ada Lovelace"),
        ((9, 0), "Hopper"),
        ((12, 0), "Blackwell"),
        ((99, 0), None),
        (None, None),
    ],
)
def test_a_compute_capability_names_its_family(capability: Any, family: str | None) -> None:
    assert nvidia.family_of(capability) == family


@pytest.mark.parametrize(
    ("chip", "family"),
    [("Apple M1", "Apple M1"), ("Apple M3 Max", "Apple M3"), ("Apple A18 Pro", "Apple A18"), ("Intel", None)],
)
def test_a_chip_s_family_is_its_generation(chip: str, family: str | None) -> None:
    assert system.apple_family(chip) == family


def test_ioreg_that_says_nothing_is_unknown() -> None:
    assert (system.parse_ioreg(IOREG), system.parse_ioreg("")) == (10, None)


def test_a_cpu_tells_its_architecture_and_has_no_gpu() -> None:
    found = detect()
    if found.backend == "cpu":
        assert found.architecture == detection.platform.machine()
        assert (found.family, found.gpu_cores, found.compute_capability, found.driver) == (None,) * 4
