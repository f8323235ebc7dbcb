"""What the tests of ranks share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlxengine import GenerateParams, TextDelta

GREEDY = GenerateParams(max_tokens=24, temperature=0, ignore_eos=True)


def running() -> list[int]:
    """The processes of ranks on this machine whose leader is this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = folder.joinpath("cmdline").read_bytes()
            state, parent = folder.joinpath("stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if b"mlxengine_shard._rank" in words and state != "Z" and int(parent) == os.getpid():
            found.append(int(folder.name))
    return found


def until(holds: Callable[[], bool], seconds: float) -> bool:
    """Whether it comes to hold within so long."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def text_of(events: list[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))
