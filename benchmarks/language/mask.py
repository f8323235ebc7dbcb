"""What a grammar adds to a decoding step of eight rows.

    python -m benchmarks.language.mask MODEL_FOLDER [--rows 8] [--tokens 64] [--rounds 5] [--output FILE.json]

Rounds alternate (ABAB) between rows of free text and rows that must write JSON of a schema that does not end
before the tokens do; each row has its own seed, as in service. Compared is the time for a whole round, the
processor's and the wall clock's, over its steps. Reading the prompts is in both, about two steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from mlxengine.toolkit import blas

blas.load()

from mlxengine import GenerateParams, Grammar, InferenceEngine, TextReply, TextRequest  # noqa: E402

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "born": {"type": "integer", "minimum": 0, "maximum": 2100},
        "likes": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "born", "likes"],
    "additionalProperties": False,
}
LONG = Grammar.json({"type": "array", "items": PERSON, "minItems": 200})


def spent(model: Any, rows: int, tokens: int, grammar: Grammar | None) -> tuple[float, float]:
    """Milliseconds of processor and of wall-clock time for a step."""

    def request(seed: int) -> TextRequest:
        params = GenerateParams(
            max_tokens=tokens, temperature=1.0, seed=seed, grammar=grammar, ignore_eos=grammar is None
        )
        return TextRequest(prompt="A list of people in JSON: ", params=params)

    wall, processor = time.perf_counter(), time.process_time()
    streams = [model.stream(request(seed)) for seed in range(rows)]
    replies = [TextReply.of(stream) for stream in streams]
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    assert all(reply.finish_reason == "length" for reply in replies), "a row ended early"
    return 1000 * processor / tokens, 1000 * wall / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    pairs = []
    with InferenceEngine() as engine, engine.load_text(options.model) as model:
        for turn in range(options.rounds + 1):
            order = (None, LONG) if turn % 2 else (LONG, None)
            found = {grammar: spent(model, options.rows, options.tokens, grammar) for grammar in order}
            if turn:  # the first round compiles the grammar and fills the prompt cache
                pairs.append((found[None], found[LONG]))
    row: dict[str, Any] = {"rows": options.rows, "tokens": options.tokens, "rounds": options.rounds}
    for at, clock in enumerate(("processor", "wall")):
        ratios = sorted(masked[at] / free[at] for free, masked in pairs)
        row[clock] = {
            "free_ms": statistics.median(free[at] for free, _ in pairs),
            "masked_ms": statistics.median(masked[at] for _, masked in pairs),
            "ratio": statistics.median(ratios),
            "ratio_of_best": min(masked[at] for _, masked in pairs) / min(free[at] for free, _ in pairs),
            "spread": (ratios[0], ratios[-1]),
        }
        print(
            f"{clock}: {row[clock]['free_ms']:.1f} ms a step free, {row[clock]['masked_ms']:.1f} masked; "
            f"ratio {row[clock]['ratio']:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}), "
            f"of the best rounds {row[clock]['ratio_of_best']:.3f}"
        )
    if options.output:
        options.output.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
