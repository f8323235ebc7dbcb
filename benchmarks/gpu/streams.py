"""Many streams at once on a GPU: the engine against a raw ``BatchGenerator``, and against the device itself.

    python -m benchmarks.gpu.streams [--shape llama-1B] [--streams 1 8 32 128] [--arrivals 0.5 0.9]
        [--rounds 5] [--seconds 540] [--output FILE.jsonl] [--tiny]

All requests at once, in alternating rounds after one that warms up: tokens per second, median time to the
first token, p99 of the time between tokens. ``--arrivals``: requests that come by a Poisson process at these
shares of what mlx-lm's batch serves in all; mlx-lm admits them as mlx_lm.server does (what comes while it
decodes waits for up to half a second). The shares of the limit: bytes that decoding has to move over the
measured bandwidth of a copy, and the operations of the prompts over the measured rate of a product, each over
the time that it took.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

from benchmarks.sides import ADMITS, TINY, TOGETHER, Limits, Load, Report, Sides, alternate, parser, sides


def at_once(report: Report, both: Sides, n: int, share: int, limits: Limits, options: Any) -> None:
    length, new = options.length, options.new
    row = alternate(
        report,
        share,
        lambda number: both.ours(both.prompts(n, length, number), new),
        lambda number: both.theirs(both.prompts(n, length, number), new),
    )
    if not row["rounds"]:
        return
    load = Load.of(both.network)
    used = {
        side: load.shares(
            limits,
            {k: v[side] for k, v in row.items() if side in (v if isinstance(v, dict) else ())},
            n,
            length,
            new,
        )
        for side in ("ours", "mlx_lm")
    }
    report.add(what="at once", shape=options.shape, streams=n, readers=both.readers, **row, of_limit=used)


def arriving(report: Report, both: Sides, load: float, share: int, capacity: float, options: Any) -> None:
    """``capacity``: requests a second."""
    count = options.requests

    def asked(number: int) -> list[float]:
        rng, now, found = random.Random(number), 0.0, []
        for _ in range(count):
            now += rng.expovariate(load * capacity)
            found.append(now)
        return found

    row = alternate(
        report,
        share,
        lambda number: both.ours(both.prompts(count, options.length, number), options.new, asked(number)),
        lambda number: both.theirs(
            both.prompts(count, options.length, number), options.new, asked(number), ADMITS
        ),
    )
    if row["rounds"]:
        report.add(
            what="arriving", shape=options.shape, load=load, requests=count, per_second=load * capacity, **row
        )


def show(report: Report) -> None:
    def of(key: str, scale: str = ".0f") -> Any:
        return lambda row: (
            f"{row[key]['ours']:{scale}} / {row[key]['mlx_lm']:{scale}}, {row[key]['ratio']:.2f} × "
            f"({row[key]['spread'][0]:.2f} to {row[key]['spread'][1]:.2f})"
        )

    columns = {
        "shape": lambda row: row["shape"],
        "requests": lambda row: (
            f"{row['streams']}, read by {row['readers']}"
            if "streams" in row
            else f"{row['load']:g} of capacity ({row['per_second']:.1f}/s)"
        ),
        "tok/s: ours / mlx-lm": of("tokens_per_second"),
        "first token, ms": of("first_ms"),
        "p99 between tokens, ms": of("gap_p99_ms", ".1f"),
        "of the limit: decoding, prompts": lambda row: (
            "; ".join(f"{s['decode']:.0%}, {s['prompts']:.0%}" for s in row["of_limit"].values())
            if "of_limit" in row
            else ""
        ),
        "rounds": lambda row: row["rounds"],
        "tok/s, steady rounds": lambda row: (
            f"{row['steady']['tokens_per_second']:.2f} × of {row['steady']['rounds']}"
            if row["steady"]["rounds"]
            else "none"
        ),
    }
    report.table(columns, [row for row in report.rows if "rounds" in row])


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--streams", type=int, nargs="*", default=[1, 8, 32, 128])
    made.add_argument("--length", type=int, default=512)
    made.add_argument("--new", type=int, default=128)
    made.add_argument("--arrivals", type=float, nargs="*", default=[])
    made.add_argument("--requests", type=int, default=96, help="of a round of --arrivals")
    options = made.parse_args()
    if options.tiny:
        options.shape, options.length, options.new, options.requests = TINY, 64, 16, 12
    run(options)


def run(options: argparse.Namespace) -> None:
    report = Report(options)
    limits = Limits.measure(tiny=options.tiny)
    report.add(what="limits", bytes_per_second=limits.bandwidth, flops=limits.flops)
    with sides(
        options.shape,
        streams=max([TOGETHER, *options.streams]),
        flags=dict(options.features),
        readers=options.readers,
    ) as both:
        todo = len(options.streams) + len(options.arrivals)
        for n in options.streams:
            at_once(report, both, n, todo, limits, options)
            todo -= 1
        if options.arrivals and report.left > 0:
            both.theirs(both.prompts(TOGETHER, options.length, 90), options.new)
            full = both.theirs(both.prompts(TOGETHER, options.length, 91), options.new).figures()
            for load in options.arrivals:
                arriving(report, both, load, todo, full["tokens_per_second"] / options.new, options)
                todo -= 1
    show(report)


if __name__ == "__main__":
    main()
