"""Predicted against measured peak memory, by the engine's own `fit`, as a table.

    python -m benchmarks.engine.fit [--big] [--only NAME …] [--model PATH …] [--out results.md]

Each model runs in a process of its own: load, then one request that fills the context; the peak is what mlx
reports for that request, weights included. ``--big`` adds 1B and 8B shapes (a GPU's work).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ALLOWED = 0.15
ALLOWED_BYTES = 32 << 20


def measure(path: str, context: int) -> dict[str, object]:
    """Load a model, run it, and return what was predicted and what was measured, in bytes."""
    from mlxengine import (
        EmbedRequest,
        GenerateParams,
        ImagePart,
        ImageRequest,
        InferenceEngine,
        Message,
        PictureWorkload,
        TextRequest,
        TextWorkload,
        VectorWorkload,
    )

    with InferenceEngine() as engine:
        handle = engine.load(path)
        import mlx.core as mx

        size = None
        if handle.kind == "embed":
            request = EmbedRequest(texts=("word " * 4000,) * 8)
            longest = handle.info.get("max_length")
            length = longest if isinstance(longest, int) else 512
            report = engine.fit(path, VectorWorkload(batch=8, context_length=length))
        elif handle.kind == "diffusion":
            size = (64, 64)
            request = ImageRequest(prompt="a red circle", size=size, steps=2, seed=0)
            report = engine.fit(path, PictureWorkload(size=size))
        elif handle.kind == "vlm":
            from PIL import Image

            size = (64, 64)
            picture = ImagePart(Image.new("RGB", size, "red"))
            request = TextRequest(messages=(Message.user([picture, "What shape is it?"]),))
            report = engine.fit(path, TextWorkload(size=size, context_length=256))
        else:
            tokens = tuple(2 + index % 250 for index in range(context - 16))
            params = GenerateParams(max_tokens=16, ignore_eos=True)
            request = TextRequest(prompt_tokens=tokens, params=params)
            report = engine.fit(path, TextWorkload(context_length=context))
        mx.reset_peak_memory()
        handle.run(request)
        measured = mx.get_peak_memory()
        return {
            "kind": handle.kind,
            "backend": engine.device.backend,
            "device": engine.device.name,
            "predicted": report.needed,
            "weights": report.estimate.weights,
            "measured": measured,
        }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--big", action="store_true")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--model", nargs="*", default=[])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.context)))
        return 0
    from benchmarks.shapes import BIG, SHAPES

    shapes = {**SHAPES, **(BIG if arguments.big else {})}
    chosen = {name: shapes[name] for name in shapes if not arguments.only or name in arguments.only}
    rows, wrong = [], 0
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(Path(path).name, path) for path in arguments.model] + [(name, None) for name in chosen]
        for name, path in jobs:
            if path is None:
                code = (
                    "import sys, json, pathlib; from mlxengine.toolkit import backend; "
                    "from benchmarks.shapes import write_checkpoint; "
                    "write_checkpoint(pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]))"
                )
                path = f"{folder}/{name}"
                config = json.dumps(chosen[name])
                subprocess.run([sys.executable, "-c", code, path, config], check=True)
            module = "benchmarks.engine.fit"
            command = [sys.executable, "-m", module, "--measure", path, "--context", str(arguments.context)]
            environment = {**os.environ, "MLXENGINE_HISTORY": f"{folder}/loads.jsonl"}
            found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            if found.returncode:
                print(found.stderr[-2000:], file=sys.stderr)
                return 1
            row = json.loads(found.stdout.splitlines()[-1])
            error = row["predicted"] / row["measured"] - 1
            small = row["measured"] < 200 << 20
            near = abs(row["predicted"] - row["measured"]) <= ALLOWED_BYTES
            good = abs(error) <= ALLOWED or (small and near)
            wrong += not good
            rows.append((name, row, error, good))
            subprocess.run(["rm", "-rf", f"{folder}/{name}"], check=False)
            print(
                f"{name:40} {row['predicted'] / 1e6:9.1f} {row['measured'] / 1e6:9.1f} {error:+7.1%} {good}"
            )
    lines = [
        f"Device: {rows[0][1]['device']} ({rows[0][1]['backend']}); context {arguments.context} tokens.",
        "",
        "| model | kind | predicted MB | measured MB | error | within 15 % or 32 MB |",
        "|-|-|-|-|-|-|",
        *(
            f"| {name} | {row['kind']} | {row['predicted'] / 1e6:.1f} | {row['measured'] / 1e6:.1f} "
            f"| {error:+.1%} | {'yes' if good else 'no'} |"
            for name, row, error, good in rows
        ),
    ]
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
