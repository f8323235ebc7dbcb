"""Texts per second of the embedding plugin, of sentence-transformers on torch, and of mlx-embeddings.

    python -m benchmarks.embeddings.cpu MODEL_FOLDER [--torch-python PYTHON] [--rounds 5] [--threads 2]
                               [--kinds short mixed] [--counts 1 32 256] [--output FILE.json]

``MODEL_FOLDER`` may be one of the shapes of `shapes.py` (``bert-base``, ``modernbert-base``): random weights.
Each runs in a process of its own, loaded once, and they take turns (ABAB) on the same texts: one, 32 and 256,
short (about 12 tokens) and mixed (3 to 250). ``--torch-python`` is a Python that has torch and
sentence-transformers; without it that column is empty. The fast BLAS is loaded for both that run on mlx. A
figure is the median of the rounds; beside the wall time stands the processor time of all threads, which a
busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

COUNTS, KINDS = (1, 32, 256), ("short", "mixed")
WORDS = [
    *("the", "river", "stone", "quickly", "embeds", "a", "vector", "of", "finance", "and", "kitten"),
    *("engines", "read", "broken", "silent", "words"),
]


def texts_of(kind: str, count: int) -> list[str]:
    source = random.Random(3)
    if kind == "short":
        lengths = [source.randint(7, 12) for _ in range(count)]
    else:
        lengths = [source.choice((2, 5, 10, 20, 40, 80, 200)) for _ in range(count)]
        lengths[0] = 40
    return [" ".join(source.choice(WORDS) for _ in range(length)) for length in lengths]


def ours(folder: str) -> Callable[[list[str]], Any]:
    from mlxengine import InferenceEngine

    model = InferenceEngine().load_embeddings(folder)
    return lambda texts: model.embed(texts).numpy()


def torch(folder: str) -> Callable[[list[str]], Any]:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if torch.cuda.is_available():
        options = {"dtype": torch.float16}
        model = SentenceTransformer(folder, device="cuda", model_kwargs=options)
    else:
        model = SentenceTransformer(folder, device="cpu")
    size = int(os.environ.get("TORCH_BATCH", "32"))
    return lambda texts: model.encode(texts, batch_size=size)


def mlx_embeddings(folder: str) -> Callable[[list[str]], Any]:
    from mlxengine.toolkit import blas

    blas.load()
    import mlx.core as mx
    from mlx_embeddings import generate, load

    model, tokenizer = load(folder)

    def run(texts: list[str]) -> Any:
        found = []
        for first in range(0, len(texts), 32):
            output = generate(model, tokenizer, texts[first : first + 32], max_length=256)
            mx.eval(output.text_embeds)
            found.append(output.text_embeds)
        return found

    return run


SUBJECTS = {"ours": ours, "torch": torch, "mlx-embeddings": mlx_embeddings}


def serve(name: str, folder: str) -> None:
    """A worker: for each line ``kind count`` on standard input, one line of wall and processor seconds."""
    run = SUBJECTS[name](folder)
    for line in sys.stdin:
        kind, count = line.split()
        texts = texts_of(kind, int(count))
        wall, processor = time.perf_counter(), time.process_time()
        run(texts)
        print(time.perf_counter() - wall, time.process_time() - processor, flush=True)


class Worker:
    def __init__(self, python: str, name: str, folder: str, threads: int) -> None:
        environment = {
            **os.environ,
            **{f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "OPENBLAS", "MKL")},
            "TOKENIZERS_PARALLELISM": "true",
        }
        self.name = name
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.embeddings.cpu", folder, "--worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def measure(self, kind: str, count: int) -> tuple[float, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{kind} {count}\n")
        self.process.stdin.flush()
        while True:
            line = self.process.stdout.readline()
            if not line:
                raise RuntimeError(f"the worker {self.name} ended")
            try:
                wall, processor = map(float, line.split())
            except ValueError:
                continue  # a library's own words
            return wall, processor

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--worker", choices=SUBJECTS, help=argparse.SUPPRESS)
    parser.add_argument("--torch-python")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS)
    parser.add_argument("--without-mlx-embeddings", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(arguments.worker, arguments.model)
        return
    pythons = {"ours": sys.executable}
    if not arguments.without_mlx_embeddings:
        pythons["mlx-embeddings"] = sys.executable
    if arguments.torch_python:
        pythons["torch"] = arguments.torch_python
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.model
        if not Path(folder).is_dir():
            from benchmarks.embeddings.shapes import write

            folder = scratch
            write(Path(scratch), arguments.model, "float32")
        rows = compare_all(
            pythons, folder, arguments.threads, arguments.rounds, arguments.counts, arguments.kinds
        )
    if arguments.output:
        result = {"model": Path(arguments.model).name, "threads": arguments.threads, "rows": rows}
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def compare_all(
    pythons: dict[str, str],
    folder: str,
    threads: int,
    rounds: int,
    counts: Sequence[int] = COUNTS,
    kinds: Sequence[str] = KINDS,
) -> list[dict[str, Any]]:
    """Every kind and count; ``pythons`` says which Python runs which subject."""
    workers = [Worker(python, name, folder, threads) for name, python in pythons.items()]
    rows: list[dict[str, Any]] = []
    try:
        for kind in kinds:
            for count in counts:
                rows.append(compare(workers, kind, count, rounds))
                print(format_row(rows[-1]), flush=True)
    finally:
        for worker in workers:
            worker.close()
    return rows


def compare(workers: list[Worker], kind: str, count: int, rounds: int) -> dict[str, Any]:
    for worker in workers:
        worker.measure(kind, count)
    taken: dict[str, list[tuple[float, float]]] = {worker.name: [] for worker in workers}
    for _ in range(rounds):
        for worker in workers:
            taken[worker.name].append(worker.measure(kind, count))
    row: dict[str, Any] = {"kind": kind, "count": count}
    for name, times in taken.items():
        row[name] = {
            "texts_per_second": count / statistics.median(wall for wall, _ in times),
            "texts_per_processor_second": count / statistics.median(processor for _, processor in times),
        }
        if name != "ours":
            ratios = [theirs[0] / mine[0] for theirs, mine in zip(times, taken["ours"], strict=True)]
            spent = [theirs[1] / mine[1] for theirs, mine in zip(times, taken["ours"], strict=True)]
            row[name]["ours_is_faster_by"] = statistics.median(ratios)
            row[name]["ours_is_faster_by_processor_time"] = statistics.median(spent)
    return row


def format_row(row: dict[str, Any]) -> str:
    parts = [f"{row['kind']:<6}{row['count']:>4} texts  ours {row['ours']['texts_per_second']:8.1f}/s"]
    for name in ("torch", "mlx-embeddings"):
        if name in row:
            item = row[name]
            parts.append(
                f"{name} {item['texts_per_second']:8.1f}/s, ours {item['ours_is_faster_by']:.2f} x "
                f"({item['ours_is_faster_by_processor_time']:.2f} x by processor time)"
            )
    return "   ".join(parts)


if __name__ == "__main__":
    main()
