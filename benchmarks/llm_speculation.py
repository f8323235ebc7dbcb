"""What guessing tokens gains: the same greedy answers with and without it, on texts to copy and on free text.

    python benchmarks/llm_speculation.py MODEL_FOLDER [--draft FOLDER] [--tokens 128] [--rounds 3]
        [--output FILE.json]

Rounds alternate (ABAB) between the model as it is and the model with ``llm.speculation`` (or with a draft
model). Compared is the processor's time for whole answers; the prompts are read from the prompt cache after
the first round, which is not counted. The tokens have to be the same.
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

from mlxengine import GenerateParams, InferenceEngine, TextReply, TextRequest  # noqa: E402

NAMES = ("Alice", "Bob", "Carol", "David", "Erin", "Frank", "Grace", "Heidi")
LIST = "\n".join(
    f"- {name}: room {100 + 7 * i}, telephone 555-{1000 + 37 * i}, since {1990 + i}"
    for i, name in enumerate(NAMES)
)
PROMPTS = {
    "copy": f"Staff list:\n{LIST}\n\nCopy of the staff list:\n{LIST}\n\nCopy of the staff list:\n",
    "story": "The lighthouse keeper had not spoken to anyone for eleven days when, one evening, ",
    "essay": "The history of the bicycle begins in the nineteenth century.",
    "letter": "Dear Professor Lindqvist,\n\nthank you for your questions about our expedition. ",
}


def answer(model: Any, prompt: str, tokens: int) -> tuple[float, float, TextReply]:
    """Seconds of processor and of wall-clock time, and the answer."""
    params = GenerateParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    wall, processor = time.perf_counter(), time.process_time()
    reply = TextReply.of(model.stream(TextRequest(prompt=prompt, params=params)))
    return time.process_time() - processor, time.perf_counter() - wall, reply


def compare(plain: Any, guessing: Any, name: str, tokens: int, rounds: int) -> dict[str, Any]:
    pairs = []
    for turn in range(rounds + 1):
        order = (plain, guessing) if turn % 2 else (guessing, plain)
        found = {id(model): answer(model, PROMPTS[name], tokens) for model in order}
        (mine, our_wall, reply), (theirs, their_wall, wanted) = found[id(guessing)], found[id(plain)]
        assert reply.token_ids == wanted.token_ids, "speculation changed the answer"
        if turn:
            pairs.append((theirs / mine, their_wall / our_wall))
    extra = dict(reply.metrics.extra)
    ratios = sorted(ratio for ratio, _ in pairs)
    row = {
        "what": name,
        "speedup": statistics.median(ratios),
        "spread": (ratios[0], ratios[-1]),
        "wall_speedup": statistics.median(wall for _, wall in pairs),
        "guessed": extra["speculation_guessed"],
        "accepted": extra["speculation_accepted"],
    }
    print(
        f"{name}: {row['speedup']:.2f} x ({ratios[0]:.2f} to {ratios[-1]:.2f}), {row['wall_speedup']:.2f} x "
        f"by the clock; {row['guessed']:.0f} guessed, {row['accepted']:.0%} right"
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--draft", help="a smaller model's folder, instead of the text so far")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    flags = {"llm.draft_model": options.draft} if options.draft else {"llm.speculation": True}
    with InferenceEngine() as engine:
        plain, guessing = engine.load_text(options.model), engine.load_text(options.model, features=flags)
        rows = [compare(plain, guessing, name, options.tokens, options.rounds) for name in PROMPTS]
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
