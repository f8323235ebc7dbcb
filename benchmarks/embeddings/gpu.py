"""Texts per second on an NVIDIA GPU: the embedding plugin against sentence-transformers on torch, in fp16.

    python -m benchmarks.embeddings.gpu [--shapes minilm bert-base …] [--counts 1 8 32 256 4096] [--rounds 7]
                                        [--seconds 150] [--torch-batch 256] [--output FILE.json]

Needs no network: the weights are random, in one of the shapes of `shapes.py` (``minilm``, ``bert-base``,
``bert-large``, ``modernbert-base``), written once to a temporary folder and read by both. Needs MLX with
its CUDA back end, mlx-embeddings and mlx-vlm; torch and sentence-transformers for the comparison. What is
missing is said, and left out. The two processes hold the GPU together and take turns; every shape is run
once before it is timed. With each shape the vectors of both are compared at the end. No shape is begun once
``--seconds`` are over.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.embeddings.cpu import SUBJECTS, compare_all, texts_of
from benchmarks.embeddings.shapes import SHAPES, write

COUNTS = (1, 8, 32, 256, 4096)


def agreement(folder: str) -> float:
    """The lowest cosine between both libraries' vectors of 64 mixed texts."""
    texts = texts_of("mixed", 64)
    left, right = (np.asarray(SUBJECTS[name](folder)(texts), np.float32) for name in ("ours", "torch"))
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(1) / norms).min())


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["bert-base"])
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS)
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--torch-batch", type=int, default=256, help="texts in a batch of sentence-transformers"
    )
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    import mlx.core as mx

    if mx.default_device().type == mx.DeviceType.cpu:
        print("mlx has no GPU here: these are figures of the CPU.")
    os.environ["TORCH_BATCH"] = str(arguments.torch_batch)
    os.environ.setdefault("OMP_NUM_THREADS", "4")
    pythons = {"ours": sys.executable}
    if importlib.util.find_spec("sentence_transformers") and importlib.util.find_spec("torch"):
        pythons["torch"] = sys.executable
    else:
        print("torch and sentence-transformers are not installed here: nothing to compare with.")
    results: list[dict[str, Any]] = []
    until = time.monotonic() + arguments.seconds
    for shape in arguments.shapes:
        if time.monotonic() > until:
            print(f"no time left for {shape}")
            continue
        print(shape, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), shape, "float16")
            rows = compare_all(pythons, folder, 4, arguments.rounds, arguments.counts)
            results.append({"shape": shape, "rows": rows})
            if "torch" in pythons:
                results[-1]["lowest_cosine"] = agreement(folder)
                print(f"lowest cosine between the two: {results[-1]['lowest_cosine']:.6f}")
        if arguments.output:
            arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
