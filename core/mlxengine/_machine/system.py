"""What the operating system says about processor and memory, container limits included.

Every reader takes the root of the file system, so that a test can show it another machine's.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from attrs import frozen

_UNLIMITED = 2**60  # version 1 of cgroups writes a huge number where nothing is limited


@frozen
class Memory:
    """Bytes that this process may use in all, and that are free now; ``None`` is unknown."""

    total: int | None
    free: int | None


def linux_memory(root: Path) -> Memory:
    """The machine's memory, or the tightest limit of the control groups that this process is in."""
    kib: dict[str, str] = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE))
    total = int(kib["MemTotal"]) * 1024 if "MemTotal" in kib else None
    free = int(kib["MemAvailable"]) * 1024 if "MemAvailable" in kib else None
    for folder in _cgroups(root, "memory"):
        limit = _number(folder, "memory.max") or _number(folder, "memory.limit_in_bytes")
        if limit is None or limit >= _UNLIMITED or (total is not None and limit >= total):
            continue
        used = _number(folder, "memory.current") or _number(folder, "memory.usage_in_bytes") or 0
        stat: dict[str, str] = dict(re.findall(r"^(\w+) (\d+)$", _read(folder / "memory.stat"), re.MULTILINE))
        reclaimable = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
        left = max(0, limit - max(0, used - reclaimable))
        total, free = limit, left if free is None else min(free, left)
    return Memory(total, free)


def cores(root: Path) -> int:
    """Processor cores that this process may use: affinity, and the control groups' quota rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroups(root, "cpu"):
        quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.strip().isdigit() and period.strip().isdigit() and int(period):
            allowed = min(allowed, max(1, math.ceil(int(quota) / int(period))))
    return allowed


def cpu_name(root: Path) -> str | None:
    """The processor's name as the kernel tells it."""
    found = re.search(
        r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", _read(root / "proc/cpuinfo"), re.MULTILINE
    )
    return re.sub(r"\s+", " ", found[1]).strip() if found else None


def sysctl(name: str) -> str | None:
    """One value of macOS's ``sysctl``."""
    return _output("/usr/sbin/sysctl", "-n", name) or None


def mac_memory() -> Memory:
    """Physical memory of a Mac, and what ``vm_stat`` counts as free or at once reclaimable."""
    total = sysctl("hw.memsize")
    return Memory(
        int(total) if total and total.isdigit() else None, parse_vm_stat(_output("/usr/bin/vm_stat"))
    )


def apple_family(chip: str) -> str | None:
    """``"Apple M3"`` of ``"Apple M3 Max"``; ``None`` for another maker's chip."""
    found = re.match(r"Apple [A-Z]\d+", chip)
    return found[0] if found else None


def apple_gpu_cores() -> int | None:
    """The cores of a Mac's GPU, by the system's registry of devices (about 25 ms)."""
    return parse_ioreg(_output("/usr/sbin/ioreg", "-r", "-d", "1", "-c", "AGXAccelerator"))


def parse_ioreg(text: str) -> int | None:
    """The GPU's cores by the output of macOS's ``ioreg`` on its driver."""
    found = re.search(r'"gpu-core-count"\s*=\s*(\d+)', text)
    return int(found[1]) if found else None


def mac_pressure() -> bool:
    """Whether macOS itself says that memory is short: 1 is normal, 2 a warning, 4 critical."""
    return (sysctl("kern.memorystatus_vm_pressure_level") or "1") in ("2", "4")


def parse_vm_stat(text: str) -> int | None:
    """Free bytes by the output of macOS's ``vm_stat``: free, inactive, speculative and purgeable pages."""
    page = re.search(r"page size of (\d+) bytes", text)
    pages = {name: int(count) for name, count in re.findall(r"^Pages (\w+):\s+(\d+)\.$", text, re.MULTILINE)}
    if page is None or "free" not in pages:
        return None
    return int(page[1]) * sum(pages.get(name, 0) for name in ("free", "inactive", "speculative", "purgeable"))


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The control groups that limit this process, innermost first, in either version.

    Inside a container the path that the kernel names may lie outside of what is mounted; the mount's own
    root is then the container's group.
    """
    mounts = [line.split() for line in _read(root / "proc/self/mounts").splitlines()]
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        version_2 = number == "0" and not controllers
        if not version_2 and controller not in controllers.split(","):
            continue
        for mount in mounts:
            if len(mount) < 4 or mount[2] != ("cgroup2" if version_2 else "cgroup"):
                continue
            if not version_2 and controller not in mount[3].split(","):
                continue
            base = root / mount[1].lstrip("/")
            inner = PurePosixPath(path.lstrip("/"))
            steps = [base / inner, *(base / parent for parent in inner.parents)]
            yield from (step for step in dict.fromkeys(steps) if ".." not in step.parts and step.is_dir())


def _number(folder: Path, name: str) -> int | None:
    text = _read(folder / name).strip()
    return int(text) if text.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
