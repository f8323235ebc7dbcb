"""Our downloads and the stock client's, side by side, on the hub of the tests (plain HTTP, Xet off).

    python -m benchmarks.engine.hub [--rounds 5] [--json FILE]

Every download runs in a process of its own, the two clients by turns. Bytes are counted at the server.
Times are the call's own, imports not counted; the best and the median of the rounds are given.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.hub.content import MIB, random_model, same, total
from tests.hub.processes import Download, until
from tests.hub.server import HubServer

REPO = "org/name"
CLIENTS = ("stock", "ours")
Stage = tuple[HubServer, Path, dict[str, bytes]]
Row = dict[str, Any]


@contextmanager
def stage(*sizes: int) -> Iterator[Stage]:
    """A hub with one repository, an empty folder, and the repository's files."""
    files = random_model(1, *sizes)
    with HubServer() as hub, tempfile.TemporaryDirectory() as folder:
        hub.repos.add(REPO, files)
        yield hub, Path(folder), files


def fetch(client: str, on: Stage) -> Row:
    """One whole download: how it ended, the bytes sent so far by the size of the repository, and seconds."""
    hub, folder, files = on
    result = Download(client, hub.endpoint, folder, REPO).result(300)
    return {"end": _end(result, files), "sent": hub.log.bytes() / total(files), "seconds": result["seconds"]}


def _end(result: dict[str, Any], files: dict[str, bytes]) -> str:
    if "error" in result:
        return f"fails ({result['error']})"
    return "complete" if same(Path(result["path"]), files) else "WRONG CONTENT"


def clean(client: str) -> Row:
    with stage(*[24_000_000] * 4) as on:
        return fetch(client, on)


def warm(client: str) -> Row:
    with stage(*[24_000_000] * 4) as on:
        fetch(client, on)
        on[0].log.clear()
        return fetch(client, on)


def killed_at_half(client: str) -> Row:
    with stage(30 * MIB, 30 * MIB) as on:
        hub, folder, files = on
        slow = hub.faults.add("slow", "safetensors", times=None, rate=20 * MIB)
        process = Download(client, hub.endpoint, folder, REPO)
        until(lambda: hub.log.bytes() >= total(files) / 2)
        process.kill()
        slow.rate = 1 << 40
        return fetch(client, on)


def resets(client: str) -> Row:
    with stage(60_000_000) as on:
        on[0].faults.add("reset", "safetensors", method="GET", times=None, after=1_000_000)
        return fetch(client, on)


def one_503(client: str) -> Row:
    with stage(MIB) as on:
        on[0].faults.add("status", "safetensors", method="GET")
        return fetch(client, on)


def one_bit(client: str) -> Row:
    with stage(MIB) as on:
        on[0].faults.add("corrupt", "safetensors", method="GET", offset=500_000)
        return fetch(client, on)


def four_processes(client: str) -> Row:
    with stage(20 * MIB, 20 * MIB, 20 * MIB) as (hub, folder, files):
        running = [Download(client, hub.endpoint, folder, REPO) for _ in range(4)]
        results = [process.result(300) for process in running]
        ends = sorted({_end(result, files) for result in results})
        seconds = max(result["seconds"] for result in results)
        return {"end": ", ".join(ends), "sent": hub.log.bytes() / total(files), "seconds": seconds}


# what is timed is done in every round, the rest once
TIMED: dict[str, Callable[[str], Row]] = {"clean download, 4 × 24 MB": clean, "warm start of the same": warm}
ONCE: dict[str, Callable[[str], Row]] = {
    "SIGKILL at half of 60 MiB, then again": killed_at_half,
    "RST after every MB of 60": resets,
    "one 503 on a file": one_503,
    "one bit flipped on the wire": one_bit,
    "four processes at once, 60 MiB": four_processes,
}


def _cell(rows: list[Row]) -> str:
    times = [row["seconds"] for row in rows]
    if len(rows) > 1:
        return f"{min(times):.3f} s at best, {statistics.median(times):.3f} s median"
    return f"{rows[0]['end']}, {rows[0]['sent']:.3f} × the bytes"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, dict[str, list[Row]]] = {}
    print(f"| | {' | '.join(CLIENTS)} |\n|-|{'-|' * len(CLIENTS)}")
    for name, case in {**TIMED, **ONCE}.items():
        rows: dict[str, list[Row]] = {client: [] for client in CLIENTS}
        for _ in range(options.rounds if name in TIMED else 1):
            for client in CLIENTS:
                rows[client].append(case(client))
        found[name] = rows
        print(f"| {name} | {' | '.join(_cell(rows[client]) for client in CLIENTS)} |", flush=True)
    if options.json:
        versions = {name: importlib.metadata.version(name) for name in ("mlxengine", "huggingface_hub")}
        options.json.write_text(json.dumps({"versions": versions, "cases": found}, indent=1))


if __name__ == "__main__":
    main()
