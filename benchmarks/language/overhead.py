"""What the engine costs on top of mlx-lm: the same prompts, the same weights, alternating runs.

    python -m benchmarks.language.overhead MODEL_FOLDER [--tokens 64] [--rounds 5] [--output FILE.json]

Single stream: decode rate of ``TextHandle.stream`` against ``mlx_lm.stream_generate``. Eight streams: all
tokens over the wall time, against a raw ``BatchGenerator`` to which the same requests come at the same
moments (50 ms apart). Medians of alternating rounds (ABAB); the spread is that of the ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from mlxengine.toolkit import blas

blas.load()

import mlx.core as mx  # noqa: E402
from mlxengine import Finished, GenerateParams, InferenceEngine, TextDelta, TextRequest  # noqa: E402
from mlxengine.toolkit.dtype import unpack_where_faster, upcast_for_cpu  # noqa: E402
from mlxengine.toolkit.loading import descriptor_limit_kept  # noqa: E402

with descriptor_limit_kept():
    from mlx_lm.generate import BatchGenerator, stream_generate
    from mlx_lm.utils import load

PROMPT = "Tell me something about the history of the number {}, in a few sentences."
STREAMS, APART = 8, 0.05


class Reference:
    """mlx-lm alone."""

    def __init__(self, folder: str) -> None:
        self.network, self.tokenizer = load(folder, lazy=True)[:2]
        if mx.default_device() == mx.cpu:
            unpack_where_faster(self.network, 1 << 40)
            upcast_for_cpu(self.network)
        mx.eval(self.network.parameters())

    def single(self, prompt: list[int], tokens: int) -> float:
        times = []
        for _ in stream_generate(self.network, self.tokenizer, prompt, max_tokens=tokens):
            times.append(time.perf_counter())
        return (len(times) - 1) / (times[-1] - times[0])

    def together(self, prompts: list[list[int]], tokens: int) -> float:
        generator = BatchGenerator(self.network, max_tokens=tokens)
        waiting = [(i * APART, prompt) for i, prompt in enumerate(prompts)]
        start, count, live = time.perf_counter(), 0, 0
        while waiting or live:
            now = time.perf_counter() - start
            due = [prompt for at, prompt in waiting if at <= now]
            if due:
                waiting = waiting[len(due) :]
                generator.insert(due)
                live += len(due)
            _, answers = generator.next()
            count += len(answers)
            live -= sum(answer.finish_reason is not None for answer in answers)
        generator.close()
        return count / (time.perf_counter() - start)


class Ours:
    """The engine, with the prompt cache off: every round has to do the same work."""

    def __init__(self, engine: InferenceEngine, folder: str) -> None:
        self.handle: Any = engine.load(folder, features={"llm.prompt_cache": False})

    def _request(self, prompt: list[int], tokens: int) -> TextRequest:
        params = GenerateParams(max_tokens=tokens, temperature=0, ignore_eos=True)
        return TextRequest(prompt_tokens=prompt, params=params)

    def single(self, prompt: list[int], tokens: int) -> float:
        times = []
        count = 0
        for event in self.handle.stream(self._request(prompt, tokens)):
            if isinstance(event, TextDelta):
                times.append(time.perf_counter())
                count += len(event.token_ids)
        return (count - 1) / (times[-1] - times[0])

    def together(self, prompts: list[list[int]], tokens: int) -> float:
        counts: list[int] = []

        def read(at: float, prompt: list[int]) -> None:
            time.sleep(max(0.0, start + at - time.perf_counter()))
            for event in self.handle.stream(self._request(prompt, tokens)):
                if isinstance(event, Finished):
                    counts.append(event.usage.completion_tokens)

        start = time.perf_counter()
        threads = [
            threading.Thread(target=read, args=(i * APART, prompt)) for i, prompt in enumerate(prompts)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / (time.perf_counter() - start)


def compare(name: str, ours: Any, reference: Any, rounds: int) -> dict[str, Any]:
    pairs = []
    for turn in range(rounds + 1):
        first, second = (ours, reference) if turn % 2 else (reference, ours)
        found = {first: first(), second: second()}
        if turn:  # the first round compiles and warms up
            pairs.append((found[ours], found[reference]))
    ratios = sorted(mine / theirs for mine, theirs in pairs)
    row = {
        "what": name,
        "ours": statistics.median(mine for mine, _ in pairs),
        "mlx_lm": statistics.median(theirs for _, theirs in pairs),
        "ratio": statistics.median(ratios),
        "spread": (ratios[0], ratios[-1]),
    }
    print(
        f"{name}: {row['ours']:.2f} tok/s against {row['mlx_lm']:.2f}; "
        f"ratio {row['ratio']:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    reference = Reference(options.model)
    reference.tokenizer.eos_token_ids = set()
    prompts = [reference.tokenizer.encode(PROMPT.format(i)) for i in range(STREAMS)]
    with InferenceEngine() as engine:
        ours = Ours(engine, options.model)
        rows = [
            compare(
                "one stream",
                lambda: ours.single(prompts[0], options.tokens),
                lambda: reference.single(prompts[0], options.tokens),
                options.rounds,
            ),
            compare(
                "eight streams",
                lambda: ours.together(prompts, options.tokens),
                lambda: reference.together(prompts, options.tokens),
                options.rounds,
            ),
        ]
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
