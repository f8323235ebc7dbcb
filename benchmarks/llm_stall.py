"""How much running answers wait while long prompts come in, and what that costs in all.

    python benchmarks/llm_stall.py MODEL_FOLDER [--length 4096] [--prompts 8] [--output FILE.json]

Four answers run; then the prompts arrive at once. For each stall factor: the running answers' time between
tokens (median while it is quiet, p99 while prompts are read), and the whole work's time over that of a raw
``BatchGenerator`` with mlx-lm's own settings.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from mlxengine.toolkit import blas

blas.load()

from mlxengine import GenerateParams, InferenceEngine, TextDelta, TextRequest  # noqa: E402
from mlxengine.toolkit.loading import descriptor_limit_kept  # noqa: E402

with descriptor_limit_kept():
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.utils import load

RUNNING, QUIET, ANSWER = 4, 150, 32


def prompt(length: int, seed: int) -> list[int]:
    return [3 + (seed * 131 + 7 * i * i + 3 * i) % 200 for i in range(length)]


def mlx_lm_alone(folder: str, length: int, prompts: int, after: int) -> float:
    network, _ = load(folder)[:2]
    generator = BatchGenerator(network, max_tokens=ANSWER)
    generator.insert([prompt(16, i) for i in range(RUNNING)], [QUIET + after] * RUNNING)
    start, steps, live = time.perf_counter(), 0, RUNNING
    while live:
        if steps == QUIET:
            generator.insert([prompt(length, 50 + i) for i in range(prompts)])
            live += prompts
        _, answers = generator.next()
        live -= sum(answer.finish_reason is not None for answer in answers)
        steps += 1
    generator.close()
    return time.perf_counter() - start


def ours(engine: InferenceEngine, folder: str, length: int, prompts: int, factor: float, after: int) -> Any:
    flags = {"llm.stall_factor": factor, "llm.prompt_cache": False}
    with engine.load_text(folder, features=flags) as model:
        times: list[list[float]] = [[] for _ in range(RUNNING)]
        arrived: list[float] = []
        over: list[float] = []
        ready = threading.Event()

        def request(tokens: list[int], count: int) -> TextRequest:
            params = GenerateParams(max_tokens=count, temperature=0, ignore_eos=True, logit_bias={50: 100.0})
            return TextRequest(prompt_tokens=tokens, params=params)

        def run(i: int) -> None:
            for event in model.stream(request(prompt(16, i), QUIET + after)):
                if isinstance(event, TextDelta):
                    times[i].append(time.perf_counter())
                    if len(times[i]) == QUIET:
                        ready.set()

        def long(i: int) -> None:
            for event in model.stream(request(prompt(length, 50 + i), ANSWER)):
                if isinstance(event, TextDelta) and len(event.token_ids):
                    over.append(time.perf_counter())
                    break

        start = time.perf_counter()
        threads = [threading.Thread(target=run, args=(i,)) for i in range(RUNNING)]
        for thread in threads:
            thread.start()
        ready.wait()
        arrived.append(time.perf_counter())
        more = [threading.Thread(target=long, args=(i,)) for i in range(prompts)]
        for thread in more:
            thread.start()
        for thread in (*threads, *more):
            thread.join()
        whole = time.perf_counter() - start
    begin, end = arrived[0], max(over)
    gaps = [(b, b - a) for row in times for a, b in itertools.pairwise(row)]
    quiet = [gap for at, gap in gaps if at < begin]
    busy = sorted(gap for at, gap in gaps if begin <= at <= end)
    return {
        "factor": factor,
        "quiet_median_ms": 1000 * statistics.median(quiet),
        "busy_p99_ms": 1000 * busy[min(len(busy) - 1, int(0.99 * len(busy)))],
        "ratio": busy[min(len(busy) - 1, int(0.99 * len(busy)))] / statistics.median(quiet),
        "seconds": whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--after", type=int, default=600)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = []
    with InferenceEngine() as engine:
        for factor in (2.0, 4.0, 6.0, 12.0, 50.0):
            alone = mlx_lm_alone(options.model, options.length, options.prompts, options.after)
            row = ours(engine, options.model, options.length, options.prompts, factor, options.after)
            row |= {"mlx_lm_seconds": alone, "total_ratio": row["seconds"] / alone}
            rows.append(row)
            print("  ".join(f"{key} {value:.2f}" for key, value in row.items()))
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
