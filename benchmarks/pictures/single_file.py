"""Stable Diffusion 1.5 in one file beside the same model in a folder, at its real shapes: loading, by turns.

    python -m benchmarks.pictures.single_file [--rounds 3] [--dtype float16] [--out figures.json]

Random weights in half precision (2 GB, twice on the disk) are written as a repository and, under the original
code's names, as a checkpoint. Each is loaded in a process of its own, one after the other in turns; the first
round, in which the disk is read, is left out. Processor seconds count: a machine that others use takes any
time. Both have to make the same picture, and the file may take 1.2 times the folder's processor seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.pictures.gpu import ROOT, SHAPES
from benchmarks.pictures.gpu import VAE as VAE_SHAPE

_TESTS = ROOT / "plugins" / "mlxengine-diffusion" / "tests"
ALLOWED = 1.2
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 592,
    "eos_token_id": 593,
}


def write(root: Path) -> tuple[Path, Path]:
    """The folder and the file, each with a tokenizer."""
    sys.path.append(str(_TESTS))
    import geometry
    import mlx.core as mx
    import test_single_file as single
    from mlxengine_diffusion.sd.original_names import original_unet_name, original_vae_name
    from mlxengine_diffusion.sd.single_file import UNET, VAE
    from mlxengine_diffusion.sd.unet import build_unet

    random = np.random.default_rng(0)

    def weight(_family: str, _part: str, name: str, shape: tuple[int, ...]) -> Any:
        if len(shape) == 1:
            return np.full(shape, name.endswith("weight"), np.float32)
        return random.standard_normal(shape, np.float32) / np.float32(math.prod(shape[1:]) ** 0.5)

    unet = SHAPES["sd-1.5 512x512"]["unet"]
    parts: dict[str, dict[str, Any]] = {"unet": unet, "text_encoder": TEXT, "vae": VAE_SHAPE}
    with mock.patch.object(geometry, "weight", weight):
        folder = single.write_folder("sd1", root / "folder", parts)
    network, levels = build_unet(unet), len(VAE_SHAPE["block_out_channels"])
    names = {
        "unet": lambda name: f"{UNET}{original_unet_name(name, network) or name}",
        "vae": lambda name: f"{VAE}{original_vae_name(name, levels)}",
        "text_encoder": lambda name: f"cond_stage_model.transformer.{name}",
    }
    found = {}
    for part, name_of in names.items():
        for file in (folder / part).glob("*.safetensors"):
            for name, value in mx.load(str(file)).items():
                layer, _, end = name.rpartition(".")
                found[f"{name_of(layer)}.{end}"] = value
    mx.save_safetensors(str(root / "model.safetensors"), found)
    shutil.copytree(folder / "tokenizer", root / "tokenizer")
    return folder, root / "model.safetensors"


def measure(model: str, dtype: str) -> None:
    """Load the model in this process; prints processor seconds, seconds, and a picture's digest."""
    from mlxengine import InferenceEngine

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    with InferenceEngine(memory_budget=2**40) as engine:
        before, began = spent(), time.perf_counter()
        loaded = engine.load_images(model, features={"diffusion.dtype": dtype})
        took = {"processor": spent() - before, "seconds": time.perf_counter() - began}
        picture = loaded.image("a red circle", steps=1, guidance=1.0, seed=1, size=(64, 64))
    print(json.dumps({**took, "picture": hashlib.sha256(picture.pixels.data).hexdigest()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model:
        measure(options.model, options.dtype)
        return
    found: dict[str, list[dict[str, Any]]] = {"folder": [], "file": []}
    with tempfile.TemporaryDirectory() as root:
        places = dict(zip(found, write(Path(root)), strict=True))
        for turn in range(options.rounds + 1):
            for name, place in places.items():
                words = [sys.executable, "-m", "benchmarks.pictures.single_file"]
                words += ["--dtype", options.dtype, "--model", str(place)]
                done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
                figures = json.loads(done.stdout.splitlines()[-1])
                print(turn, name, figures, flush=True)
                if turn:
                    found[name].append(figures)
    folder, file = (statistics.median(item["processor"] for item in items) for items in found.values())
    pictures = {item["picture"] for items in found.values() for item in items}
    result = {"dtype": options.dtype, "folder": folder, "file": file, "ratio": file / folder, "turns": found}
    print(f"folder {folder:.2f} s, file {file:.2f} s, ratio {file / folder:.2f}, {len(pictures)} picture")
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if len(pictures) != 1 or file > ALLOWED * folder:
        raise SystemExit("the file is another model, or too slow")


if __name__ == "__main__":
    main()
