"""Stable Diffusion in one file beside the same model in a folder, at its real shapes: loading, by turns.

    python -m benchmarks.pictures.single_file [--model sdxl] [--rounds 3] [--dtype float16] [--out x.json]

Random weights in half precision (2 GB for Stable Diffusion 1.5, 7 GB for XL, twice on the disk) are written
as a repository and, under the original code's names, as a checkpoint. Each is loaded in a process of its own,
one after the other in turns; the first round, in which the disk is read, is left out. Processor seconds
count, since a machine that others use takes any time; the file may take 1.2 times the folder's. In the first
round each makes a picture, and both have to be equal to 1/255: a matrix that the file has transposed is
multiplied by another kernel. ``--folder`` keeps what is written, and takes it again; ``--tiny`` tries all of
it on small networks.
"""

from __future__ import annotations

import argparse
import base64
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pictures.repositories import MODELS, ROOT, TOKENIZER, Shapes, small, write, write_random

ALLOWED = 1.2
_PREFIX = {
    "sd-1.5": {"text_encoder": "cond_stage_model.transformer."},
    "sdxl": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
}


def write_both(name: str, root: Path, *, tiny: bool) -> None:
    """The folder and the file, each with a tokenizer."""
    from mlxengine.toolkit import blas

    blas.load()  # before mlx is imported
    import mlx.core as mx
    from mlxengine_diffusion.sd import single_file
    from mlxengine_diffusion.sd.original_names import original_unet_name, original_vae_name
    from mlxengine_diffusion.sd.unet import build_unet

    library, pipeline, parts = small(MODELS[name]) if tiny else MODELS[name]
    # what no checkpoint says, as the loader takes it
    parts["vae"] |= {"scaling_factor": single_file._SCALES[name == "sdxl"]}
    for part, activation in (("text_encoder", "quick_gelu"), ("text_encoder_2", "gelu")):
        if part in parts:
            parts[part] |= {"hidden_act": activation}
            parts[part] |= {"num_attention_heads": max(1, parts[part]["hidden_size"] // 64)}
    if tiny:
        wide = name == "sdxl"
        parts["unet"]["attention_head_dim"] = [1 for _ in parts["unet"]["block_out_channels"]] if wide else 8
    folder = root / "folder"
    folder.mkdir()
    write((library, pipeline, parts), folder, partial(_write_random, flat=name == "sdxl"))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(single_file._NOISE))
    if (second := folder / "tokenizer_2").is_dir():  # OpenCLIP pads with its first token
        first = next(w for w, n in json.loads((second / "vocab.json").read_text()).items() if n == 0)
        settings = json.loads((second / "tokenizer_config.json").read_text())
        (second / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": first}))
        (second / "special_tokens_map.json").unlink()

    network, levels = build_unet(parts["unet"]), len(parts["vae"]["block_out_channels"])
    found: dict[str, mx.array] = {}
    for part in parts:
        (file,) = (folder / part).glob("*.safetensors")
        own = mx.load(str(file))
        if part == "text_encoder_2":
            own = _open_clip(own, parts[part]["num_hidden_layers"])
        for full, value in own.items():
            layer, dot, end = full.rpartition(".")
            if part == "unet":
                layer = single_file.UNET + (original_unet_name(layer, network) or layer)
            elif part == "vae":
                layer = single_file.VAE + original_vae_name(layer, levels)
            else:
                layer = _PREFIX[name][part] + layer
            found[f"{layer}{dot}{end}"] = value
    mx.save_safetensors(str(root / "model.safetensors"), found)
    shutil.copytree(TOKENIZER, root / "tokenizer")


def _write_random(file: Path, shapes: Shapes, *, flat: bool) -> None:
    """In half precision; the projections around attention are convolutions of one pixel, where not flat."""
    if not flat and file.parent.name == "unet":
        ends = ("proj_in.weight", "proj_out.weight")
        shapes = {k: (*v, 1, 1) if k.endswith(ends) and len(v) == 2 else v for k, v in shapes.items()}
    write_random(file, shapes, "float16")


def _open_clip(tensors: dict[str, Any], layers: int) -> dict[str, Any]:
    """The second text encoder as OpenCLIP has it: queries, keys and values in one."""
    import mlx.core as mx
    from mlxengine_diffusion.sd.original_names import original_clip_name

    left = {name.removeprefix("text_model."): value for name, value in tensors.items()}
    found = {"text_projection": left.pop("text_projection.weight").T}
    found["positional_embedding"] = left.pop("embeddings.position_embedding.weight")
    for number in range(layers):
        for end in ("weight", "bias"):
            joined = [left.pop(f"encoder.layers.{number}.self_attn.{way}_proj.{end}") for way in "qkv"]
            found[f"transformer.resblocks.{number}.attn.in_proj_{end}"] = mx.concatenate(joined)
    for full, value in left.items():
        layer, _, end = full.rpartition(".")
        found[f"{original_clip_name(layer)}.{end}"] = value
    return found


def measure(place: str, dtype: str, *, picture: bool) -> None:
    """Load the model in this process; prints processor seconds, seconds, and a picture's digest."""
    from mlxengine import InferenceEngine

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    with InferenceEngine(memory_budget=2**40) as engine:
        before, began = spent(), time.perf_counter()
        loaded = engine.load_images(place, features={"diffusion.dtype": dtype})
        took: dict[str, Any] = {"processor": spent() - before, "seconds": time.perf_counter() - began}
        if picture:
            made = loaded.image("a red circle", steps=1, guidance=1.0, seed=1, size=(64, 64))
            took["picture"] = base64.b64encode(made.pixels.data).decode()
    print(json.dumps(took))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="sd-1.5", choices=tuple(_PREFIX))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16"))
    parser.add_argument("--folder", type=Path, help="keep what is written here")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--no-picture", action="store_true", help="only load")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.dtype, picture=not options.no_picture)
        return
    with tempfile.TemporaryDirectory() as temporary:
        run(options, options.folder or Path(temporary))


def run(options: argparse.Namespace, root: Path) -> None:
    places = {"folder": root / "folder", "file": root / "model.safetensors"}
    if not places["file"].exists():
        root.mkdir(exist_ok=True)
        write_both(options.model, root, tiny=options.tiny)
    found: dict[str, list[dict[str, Any]]] = {"folder": [], "file": []}
    pictures = []
    for turn in range(options.rounds + 1):
        for name, place in places.items():
            words = [sys.executable, "-m", "benchmarks.pictures.single_file"]
            words += ["--dtype", options.dtype, "--measure", str(place)]
            if turn or options.no_picture:
                words.append("--no-picture")
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            figures = json.loads(done.stdout.splitlines()[-1])
            if "picture" in figures:
                pixels = np.frombuffer(base64.b64decode(figures.pop("picture")), np.uint8)
                pictures.append(pixels.astype(np.int16))
            print(turn, name, figures, flush=True)
            if turn:
                found[name].append(figures)
    if pictures:
        apart = int(np.abs(pictures[0] - pictures[1]).max())
        print(f"pictures apart by {apart}/255 at most, of a spread of {pictures[0].std():.0f}")
        if apart > 1:
            raise SystemExit("the file is another model")
    if not options.rounds:
        return
    folder, file = (statistics.median(item["processor"] for item in items) for items in found.values())
    result = {"model": options.model, "dtype": options.dtype, "ratio": file / folder, "turns": found}
    print(f"{options.model}: folder {folder:.2f} s, file {file:.2f} s, ratio {file / folder:.2f}")
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if file > ALLOWED * folder:
        raise SystemExit("too slow")


if __name__ == "__main__":
    main()
