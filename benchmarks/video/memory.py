"""Predicted against measured memory of videos at the models' real widths, stage by stage.

    python scripts/uninstalled.py -m benchmarks.video.memory [--only 1.3B …] [--layers 30] [--size 832x480 …]

A repository is written whose weights are zeros (files without blocks, so they take no disk) and used for one
step of one video, and the decoding of three places in time. What counts is mlx's peak beside the weights.
``--layers`` keeps so many layers of the transformer and the text encoder.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks import random_weights
from benchmarks.random_weights import Numbers

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "plugins" / "mlxengine-video" / "tests"))

MODELS: dict[str, dict[str, Any]] = {
    "1.3B": {"family": "t2v", "heads": 12, "inner": 8960, "layers": 30},
    "5B": {"family": "ti2v", "heads": 24, "inner": 14336, "layers": 30},
    "14B": {"family": "t2v", "heads": 40, "inner": 13824, "layers": 40},
}
TEXT = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64, "vocab_size": 256384}
VAE = {
    "t2v": {"z_dim": 16, "base_dim": 96},
    "ti2v": {"z_dim": 48, "base_dim": 160, "decoder_base_dim": 256},
}


def write(name: str, folder: Path, layers: int, words: int) -> None:
    """Lay a repository of zeros out; ``words`` is the text encoder's vocabulary."""
    import tiny_wan
    from mlxengine_video.wan import loading
    from mlxengine_video.wan.shape import read_documents

    asked = MODELS[name]
    family = asked["family"]
    channels = VAE[family]["z_dim"]
    tiny_wan.write(family, folder)
    transformer = {
        **tiny_wan.transformer(family),
        "_class_name": "WanTransformer3DModel",
        "num_attention_heads": asked["heads"],
        "attention_head_dim": 128,
        "in_channels": channels,
        "out_channels": channels,
        "text_dim": TEXT["d_model"],
        "freq_dim": 256,
        "ffn_dim": asked["inner"],
        "num_layers": layers,
    }
    vae = {**tiny_wan.vae(family), **VAE[family], "_class_name": "AutoencoderKLWan"}
    vae |= {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}
    text = {**tiny_wan.TEXT, **TEXT, "num_layers": layers, "vocab_size": words}
    for part, config in (("transformer", transformer), ("vae", vae), ("text_encoder", text)):
        (folder / part / "config.json").write_text(json.dumps(config))
    documents = read_documents(folder)
    for part, tensors in _tensors(loading, folder, documents):
        [file] = (folder / part).glob("*.safetensors")
        kind = "bfloat16" if part != "vae" else "float32"
        random_weights.zeros(file, {key: Numbers(shape, kind) for key, shape in tensors.items()})


def _tensors(loading: Any, folder: Path, documents: Any) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """Names and shapes of the files' tensors, as the networks ask for them."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    asked: dict[str, dict[str, tuple[int, ...]]] = {}

    def note(network: Any, part: str, _tensors: Any, name_of: Any, *_: Any) -> Any:
        found = asked.setdefault(part, {})
        for path, value in tree_flatten(network.parameters()):
            if value is not None and (name := name_of(path)) is not None:
                shape = value.shape
                found[name] = (shape[0], shape[-1], *shape[1:-1]) if len(shape) in (4, 5) else shape
        return network

    filled, read = loading._filled, loading.read
    loading._filled, loading.read = note, lambda _folder: {}
    try:
        loading.transformer(folder, "transformer", documents.transformer, mx.bfloat16)
        loading.text_encoder(folder, documents.text_encoder, mx.bfloat16)
        loading.vae_networks(folder, documents)
    finally:
        loading._filled, loading.read = filled, read
    yield from asked.items()


def measure(folder: Path, size: tuple[int, int], frames: int, places: int) -> dict[str, tuple[int, int]]:
    """Bytes predicted and measured beside the weights, for each stage."""
    from mlxengine import InferenceEngine
    from mlxengine_video import _memory
    from mlxengine_video._layout import layout

    with InferenceEngine() as engine:
        found, on_cpu = layout(engine.resolve(folder)), engine.device.backend == "cpu"
    shape = _memory.Shape(size=size, frames=frames, on_cpu=on_cpu)

    import mlx.core as mx
    from mlxengine_video.wan import Wan

    wan = Wan.load(folder)
    for _ in wan.warm():
        pass
    measured: dict[str, tuple[int, int]] = {}
    held = 0

    def stage(name: str, predicted: int, run: Any) -> Any:
        nonlocal held
        mx.clear_cache()
        before = mx.get_active_memory() - held
        mx.reset_peak_memory()
        value = run()
        measured[name] = predicted, mx.get_peak_memory() - before
        return value

    told = stage("text", _memory._reading(found, shape), lambda: wan.prompts("word " * 600, "word " * 600))
    asked: dict[str, Any] = {"size": size, "frames": frames, "steps": 1, "guidance": 5.0, "seed": 0}
    held = told.prompt.nbytes + told.negative.nbytes
    latents = stage(
        "denoising", _memory._denoising(found, shape), lambda: list(wan.denoise(told, **asked))[-1]
    )
    held += latents.nbytes
    count = 1 + found.shape.time_stride * (places - 1)
    stage("decoding", _memory._decoding(found, shape), lambda: list(islice(wan.decode(latents), count)))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--words", type=int, default=256384, help="of the text encoder's vocabulary")
    parser.add_argument("--size", nargs="*", default=["832x480"])
    parser.add_argument("--frames", type=int, nargs="*", default=[17])
    parser.add_argument("--places", type=int, default=3, help="that are decoded")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    from mlxengine.toolkit import blas

    blas.load()  # before anything imports mlx
    found = []
    for name in options.only:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "wan"
            write(name, folder, options.layers, options.words)
            for text in options.size:
                width, height = map(int, text.split("x"))
                for frames in options.frames:
                    stages = measure(folder, (width, height), frames, options.places)
                    for stage, (predicted, measured) in stages.items():
                        line = {"model": name, "size": text, "frames": frames, "stage": stage}
                        line |= {"predicted": predicted, "measured": measured}
                        found.append({**line, "error": round(predicted / measured - 1, 3)})
                        print(json.dumps(found[-1]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
