"""Our downloads and the stock client's, side by side, on the hub of the tests (Xet off).

    python -m benchmarks.hub [--rounds 5]

Bytes are counted at the server. Times are the call's own, in a fresh process, imports not counted.
"""

from __future__ import annotations

import argparse
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


@contextmanager
def stage(*sizes: int) -> Iterator[tuple[HubServer, Path, dict[str, bytes]]]:
    """A hub with one repository, an empty folder, and the repository's files."""
    files = random_model(1, *sizes)
    with HubServer() as hub, tempfile.TemporaryDirectory() as folder:
        hub.repos.add(REPO, files)
        yield hub, Path(folder), files


def outcome(result: dict[str, Any], files: dict[str, bytes]) -> str:
    if "error" in result:
        return f"fails ({result['error']})"
    return "complete" if same(Path(result["path"]), files) else "WRONG CONTENT"


def clean(client: str, rounds: int) -> str:
    with stage(*[24_000_000] * 4) as (hub, folder, _files):
        times = [
            Download(client, hub.endpoint, folder / str(number), REPO).result()["seconds"]
            for number in range(rounds)
        ]
    return f"{min(times):.2f} s at best, {statistics.median(times):.2f} s median"


def warm(client: str, rounds: int) -> str:
    with stage(*[24_000_000] * 4) as (hub, folder, _files):
        Download(client, hub.endpoint, folder, REPO).result()
        hub.log.clear()
        times = [Download(client, hub.endpoint, folder, REPO).result()["seconds"] for _ in range(rounds)]
        requests = len(hub.log.entries()) / rounds
    return f"{min(times) * 1000:.0f} ms at best, {requests:.0f} requests"


def killed_at_half(client: str, _rounds: int) -> str:
    with stage(30 * MIB, 30 * MIB) as (hub, folder, files):
        slow = hub.faults.add("slow", "safetensors", times=None, rate=20 * MIB)
        process = Download(client, hub.endpoint, folder, REPO)
        until(lambda: hub.log.bytes() >= total(files) / 2)
        process.kill()
        slow.rate = 1 << 40
        result = Download(client, hub.endpoint, folder, REPO).result()
        again = (hub.log.bytes() - total(files)) / total(files)
        return f"{outcome(result, files)}, {again:.1%} of the bytes sent twice"


def resets(client: str, _rounds: int) -> str:
    with stage(60_000_000) as (hub, folder, files):
        hub.faults.add("reset", "safetensors", method="GET", times=None, after=1_000_000)
        result = Download(client, hub.endpoint, folder, REPO).result(300)
        return f"{outcome(result, files)} after {hub.log.bytes() / 1e6:.1f} of {total(files) / 1e6:.1f} MB"


def one_503(client: str, _rounds: int) -> str:
    with stage(MIB) as (hub, folder, files):
        hub.faults.add("status", "safetensors", method="GET")
        return outcome(Download(client, hub.endpoint, folder, REPO).result(), files)


def one_bit(client: str, _rounds: int) -> str:
    with stage(MIB) as (hub, folder, files):
        hub.faults.add("corrupt", "safetensors", method="GET", offset=500_000)
        return outcome(Download(client, hub.endpoint, folder, REPO).result(), files)


def four_processes(client: str, _rounds: int) -> str:
    with stage(20 * MIB, 20 * MIB, 20 * MIB) as (hub, folder, files):
        running = [Download(client, hub.endpoint, folder, REPO) for _ in range(4)]
        results = {outcome(process.result(120), files) for process in running}
        return f"{', '.join(sorted(results))}, {hub.log.bytes() / total(files):.3f} × the bytes"


CASES: dict[str, Callable[[str, int], str]] = {
    "clean download, 4 × 24 MB": clean,
    "warm start of the same": warm,
    "SIGKILL at half of 60 MB, again": killed_at_half,
    "RST after every MB of 60": resets,
    "one 503 on a file": one_503,
    "one bit flipped on the wire": one_bit,
    "four processes at once, 60 MB": four_processes,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"| | {' | '.join(CLIENTS)} |\n|-|{'-|' * len(CLIENTS)}")
    for name, case in CASES.items():
        print(f"| {name} | {' | '.join(case(client, options.rounds) for client in CLIENTS)} |", flush=True)


if __name__ == "__main__":
    main()
