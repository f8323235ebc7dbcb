"""What guessing tokens gains: the same greedy answers with and without it, on texts to copy and on free text.

    python -m benchmarks.language.speculation MODEL_FOLDER [--draft FOLDER] [--deeper N] [--tokens 128]
        [--rounds 3] [--output FILE.json]

Rounds alternate (ABAB) between the model as it is and the model with ``llm.speculation`` (or with a draft
model). Compared is the processor's time for whole answers; the prompts are read from the prompt cache after
the first round, which is not counted. The tokens have to be the same.

``--deeper N`` measures what a draft model can gain at most where no pair of models is at hand: the model
answers with N times its layers, of which all but its own add nothing (their output projections are zero), and
drafts for itself. So every guess is right, and a pass of the target takes up to N times one of the draft; a
real pair is right less often.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from mlxengine.toolkit import blas

blas.load()

import mlx.core as mx  # noqa: E402
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


def deeper(source: Path, target: Path, times: int) -> None:
    """Write a model with ``times`` as many layers and the same answers: the added ones add zero."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = json.loads(target.joinpath("config.json").read_text())
    own = config["num_hidden_layers"]
    tensors: dict[str, Any] = {}
    for file in source.glob("*.safetensors"):
        tensors |= dict(mx.load(str(file)))  # type: ignore[arg-type]
    for name in list(tensors):
        if not name.startswith("model.layers."):
            continue
        _, _, layer, rest = name.split(".", 3)
        silent = rest.startswith(("self_attn.o_proj", "mlp.down_proj"))
        for copy in range(1, times):
            value = tensors[name]
            if silent and value.dtype != mx.uint32:  # of packed ones, scales and biases
                value = mx.zeros_like(value)
            tensors[f"model.layers.{int(layer) + copy * own}.{rest}"] = value
    mx.save_safetensors(str(target / "model.safetensors"), tensors, {"format": "mlx"})
    for key in ("quantization", "quantization_config"):
        for name, value in list(config.get(key, {}).items()):
            if name.startswith("model.layers."):
                _, _, layer, rest = name.split(".", 3)
                for copy in range(1, times):
                    config[key][f"model.layers.{int(layer) + copy * own}.{rest}"] = value
    config["num_hidden_layers"] = times * own
    target.joinpath("config.json").write_text(json.dumps(config))


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
    parser.add_argument("--deeper", type=int, default=1, help="layers of the target, in times its own")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    draft = options.draft or (options.model if options.deeper > 1 else None)
    flags = {"llm.draft_model": draft} if draft else {"llm.speculation": True}
    with tempfile.TemporaryDirectory() as scratch, InferenceEngine() as engine:
        target = options.model
        if options.deeper > 1:
            target = str(Path(scratch) / "deeper")
            deeper(Path(options.model), Path(target), options.deeper)
        plain, guessing = engine.load_text(target), engine.load_text(target, features=flags)
        rows = [compare(plain, guessing, name, options.tokens, options.rounds) for name in PROMPTS]
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
