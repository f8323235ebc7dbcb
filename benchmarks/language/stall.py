"""How much running answers wait while long prompts come in, and what that costs in all.

    python -m benchmarks.language.stall [--length 4096] [--prompts 8] [--factors 4 6 8] [--clock processor]
        [--shape llama-1B] [--rounds 5] [--seconds 540]
        [--output FILE.json] [--curve FILE.svg] [--merge FILE.json ...]

Four answers run; then the prompts arrive at once. For each stall factor: the running answers' time between
tokens (median before the prompts arrive, p99 until the last of them has its first token), and the time of
the whole work over that of a raw ``BatchGenerator`` with mlx-lm's own settings, in alternating runs. The
model has random weights (``--shape`` of shapes.py) unless ``--model`` names a folder. With ``--rounds``
there is one more before them, which warms up and is left out, and the rows have the medians. ``--clock
processor`` measures this process's processor time, which other work on the machine hardly changes. Factors
can be measured in several runs: ``--merge`` adds the rows of their outputs, and with ``--factors`` left empty
runs nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlxengine import GenerateParams, InferenceEngine, TextDelta, TextRequest

from benchmarks.sides import TINY, BatchGenerator, checkpoint, load

RUNNING, QUIET, ANSWER = 4, 150, 32
P99, WHOLE = 10.0, 1.25  # what is aimed at
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}


def prompt(length: int, seed: int) -> list[int]:
    return [3 + (seed * 131 + 7 * i * i + 3 * i) % 200 for i in range(length)]


def mlx_lm_alone(folder: str, options: Any) -> dict[str, float]:
    """The same work on mlx-lm's generator: seconds in all, and the longest step."""
    clock = CLOCKS[options.clock]
    network, _ = load(folder)[:2]
    generator = BatchGenerator(network, max_tokens=ANSWER)
    generator.insert([prompt(16, i) for i in range(RUNNING)], [QUIET + options.after] * RUNNING)
    start, steps, live, worst = clock(), 0, RUNNING, 0.0
    while live:
        began = clock()
        if steps == QUIET:
            generator.insert([prompt(options.length, 50 + i) for i in range(options.prompts)])
            live += options.prompts
        _, answers = generator.next()
        live -= sum(answer.finish_reason is not None for answer in answers)
        steps += 1
        worst = max(worst, clock() - began)
    generator.close()
    return {"mlx_lm_seconds": clock() - start, "mlx_lm_longest_ms": 1000 * worst}


def ours(engine: InferenceEngine, folder: str, factor: float, options: Any) -> dict[str, float]:
    """One run with a stall factor."""
    clock = CLOCKS[options.clock]
    flags = {"llm.stall_factor": factor, "llm.prompt_cache": False}
    with engine.load_text(folder, features=flags, warm_up=options.warm_up) as model:
        times: list[list[float]] = [[] for _ in range(RUNNING)]
        first: list[float] = []
        ready = threading.Event()

        def request(tokens: list[int], count: int) -> TextRequest:
            params = GenerateParams(max_tokens=count, temperature=0, ignore_eos=True)
            return TextRequest(prompt_tokens=tokens, params=params)

        def run(i: int) -> None:
            for event in model.stream(request(prompt(16, i), QUIET + options.after)):
                if isinstance(event, TextDelta):
                    times[i].append(clock())
                    if len(times[i]) == QUIET:
                        ready.set()

        def long(i: int) -> None:
            events = model.stream(request(prompt(options.length, 50 + i), ANSWER))
            said = [clock() for event in events if isinstance(event, TextDelta)]
            first.append(said[0])

        start = clock()
        threads = [threading.Thread(target=run, args=(i,)) for i in range(RUNNING)]
        for thread in threads:
            thread.start()
        ready.wait()
        begin = clock()
        more = [threading.Thread(target=long, args=(i,)) for i in range(options.prompts)]
        for thread in more:
            thread.start()
        for thread in (*threads, *more):
            thread.join()
        seconds = clock() - start
    gaps = [(b, b - a) for row in times for a, b in itertools.pairwise(row)]
    quiet = statistics.median(gap for at, gap in gaps if at < begin)
    busy = sorted(gap for at, gap in gaps if begin <= at <= max(first))
    p99 = busy[min(len(busy) - 1, int(0.99 * len(busy)))]
    return {
        "factor": factor,
        "quiet_median_ms": 1000 * quiet,
        "busy_median_ms": 1000 * statistics.median(busy),
        "busy_p99_ms": 1000 * p99,
        "p99_ratio": p99 / quiet,
        "last_first_token_seconds": max(first) - begin,
        "running_to_the_end": float(min(row[-1] for row in times) >= max(first)),
        "seconds": seconds,
    }


def medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each figure, and the spread of the two that are aimed at."""
    row = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    for key in ("p99_ratio", "total_ratio") if len(rounds) > 1 else ():
        row[f"{key}_least"] = min(one[key] for one in rounds)
        row[f"{key}_most"] = max(one[key] for one in rounds)
    return row


def draw(rows: list[dict[str, float]], target: Path, caption: str) -> None:
    """The trade-off as a picture: waits across, the whole work upwards; what is aimed at is shaded."""
    width, height, left, low = 640, 400, 70, 330
    right = max(2 * P99, 1.05 * max(row["p99_ratio"] for row in rows))
    top = max(1.6, 1.05 * max(row["total_ratio"] for row in rows))
    bottom = min(0.8, 0.95 * min(row["total_ratio"] for row in rows))

    def x(value: float) -> float:
        return left + (width - left - 20) * value / right

    def y(value: float) -> float:
        return low - (low - 40) * (value - bottom) / (top - bottom)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>',
        f'<rect x="{left}" y="{y(WHOLE):.1f}" width="{x(P99) - left:.1f}" height="{low - y(WHOLE):.1f}" '
        'fill="#dcfce7"/>',
        f'<path d="M{left} 40V{low}H{width - 20}" fill="none" stroke="#334155"/>',
        f'<text x="{left}" y="22" font-size="14">{caption}</text>',
        f'<text x="{width - 20}" y="{low + 42}" text-anchor="end">p99 time between tokens of the running '
        "answers, in quiet medians</text>",
        f'<text x="18" y="{low}" transform="rotate(-90 18 {low})">whole work, in mlx-lm\'s own time</text>',
    ]
    for tick in range(0, int(right) + 1, 5 if right < 60 else 20):
        parts.append(f'<text x="{x(tick):.1f}" y="{low + 18}" text-anchor="middle">{tick}</text>')
    for tenths in range(int(bottom * 10) + 1, int(top * 10) + 1, 2):
        at = y(tenths / 10) + 4
        parts.append(f'<text x="{left - 8}" y="{at:.1f}" text-anchor="end">{tenths / 10}</text>')
    points = [(x(row["p99_ratio"]), y(row["total_ratio"]), row["factor"]) for row in rows]
    line = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#94a3b8"/>')
    for px, py, factor in points:
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="#2563eb"/>')
        parts.append(f'<text x="{px + 7:.1f}" y="{py - 6:.1f}">{factor:g}</text>')
    target.write_text("\n".join((*parts, "</svg>")) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder; default: random weights")
    parser.add_argument(
        "--shape", default=TINY, help="of those weights, from shapes.py; with -4bit, quantized"
    )
    parser.add_argument(
        "--rounds", type=int, default=0, help="of which the medians are; 0: one, not warmed up"
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no round after so many")
    parser.add_argument("--tiny", action="store_true", help="short prompts, one factor: does it work?")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--after", type=int, default=3000, help="tokens of the running answers after that")
    parser.add_argument("--factors", type=float, nargs="*", default=[3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 20.0])
    parser.add_argument("--warm-up", action="store_true", help="the model, before")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--curve", type=Path)
    parser.add_argument("--merge", type=Path, nargs="+", default=[], help="outputs of runs of the same work")
    options = parser.parse_args()
    if options.tiny:
        options.length, options.prompts, options.after, options.factors = 512, 2, 100, [8.0]
    work = {key: getattr(options, key) for key in ("model", "length", "prompts", "after", "clock")}
    work |= {"shape": options.shape} if options.shape != TINY else {}
    rows = []
    for file in options.merge:
        earlier = json.loads(file.read_text())
        if earlier["work"] != work:
            parser.error(f"{file} measured other work: {earlier['work']}, not {work}")
        rows += earlier["rows"]
    end = time.monotonic() + options.seconds
    with InferenceEngine() as engine:
        folder = options.model or str(checkpoint(options.shape))
        for factor in sorted(options.factors):
            found = []
            for number in range(1 + options.rounds):
                if time.monotonic() > end:
                    break
                row = mlx_lm_alone(folder, options) | ours(engine, folder, factor, options)
                row["total_ratio"] = row["seconds"] / row["mlx_lm_seconds"]
                print(json.dumps({"round": number, **row}), flush=True)
                found.append(row)
            if found:
                rows.append(medians(found[1:] or found))
                print("  ".join(f"{key} {value:.2f}" for key, value in rows[-1].items()), flush=True)
    rows.sort(key=lambda row: row["factor"])
    if options.output:
        options.output.write_text(json.dumps({"work": work, "rows": rows}, indent=1) + "\n")
    if options.curve:
        draw(rows, options.curve, f"{options.prompts} prompts of {options.length} tokens; llm.stall_factor")


if __name__ == "__main__":
    main()
