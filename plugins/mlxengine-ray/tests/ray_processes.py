"""The processes of a Ray cluster of our own, as Linux tells of them."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path


def cluster() -> dict[str, set[str]]:
    """The processes of clusters that have a token, and the files that each has open (Linux tells it)."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"RAY_AUTH_TOKEN=" in (process / "environ").read_bytes():
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[f"{process.name} {words}"] = {
                    str(item.readlink()) for item in (process / "fd").iterdir()
                }
    return found


def listening_elsewhere() -> list[str]:
    """Processes of such clusters that listen on more than loopback."""
    open_to_others = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            local = fields[1].rpartition(":")[0]
            loopback = local.endswith("0100007F") or local == "00000000000000000000000001000000"
            if fields[3] == "0A" and not loopback:
                open_to_others.add(f"socket:[{fields[9]}]")
    return [name for name, files in cluster().items() if files & open_to_others]


def wait_for_the_end(seconds: float = 30) -> None:
    """Whether no process of such a cluster is left, soon."""
    deadline = time.monotonic() + seconds
    while cluster():
        assert time.monotonic() < deadline, list(cluster())
        time.sleep(0.2)
