"""Time to the first token of a long prompt: cold, from the prompt cache, and from disk after a restart.

python -m benchmarks.language.prefix MODEL_FOLDER [--tokens 1000] [--rounds 3] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from mlxengine.toolkit import blas

blas.load()

from mlxengine import GenerateParams, InferenceEngine, TextDelta, TextRequest  # noqa: E402


def first_token(model: Any, tokens: list[int]) -> tuple[float, list[int]]:
    """Seconds to the first token, and the answer."""
    params = GenerateParams(max_tokens=8, temperature=0, ignore_eos=True)
    start, first, said = time.perf_counter(), 0.0, []
    for event in model.stream(TextRequest(prompt_tokens=tokens, params=params)):
        if isinstance(event, TextDelta):
            first = first or time.perf_counter() - start
            said.extend(event.token_ids)
    return first, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    times: dict[str, list[float]] = {"cold": [], "memory": [], "disk": []}
    for turn in range(options.rounds):
        prompt = [300 + (i * 37 + 11 * turn) % 2000 for i in range(options.tokens)]
        answers = []
        with tempfile.TemporaryDirectory() as folder:
            flags = {"llm.prompt_cache_folder": folder}
            with InferenceEngine() as engine, engine.load_text(options.model, features=flags) as model:
                first_token(model, prompt[::-1][:64])  # warm up
                for name, tail in (("cold", [305, 306]), ("memory", [305, 306])):
                    took, said = first_token(model, prompt + tail)
                    times[name].append(took)
                    answers.append(said)
            with InferenceEngine() as engine, engine.load_text(options.model, features=flags) as model:
                first_token(model, prompt[::-1][:64])
                took, said = first_token(model, [*prompt, 305, 306])
                times["disk"].append(took)
                answers.append(said)
        assert answers[0] == answers[1] == answers[2], "cold and warm answers differ"
    found = {name: statistics.median(values) for name, values in times.items()}
    found |= {f"{name}_ratio": found[name] / found["cold"] for name in ("memory", "disk")}
    print("  ".join(f"{name} {value:.3f}" for name, value in found.items()))
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
