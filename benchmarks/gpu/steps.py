"""What each step of the shared batch read, drew and took, while many prompts come at once.

    python -m benchmarks.gpu.steps [--shape llama-1B] [--streams 32] [--length 512] [--new 128] [--rounds 3]
        [--seconds 540] [--output FILE.jsonl] [--tiny]

Round 0 is the first that the process serves. Steps are grouped by whether they read prompts and by how many
rows they drew; a step's time is that on the processor, with what it waits for the device.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from typing import Any

from benchmarks.sides import TINY, Report, parser, sides


def main() -> None:
    from mlxengine_llm import _decoder  # after sides has loaded a BLAS

    made = parser(__doc__ or "")
    made.set_defaults(rounds=3)
    made.add_argument("--streams", type=int, default=32)
    made.add_argument("--length", type=int, default=512)
    made.add_argument("--new", type=int, default=128)
    options = made.parse_args()
    if options.tiny:
        options.shape, options.streams, options.length, options.new = TINY, 4, 64, 16
    report = Report(options)
    steps: list[tuple[int, int, float]] = []
    plain = _decoder.BatchDecoder.step

    def step(self: Any, *wanted: Any, **more: Any) -> Any:
        began = time.perf_counter()
        done = plain(self, *wanted, **more)
        steps.append((done.prompt_tokens, len(done.drawn), time.perf_counter() - began))
        return done

    _decoder.BatchDecoder.step = step  # type: ignore[method-assign]
    with sides(
        options.shape, streams=options.streams, flags=dict(options.features), readers=options.readers
    ) as both:
        for number in report.rounds(1):
            steps.clear()
            came = both.ours(both.prompts(options.streams, options.length, number), options.new)
            groups: dict[str, list[float]] = defaultdict(list)
            for read, drawn, seconds in steps:
                rows = (
                    "none"
                    if not drawn
                    else "one"
                    if drawn == 1
                    else "some"
                    if drawn < options.streams
                    else "all"
                )
                groups[f"{'reads' if read else 'reads nothing'}, draws {rows}"].append(seconds)
            report.add(
                what="steps",
                shape=options.shape,
                streams=options.streams,
                round=number,
                steps=len(steps),
                seconds=sum(seconds for _, _, seconds in steps),
                read=Counter(read for read, _, _ in steps if read).most_common(12),
                groups={
                    name: {
                        "steps": len(found),
                        "seconds": sum(found),
                        "median_ms": 1000 * statistics.median(found),
                        "longest_ms": 1000 * max(found),
                    }
                    for name, found in sorted(groups.items())
                },
                **came.figures(),
            )
    rows = [
        {"round": row["round"], "group": name, **group}
        for row in report.rows
        for name, group in row["groups"].items()
    ]
    columns = {
        "round": lambda row: row["round"],
        "steps that": lambda row: row["group"],
        "number": lambda row: row["steps"],
        "seconds": lambda row: f"{row['seconds']:.2f}",
        "median, ms": lambda row: f"{row['median_ms']:.1f}",
        "longest, ms": lambda row: f"{row['longest_ms']:.1f}",
    }
    report.table(columns, rows)


if __name__ == "__main__":
    main()
