"""What replicas bring to a batch job on one machine, and what they cost before the first row.

    python -m benchmarks.engine.batch --model MODEL --input ROWS.jsonl [--replicas 1 2] [-- OPTION …]

Every job is run as a process of its own, by turns, once over the first row alone and once over all rows: the
difference is the time for rows (on a machine that does nothing else), the rest is the start (imports, Ray,
loading). Memory is the most that its processes held together, shared pages counted in each. Options behind
``--`` go to ``mlxengine batch``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path


def tree_memory(root: int) -> int:
    """Bytes that a process and all below it hold."""
    told = subprocess.run(
        ["ps", "-e", "-o", "pid=,ppid=,rss="], capture_output=True, text=True, check=True
    ).stdout
    below, held = defaultdict(list), {}
    for line in told.splitlines():
        pid, parent, kilobytes = map(int, line.split())
        below[parent].append(pid)
        held[pid] = kilobytes << 10
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        total += held.get(pid, 0)
        waiting += below[pid]
    return total


def run(source: Path, model: str, replicas: int, options: list[str]) -> tuple[float, int]:
    """Seconds and bytes of one job."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["batch", "-q", "--json", str(source), f"{folder}/out", "--model", model, *options]
        words += ["--replicas", str(replicas)] if replicas > 1 else []
        began, peak = time.monotonic(), 0
        with subprocess.Popen([sys.executable, "-m", "mlxengine", *words], stdout=subprocess.PIPE) as job:
            while job.poll() is None:
                peak = max(peak, tree_memory(job.pid))
                time.sleep(0.2)
        if job.returncode:
            raise SystemExit(f"a job of {replicas} replicas ended with {job.returncode}")
        return time.monotonic() - began, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("options", nargs="*")
    asked = parser.parse_args()
    lines = asked.input.read_text().splitlines()
    found: dict[int, list[tuple[float, float, int]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first.jsonl"
        first.write_text(lines[0] + "\n")
        for _ in range(asked.repeats):
            for count in asked.replicas:
                start, _ = run(first, asked.model, count, asked.options)
                whole, peak = run(asked.input, asked.model, count, asked.options)
                found[count].append((start, whole, peak))
    for count, measured in found.items():
        start = min(item[0] for item in measured)
        whole = min(item[1] for item in measured)
        rate = (len(lines) - 1) / (whole - start)
        value = {"replicas": count, "rows": len(lines), "start_seconds": round(start, 1)}
        value |= {"seconds": round(whole, 1), "rows_per_second": round(rate, 2)}
        print(json.dumps({**value, "peak_bytes": max(item[2] for item in measured)}), flush=True)


if __name__ == "__main__":
    main()
