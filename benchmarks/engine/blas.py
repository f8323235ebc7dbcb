"""What a fast BLAS and dense fp32 weights bring on a Linux CPU: SmolLM2 beside mlx-lm as pip installs it.

    python -m benchmarks.engine.blas [--repeats 3] [--json FILE]

Every contender runs in a process of its own, by turns (A B C A B C …). Figures are tokens per second of
processor time of the process (user and system), which other work on the machine disturbs least; the best of
the repeats counts. Prefill is a prompt up to its first new token; decode is each further token.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

MAKE_DENSE = """
import sys, json
from pathlib import Path
import mlx.core as mx
from mlx_lm.utils import dequantize_model, load, save_model
source, target = map(Path, sys.argv[1:])
model, tokenizer, config = load(str(source), return_config=True, lazy=True)
model = dequantize_model(model)
model.set_dtype(mx.float32)
save_model(target, model)
config = {key: value for key, value in config.items() if not key.startswith("quantization")}
(target / "config.json").write_text(json.dumps(config))
for file in source.glob("*token*"):
    (target / file.name).write_bytes(file.read_bytes())
"""

MLX_LM = """
import sys, json, time
from mlx_lm import load
from mlx_lm.generate import generate_step
import mlx.core as mx
folder, prompt, new = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model, _ = load(folder)
tokens = mx.array([(7 * i) % 40000 + 100 for i in range(prompt)])
list(generate_step(tokens[:2], model, max_tokens=1))
start = time.process_time()
marks = []
for _ in generate_step(tokens, model, max_tokens=new + 1):
    marks.append(time.process_time())
print(json.dumps([prompt / (marks[0] - start), new / (marks[-1] - marks[0])]))
"""

OURS = """
import sys, json, time
from mlxengine import GenerateParams, InferenceEngine, TextDelta, TextRequest
folder, prompt, new = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
tokens = tuple((7 * i) % 40000 + 100 for i in range(prompt))
def run(tokens, count):
    params = GenerateParams(max_tokens=count, ignore_eos=True, temperature=0)
    start = time.process_time()
    reply = model.generate(TextRequest(prompt_tokens=tokens, params=params))
    return time.process_time() - start, reply
with InferenceEngine() as engine:
    model = engine.load_text(folder)
    run(tokens[:2], 1)
    first, _ = run(tokens, 1)
    whole, reply = run(tuple(token + 1 for token in tokens), new + 1)
    assert reply.usage.completion_tokens == new + 1
print(json.dumps([prompt / first, new / (whole - first)]))
"""


def measure(code: str, folder: Path, prompt: int, new: int, **env: str) -> tuple[float, float]:
    """(prefill, decode) in tokens per second of processor time, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(prompt), str(new)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    prefill, decode = json.loads(done.stdout.strip().splitlines()[-1])
    return prefill, decode


def main() -> None:
    """Measure, print a table, and write the figures where --json says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    from tests.hub import weights

    quantized = weights.folder_of(weights.SMOLLM2)
    rows: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as made:
        dense = Path(made)
        subprocess.run([sys.executable, "-c", MAKE_DENSE, str(quantized), made], check=True)
        runs = {
            "fp32: mlxengine, fast BLAS": (OURS, dense, 64, 8, {}),
            "fp32: mlxengine, reference BLAS": (OURS, dense, 64, 8, {"MLXENGINE_BLAS": "off"}),
            "fp32: mlx-lm as installed": (MLX_LM, dense, 64, 8, {}),
            "4-bit, fp16 scales: mlxengine": (OURS, quantized, 8, 4, {}),
            "4-bit, fp16 scales: mlx-lm as installed": (MLX_LM, quantized, 8, 2, {}),
        }
        for repeat in range(arguments.repeats):
            for name, (code, folder, prompt, new, env) in runs.items():
                if repeat and name.startswith("4-bit") and "mlx-lm" in name:
                    continue  # a minute or more each; its figure does not need the repeats
                rows.setdefault(name, []).append(measure(code, folder, prompt, new, **env))
                print(
                    f"{name:<42} prefill {rows[name][-1][0]:8.2f}  decode {rows[name][-1][1]:8.2f}",
                    flush=True,
                )
    best = {name: [max(column) for column in zip(*found, strict=True)] for name, found in rows.items()}
    print("\n| SmolLM2-135M | prefill tok/s | decode tok/s |\n|-|-|-|")
    for name, (prefill, decode) in best.items():
        print(f"| {name} | {prefill:.2f} | {decode:.2f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"runs": rows, "best": best}, indent=1) + "\n")


if __name__ == "__main__":
    main()
