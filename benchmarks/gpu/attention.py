"""Ways of attention of a batch that decodes, step by step in turns: mlx's, written out, our kernel, no mask.

    python scripts/uninstalled.py -m benchmarks.gpu.attention [--shapes llama-1B llama-8B] [--rows 8 32 128]
        [--steps 40] [--output FILE.jsonl] [--tiny]

One network of random weights, made in memory; each way has caches of its own and takes every fourth step, in
an order that turns round, so that a processor that changes its speed does so for all of them. Milliseconds:
of a step until its tokens are there, of making its graph, and of handing that to the device.
``MLX_USE_CUDA_GRAPHS=0`` in the environment lets mlx launch each operation by itself.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from mlxengine.toolkit import blas

blas.load()

import mlx.core as mx  # noqa: E402
from mlx.utils import tree_map_with_path  # noqa: E402
from mlx_lm.models.base import scaled_dot_product_attention  # noqa: E402
from mlx_lm.models.cache import BatchKVCache, make_prompt_cache  # noqa: E402
from mlxengine.toolkit import _attention_kernel  # noqa: E402
from mlxengine.toolkit.attention import QuickAttention  # noqa: E402
from mlxengine.toolkit.joining import merged  # noqa: E402

from benchmarks.shapes import BIG, SHAPES  # noqa: E402

WAYS = ("mlx", "written out", "kernel", "no mask")
WARM = 6  # steps that are not counted


def network(name: str) -> tuple[Any, int]:
    """A model of random weights, and the size of its vocabulary."""
    config = {**SHAPES, **BIG}[name]
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    made = module.Model(module.ModelArgs.from_dict(config))
    kind = mx.float32 if mx.default_device() == mx.cpu else mx.bfloat16

    def fresh(path: str, value: mx.array) -> mx.array:
        found = mx.ones(value.shape) if "norm" in path else 0.02 * mx.random.normal(value.shape)
        found = found.astype(kind)
        mx.eval(found)
        return found

    made.update(tree_map_with_path(fresh, made.parameters()))
    return made, int(config["vocab_size"])


@contextmanager
def without(owner: Any, name: str) -> Iterator[None]:
    """A function that gives ``None`` meanwhile."""
    plain = getattr(owner, name)
    setattr(owner, name, lambda *_args, **_more: None)
    try:
        yield
    finally:
        setattr(owner, name, plain)


def measure(made: Any, vocabulary: int, rows: int, length: int, steps: int) -> dict[str, list[float]]:
    quick = QuickAttention(made, scaled_dot_product_attention)
    rng = random.Random(rows)
    prompt = mx.array([[rng.randrange(300, vocabulary) for _ in range(length)]])
    one = make_prompt_cache(made)
    mx.eval(made(prompt, cache=one), [layer.state for layer in one])
    layers = {way: merged([one] * rows) for way in WAYS}
    found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
    for number in range(steps + WARM):
        tokens = mx.full((rows, 1), 300 + number)
        for way in WAYS if number % 2 else WAYS[::-1]:
            kernel = without(_attention_kernel, "kernel") if way == "written out" else nullcontext()
            mask = without(BatchKVCache, "make_mask") if way == "no mask" else nullcontext()
            began = time.perf_counter()
            with nullcontext() if way == "mlx" else quick, kernel, mask:
                drawn = mx.argmax(made(tokens, cache=layers[way])[:, -1], axis=-1)
            built = time.perf_counter()
            mx.async_eval(drawn)  # type: ignore[no-untyped-call]
            sent = time.perf_counter()
            mx.eval(drawn)
            if number >= WARM:
                found[way].append((time.perf_counter() - began, built - began, sent - built))
    return {
        way: [round(1000 * statistics.median(column), 2) for column in zip(*times, strict=True)]
        for way, times in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["llama-1B", "llama-8B"])
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--tiny", action="store_true", help="a small shape: does it work?")
    options = parser.parse_args()
    if options.tiny:
        options.shapes, options.rows, options.length, options.steps = ["llama-2M"], [4], 64, 4
    lines = []
    for name in options.shapes:
        made, vocabulary = network(name)
        for rows in options.rows:
            row = {"shape": name, "rows": rows, "graphs": os.environ.get("MLX_USE_CUDA_GRAPHS", "1")}
            row |= measure(made, vocabulary, rows, options.length, options.steps)
            lines.append(json.dumps(row))
            print(lines[-1], flush=True)
        del made
        mx.clear_cache()
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
