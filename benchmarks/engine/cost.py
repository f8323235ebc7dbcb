"""What several machines bring, simulated from the step times of one: replicas, or ranks that share each step.

    python -m benchmarks.engine.cost [--shape llama-8B] [--streams FILE.jsonl] [--check] [--write]

A machine alternates, as the engine does, between the prompt of a request that waits and a step of all that
decode. How long these take was measured (``benchmarks.gpu.streams``): the step by the number of streams,
interpolated; a prompt of 512 tokens among others, from the time until the last of 32 had its first token.
Requests come by a Poisson process, ask for 128 tokens, and go to the replica with the fewest.

Ranks divide the part of a step that is the device's own limit (``of_limit``, measured), and nothing of the
rest, which is launches; each layer adds two all-reduces of a ring. Network and failures are parameters, and
were not measured. ``--write`` puts the table into the documentation, ``--check`` says whether it is there;
without either it is printed.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import sys
from bisect import bisect_left
from collections import deque
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from benchmarks.shapes import BIG

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/explanation/several-machines.md"
MEASURED = ROOT / "benchmarks/results/nvidia-h200/streams-8B.jsonl"
BEGIN, END = "<!-- benchmarks.engine.cost -->\n", "<!-- end -->\n"
PROMPT, ANSWER, PLACES = 512, 128, 128
SOON = 1.0  # seconds until the first token, for all but one in a hundred


@frozen(kw_only=True)
class Network:
    """Between ranks: seconds before an all-reduce has moved its first byte, and bytes a second."""

    name: str
    latency: float
    bandwidth: float


@frozen(kw_only=True)
class Machine:
    """Seconds of a decoding step by streams, seconds of a prompt, and the share of both that ranks divide."""

    steps: tuple[tuple[int, float], ...]
    shares: tuple[tuple[int, float], ...]
    prompt: float
    prompt_share: float
    layers: int
    width: int

    def step(self, streams: int, ranks: int = 1, network: Network | None = None) -> float:
        """Seconds of a step."""
        whole = between(self.steps, streams)
        share = between(self.shares, streams)
        return whole * (1 - share + share / ranks) + self._moved(streams, ranks, network)

    def prefill(self, ranks: int = 1, network: Network | None = None) -> float:
        """Seconds of a prompt."""
        share = self.prompt_share
        return self.prompt * (1 - share + share / ranks) + self._moved(PROMPT, ranks, network)

    def _moved(self, tokens: int, ranks: int, network: Network | None) -> float:
        if network is None:
            return 0.0
        size = tokens * self.width * 2  # bf16
        return 2 * self.layers * (network.latency + 2 * (ranks - 1) / ranks * size / network.bandwidth)


def between(points: tuple[tuple[int, float], ...], at: int) -> float:
    """A value between the measured ones, by a straight line."""
    places = [place for place, _ in points]
    high = min(max(1, bisect_left(places, at)), len(points) - 1)
    (left, low), (right, up) = points[high - 1], points[high]
    return low + (up - low) * (min(at, right) - left) / (right - left)


def measured(path: Path, shape: str) -> Machine:
    """The machine of a file of raw figures."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    once: dict[int, Any] = {row["streams"]: row for row in rows if row.get("what") == "at once"}
    many, config = once[32], BIG[shape]
    return Machine(
        steps=tuple((count, row["gap_ms"]["ours"] / 1000) for count, row in sorted(once.items())),
        shares=tuple((count, row["of_limit"]["ours"]["decode"]) for count, row in sorted(once.items())),
        prompt=many["last_first_ms"]["ours"] / 1000 / 32,
        prompt_share=many["of_limit"]["ours"]["prompts"],
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
    )


@frozen(kw_only=True)
class Group:
    """So many machines: ``replicas`` of ``ranks`` each."""

    machine: Machine
    replicas: int = 1
    ranks: int = 1
    network: Network | None = None

    @property
    def machines(self) -> int:
        """How many there are."""
        return self.replicas * self.ranks

    def serve(self, arrivals: list[float]) -> tuple[list[float], float]:
        """Seconds until each request's first token, and when the last answer ended."""
        waiting: list[deque[float]] = [deque() for _ in range(self.replicas)]
        running: list[list[int]] = [[] for _ in range(self.replicas)]  # tokens that are still to come
        clock, first, ended = [0.0] * self.replicas, [], 0.0
        prompt = self.machine.prefill(self.ranks, self.network)
        steps = [self.machine.step(n, self.ranks, self.network) for n in range(1, PLACES + 1)]
        busy: list[tuple[float, int]] = []
        to_come = deque(arrivals)
        while to_come or busy:
            if to_come and (not busy or to_come[0] <= busy[0][0]):
                now = to_come.popleft()
                at = min(range(self.replicas), key=lambda n: len(waiting[n]) + len(running[n]))
                if not waiting[at] and not running[at]:
                    clock[at] = now
                    heapq.heappush(busy, (now, at))
                waiting[at].append(now)
                continue
            _, at = heapq.heappop(busy)
            if waiting[at] and len(running[at]) < PLACES:
                clock[at] += prompt
                first.append(clock[at] - waiting[at].popleft())
                running[at].append(ANSWER - 1)
            if running[at]:
                clock[at] += steps[len(running[at]) - 1]
                running[at] = [left - 1 for left in running[at] if left > 1]
            ended = max(ended, clock[at])
            if waiting[at] or running[at]:
                heapq.heappush(busy, (clock[at], at))
        return first, ended

    def capacity(self, seconds: float = 60.0) -> float:
        """Most requests a second of which 99 in 100 have their first token within `SOON`."""
        low, high = 0.0, 60.0 * self.machines
        while high - low > 0.02 * high:
            rate = (low + high) / 2
            draw, now, arrivals = random.Random(7), 0.0, []
            while now < seconds:
                now += draw.expovariate(rate)
                arrivals.append(now)
            first, _ = self.serve(arrivals)
            if sorted(first)[int(0.99 * len(first))] < SOON:
                low = rate
            else:
                high = rate
        return low


NETWORKS = (
    Network(name="one machine: 100 µs, 200 GB/s", latency=100e-6, bandwidth=200e9),
    Network(name="one machine, slower: 500 µs, 200 GB/s", latency=500e-6, bandwidth=200e9),
    Network(name="one machine, quicker: 20 µs, 200 GB/s", latency=20e-6, bandwidth=200e9),
    Network(name="one machine, at best: 6 µs, 200 GB/s", latency=6e-6, bandwidth=200e9),
    Network(name="RDMA, at best: 20 µs, 12 GB/s", latency=20e-6, bandwidth=12e9),
    Network(name="TCP: 200 µs, 1.1 GB/s", latency=200e-6, bandwidth=1.1e9),
)


def table(machine: Machine, days: float, restart: float) -> str:
    """Arrangements side by side, as Markdown."""
    alone = Group(machine=machine)
    rows: list[tuple[str, Group]] = [("one machine", alone)]
    rows += [(f"{count} replicas", evolve(alone, replicas=count)) for count in (2, 4, 8)]
    for network in NETWORKS:
        for ranks in (2, 4):
            rows.append((f"{ranks} ranks; {network.name}", evolve(alone, ranks=ranks, network=network)))
    lines = [
        "| | answers a second | per machine | ms a token, one stream | capacity lost, s a day | cut then |",
        "|-|-|-|-|-|-|",
    ]
    for name, group in rows:
        rate = group.capacity()
        token = 1000 * machine.step(1, group.ranks, group.network)
        failures = group.machines / days
        # a replica takes its share with it, a rank all
        out = failures * restart / group.replicas
        lines.append(
            f"| {name} | {rate:.0f} | {rate / group.machines:.1f} | {token:.1f} "
            f"| {out:.1f} | {'all' if group.replicas == 1 else f'1 in {group.replicas}'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="llama-8B", choices=sorted(BIG))
    parser.add_argument("--streams", type=Path, default=MEASURED, help="figures of benchmarks.gpu.streams")
    parser.add_argument("--days", type=float, default=30.0, help="between two failures of one machine")
    parser.add_argument("--restart", type=float, default=60.0, help="seconds until one serves again")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="whether the documentation has this table")
    what.add_argument("--write", action="store_true", help="put it there")
    options = parser.parse_args()
    made = table(measured(options.streams, options.shape), options.days, options.restart)
    if not options.check and not options.write:
        print(made, end="")
        return
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    whole = f"{before}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}"
    if options.write:
        PAGE.write_text(whole)
    elif whole != text:
        sys.exit(f"{PAGE.relative_to(ROOT)} has another table; run python -m benchmarks.engine.cost --write")


if __name__ == "__main__":
    main()
