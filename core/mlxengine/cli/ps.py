"""List the engines of this user that hold memory for models now, in this and in other processes."""

from __future__ import annotations

import argparse
from pathlib import Path

from .._reservations import Reservations
from .._selection import human
from ._output import Output


def configure(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults()


def run(arguments: argparse.Namespace, out: Output) -> int:
    del arguments
    found = [
        {"pid": pid, "program": _program(pid), "reserved_bytes": size}
        for pid, size in Reservations().everyone()
    ]

    def table() -> None:
        if not found:
            out.line("No engine holds a model.")
            return
        rows = [(item["pid"], human(float(str(item["reserved_bytes"]))), item["program"]) for item in found]
        out.table(("pid", "reserved", "program"), rows)

    out.emit({"engines": found}, table)
    return 0


def _program(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
