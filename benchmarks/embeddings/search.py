"""The ten nearest of many vectors: our search, numpy, and faiss-cpu, on the same ones.

    python -m benchmarks.embeddings.search MODEL_FOLDER [--vectors 1000000] [--size 384] [--queries 1000]
                                           [--threads 2] [--rounds 3] [--output FILE.json]

Random unit vectors, drawn once; an exact search by dot product. Each side runs in a process of its own, one
after the other, which maps the vectors from a file; the model only says which plugin searches. ``numpy``
multiplies and partitions block by block, as one would by hand. What is not installed is said and left out.
All have to find the same places (but where scores are equal to 1e-6). Figures are medians of the rounds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

K = 10
Found = tuple[np.ndarray, np.ndarray]


def ours(model: str, corpus: np.ndarray) -> Callable[[np.ndarray], Found]:
    from mlxengine import InferenceEngine

    handle = InferenceEngine().load_embeddings(model)

    def search(queries: np.ndarray) -> Found:
        found = handle.semantic_search(queries, corpus, top_k=K)
        return found.places.numpy(), found.scores.numpy()

    return search


def by_numpy(_model: str, corpus: np.ndarray) -> Callable[[np.ndarray], Found]:
    def search(queries: np.ndarray) -> Found:
        best = np.zeros((len(queries), 0), np.float32)
        places = np.zeros((len(queries), 0), np.int64)
        for start in range(0, len(corpus), 10_000):
            scores = queries @ corpus[start : start + 10_000].T
            top = np.argpartition(-scores, K - 1, axis=1)[:, :K]
            best = np.concatenate([best, np.take_along_axis(scores, top, 1)], axis=1)
            places = np.concatenate([places, top + start], axis=1)
            order = np.argsort(-best, axis=1, kind="stable")[:, :K]
            best, places = np.take_along_axis(best, order, 1), np.take_along_axis(places, order, 1)
        return places, best

    return search


def by_faiss(_model: str, corpus: np.ndarray) -> Callable[[np.ndarray], Found]:
    import faiss

    faiss.omp_set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    index = faiss.IndexFlatIP(corpus.shape[1])
    index.add(np.asarray(corpus))

    def search(queries: np.ndarray) -> Found:
        scores, places = index.search(queries, K)
        return places, scores

    return search


SIDES = {"ours": ours, "numpy": by_numpy, "faiss": by_faiss}


def work(side: str, model: str, folder: Path, rounds: int) -> None:
    """A worker: prints its figures, and leaves what it found in the folder."""
    corpus = np.load(folder / "corpus.npy", mmap_mode="r")
    queries = np.load(folder / "queries.npy")
    search = SIDES[side](model, corpus)
    search(queries[:10])
    walls, spent = [], []
    for _ in range(rounds):
        wall, processor = time.perf_counter(), time.process_time()
        places, scores = search(queries)
        walls.append(time.perf_counter() - wall)
        spent.append(time.process_time() - processor)
    np.savez(folder / f"{side}.npz", places=places, scores=scores)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    figures = {"seconds": statistics.median(walls), "processor_seconds": statistics.median(spent)}
    print(json.dumps({key: round(value, 2) for key, value in figures.items()} | {"peak_mb": peak}))


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("model")
    for name, value in (("vectors", 1_000_000), ("size", 384), ("queries", 1000), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.worker:
        side, folder = arguments.worker
        work(side, arguments.model, Path(folder), arguments.rounds)
        return
    sides = [side for side in SIDES if side != "faiss" or importlib.util.find_spec("faiss")]
    if "faiss" not in sides:
        print("faiss is not installed here: left out.")
    names = ("vectors", "size", "queries", "threads", "rounds")
    result: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), arguments.vectors, arguments.size, arguments.queries)
        for side in sides:
            result[side] = measured(side, arguments, folder)
            print(side, result[side], flush=True)
        result["disagreements"] = disagreements(Path(folder), sides)
    print(json.dumps(result, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def draw(folder: Path, count: int, size: int, queries: int) -> None:
    random = np.random.default_rng(0)
    for name, rows in (("corpus", count), ("queries", queries)):
        kept = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (rows, size))
        for start in range(0, rows, 100_000):
            block = random.standard_normal((min(100_000, rows - start), size), dtype=np.float32)
            kept[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
        kept.flush()


def measured(side: str, arguments: argparse.Namespace, folder: str) -> dict[str, float]:
    threads = {f"{name}_NUM_THREADS": str(arguments.threads) for name in ("OMP", "OPENBLAS", "MKL")}
    options = ["--rounds", str(arguments.rounds), "--worker", side, folder]
    command = [sys.executable, "-m", "benchmarks.embeddings.search", arguments.model, *options]
    done = subprocess.run(command, env=os.environ | threads, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def disagreements(folder: Path, sides: list[str]) -> dict[str, int]:
    """Places that another side ranks otherwise although its score differs."""
    kept = {side: np.load(folder / f"{side}.npz") for side in sides}
    first = kept["ours"]
    return {
        side: int(
            (
                (kept[side]["places"] != first["places"])
                & (abs(kept[side]["scores"] - first["scores"]) > 1e-6)
            ).sum()
        )
        for side in sides[1:]
    }


if __name__ == "__main__":
    main()
