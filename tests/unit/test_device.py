"""The device is what this process may really use, container limits included."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mlxengine import Device
from mlxengine._machine import system
from mlxengine._machine.detect import Platform, detect, shortage, unsupported

GIB = 2**30
MEMINFO = f"MemTotal: {16 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {12 * 2**20} kB\n"


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, content in {"proc/meminfo": MEMINFO, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


V2 = {"proc/self/mounts": "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0", "proc/self/cgroup": "0::/user/app"}
V1 = {
    "proc/self/mounts": "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
    "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu,cpuacct 0 0",
    "proc/self/cgroup": "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc",
}


def test_without_a_container_it_is_the_machine_s_memory(tmp_path: Path) -> None:
    assert system.linux_memory(tree(tmp_path, {})) == system.Memory(16 * GIB, 12 * GIB)


def test_a_version_2_limit_of_an_outer_group_counts_and_page_cache_is_free(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/user/app/memory.max": "max",
        "sys/fs/cgroup/user/memory.max": 4 * GIB,
        "sys/fs/cgroup/user/memory.current": 3 * GIB,
        "sys/fs/cgroup/user/memory.stat": f"anon 5\ninactive_file {1 * GIB}",
    }
    assert system.linux_memory(tree(tmp_path, V2 | files)) == system.Memory(4 * GIB, 2 * GIB)


def test_a_version_1_limit_is_found_where_the_group_is_the_mount_s_root(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": 2 * GIB,
        "sys/fs/cgroup/memory/memory.usage_in_bytes": GIB,
    }
    assert system.linux_memory(tree(tmp_path, V1 | files)) == system.Memory(2 * GIB, GIB)


def test_version_1_without_a_limit_leaves_the_machine_s_memory(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712}
    assert system.linux_memory(tree(tmp_path, V1 | files)).total == 16 * GIB


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (V2 | {"sys/fs/cgroup/user/app/cpu.max": "50000 100000"}, 1),
        (V2 | {"sys/fs/cgroup/user/app/cpu.max": "max 100000"}, None),
        (
            V1
            | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": 100000, "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000},
            1,
        ),
        (
            V1 | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": -1, "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000},
            None,
        ),
    ],
)
def test_a_processor_quota_limits_the_cores(tmp_path: Path, files: dict[str, object], expected: int) -> None:
    assert system.cores(tree(tmp_path, files)) == expected or (
        expected is None and system.cores(tmp_path) == len(os.sched_getaffinity(0))
    )


def test_nothing_readable_is_unknown_and_not_an_error(tmp_path: Path) -> None:
    assert system.linux_memory(tmp_path) == system.Memory(None, None)
    assert system.cpu_name(tmp_path) is None
    found = detect(Platform(system="Linux", machine="x86_64", root=tmp_path))
    assert (found.total_memory, found.free_memory, found.working_set) == (None, None, None)


@pytest.mark.parametrize(("available", "short"), [(500 * 2**10, False), (400 * 2**10, True)])
def test_memory_is_short_when_hardly_any_is_free(tmp_path: Path, available: int, short: bool) -> None:
    tree(tmp_path, {"proc/meminfo": f"MemTotal: {16 * 2**20} kB\nMemAvailable: {available} kB"})
    place = Platform(system="Linux", machine="x86_64", root=tmp_path)
    found = shortage(Device(backend="cpu", name="x"), place)
    assert (found is not None) is short
    assert found in (None, "only 400 MiB of 16.0 GiB are free")


@pytest.mark.parametrize(("level", "short"), [("1", False), ("2", True), ("4", True), (None, False)])
def test_a_mac_says_itself_whether_memory_is_short(
    monkeypatch: pytest.MonkeyPatch, level: str | None, short: bool
) -> None:
    monkeypatch.setattr(system, "sysctl", lambda name: level)
    mac = Platform(system="Darwin", machine="arm64", release="15.1")
    assert (shortage(Device(backend="metal", name="x"), mac) is not None) is short


def test_vm_stat_counts_what_can_be_reclaimed() -> None:
    text = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                               10.\nPages active:                           99.\n"
        "Pages inactive:                           20.\nPages speculative:                       3.\n"
        "Pages purgeable:                           4.\n"
    )
    assert system.parse_vm_stat(text) == 37 * 16384
    assert system.parse_vm_stat("") is None


@pytest.mark.parametrize(
    ("system", "machine", "release", "words"),
    [
        ("Windows", "AMD64", "11", "macOS and Linux"),
        ("Darwin", "x86_64", "14.1", "Apple silicon"),
        ("Darwin", "arm64", "13.6", "macOS 14"),
        ("Linux", "riscv64", "6.1", "riscv64"),
    ],
)
def test_an_unsupported_platform_says_why(
    tmp_path: Path, system: str, machine: str, release: str, words: str
) -> None:
    place = Platform(system=system, machine=machine, release=release, root=tmp_path)
    found = detect(place)
    assert found.backend == "none"
    assert words in str(found.problem)


@pytest.mark.parametrize(
    ("system", "machine"), [("Darwin", "arm64"), ("Linux", "aarch64"), ("Linux", "x86_64")]
)
def test_a_supported_platform_has_no_problem(system: str, machine: str) -> None:
    assert unsupported(Platform(system=system, machine=machine, release="14.0")) is None


def test_this_machine_is_described() -> None:
    found = Device.detect()
    assert found.backend in ("cpu", "cuda", "metal")
    assert found.name
    assert found.total_memory
    assert found.working_set
    assert found.free_memory
    assert found.working_set < found.total_memory
    assert found.cores >= 1
    assert found.problem is None


def test_a_missing_mlx_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    found = Device.detect()
    assert (found.backend, found.problem) == ("none", "mlx is not installed")
    assert found.total_memory
