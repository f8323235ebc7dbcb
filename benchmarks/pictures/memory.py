"""Predicted against measured peak memory of pictures at the models' real shapes.

    python -m benchmarks.pictures.memory [--only flux …] [--share 0.5] [--out figures.json]

A repository is written whose weights are zeros (files without blocks, so they take no disk), loaded by the
engine and asked for one picture of one step, each in a process of its own: whole, with tiles, and with tiles
and parts one after the other. What counts is mlx's peak, weights included, beside what `fit` said.
``--share`` keeps that share of the layers, for machines that do not hold them all. FLUX.1 and Qwen-Image need
mflux, Z-Image mlx-vlm; what is not installed is left out with a word.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.pictures.gpu import ROOT, SHAPES, TEXT, TOKENIZER, VAE

sys.path.append(str(ROOT / "plugins" / "mlxengine-diffusion" / "tests" / "extras"))

WAYS: dict[str, dict[str, object]] = {
    "whole": {"diffusion.vae_tiling": "off"},
    "tiles": {"diffusion.vae_tiling": "on"},
    "tiles and stages": {"diffusion.vae_tiling": "on", "diffusion.keep_loaded": False},
}
CLIP = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "vocab_size": 49408}
BIG_CLIP = {"hidden_size": 1280, "num_attention_heads": 20, "num_hidden_layers": 32, "vocab_size": 49408}
WIDE_VAE = {
    **VAE,
    "latent_channels": 16,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
QWEN3 = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 9728,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
}
T5 = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_heads": 64,
    "num_layers": 24,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
}
# Geometry as the authors' repositories have it: back end, pipeline's class, and each part's configuration.
MODELS: dict[str, tuple[str, str, dict[str, dict[str, Any]]]] = {
    "sd-1.5": (
        "sd",
        "StableDiffusionPipeline",
        {
            "text_encoder": {**TEXT, **CLIP, "projection_dim": 768},
            "unet": SHAPES["sd-1.5 512x512"]["unet"],
            "vae": VAE,
        },
    ),
    "sdxl": (
        "sd",
        "StableDiffusionXLPipeline",
        {
            "text_encoder": {**TEXT, **CLIP, "projection_dim": 768},
            "text_encoder_2": {**TEXT, **BIG_CLIP, "projection_dim": 1280, "intermediate_size": 5120},
            "unet": SHAPES["sdxl 1024x1024"]["unet"],
            "vae": {**VAE, "sample_size": 1024},
        },
    ),
    "flux": (
        "mflux",
        "FluxPipeline",
        {
            "text_encoder": {**TEXT, **CLIP, "projection_dim": 768},
            "text_encoder_2": T5,
            "transformer": {
                "in_channels": 64,
                "num_layers": 19,
                "num_single_layers": 38,
                "attention_head_dim": 128,
                "num_attention_heads": 24,
                "joint_attention_dim": 4096,
                "pooled_projection_dim": 768,
                "guidance_embeds": True,
                "axes_dims_rope": [16, 56, 56],
            },
            "vae": WIDE_VAE,
        },
    ),
    "z-image": (
        "mlx_vlm",
        "ZImagePipeline",
        {
            "text_encoder": QWEN3,
            "transformer": {
                "dim": 3840,
                "n_layers": 30,
                "n_refiner_layers": 2,
                "n_heads": 30,
                "n_kv_heads": 30,
                "cap_feat_dim": 2560,
                "axes_dims": [32, 48, 48],
                "axes_lens": [1536, 512, 512],
            },
            "vae": WIDE_VAE,
        },
    ),
    "qwen-image": (
        "mflux",
        "QwenImagePipeline",
        {
            "text_encoder": {
                "vocab_size": 152064,
                "hidden_size": 3584,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "intermediate_size": 18944,
                "max_position_embeddings": 128000,
                "rms_norm_eps": 1e-6,
                "rope_theta": 1000000.0,
                "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [16, 24, 24]},
            },
            "transformer": {
                "patch_size": 2,
                "in_channels": 64,
                "out_channels": 16,
                "num_layers": 60,
                "attention_head_dim": 128,
                "num_attention_heads": 24,
                "joint_attention_dim": 3584,
                "guidance_embeds": False,
                "axes_dims_rope": [16, 56, 56],
            },
            "vae": {
                "base_dim": 96,
                "z_dim": 16,
                "dim_mult": [1, 2, 4, 4],
                "num_res_blocks": 2,
                "latents_mean": [0.0] * 16,
                "latents_std": [1.0] * 16,
            },
        },
    ),
}
LAYERS = ("num_layers", "num_single_layers", "n_layers", "num_hidden_layers")


def kept(config: dict[str, Any], share: float) -> dict[str, Any]:
    """A configuration with that share of its layers."""
    return {key: max(2, round(value * share)) if key in LAYERS else value for key, value in config.items()}


@contextmanager
def recorded() -> Iterator[dict[str, dict[str, tuple[int, ...]]]]:
    """Networks are built and not filled; what they would be filled with is noted by part, name and shape."""
    from mlx.utils import tree_flatten
    from mlxengine_diffusion.backends import _networks
    from mlxengine_diffusion.sd import weights

    found: dict[str, dict[str, tuple[int, ...]]] = {}

    def note(module: Any, part: str, _source: Any, place_of: Any, _dtype: Any) -> None:
        for path, value in tree_flatten(module.parameters()):
            if (place := place_of(path)) is not None:
                shape = weights._expected(value.shape, place.half)
                found.setdefault(part, {})[place.name] = shape

    with mock.patch.object(weights, "fill_by_name", note), mock.patch.object(_networks, "fill_by_name", note):
        yield found


def write_zeros(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of zeros in bfloat16 that takes no blocks on the disk."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + at)


def write(name: str, folder: Path, share: float) -> None:
    """The repository of a model."""
    from mlxengine.toolkit import blas

    blas.load()  # before anything imports mlx
    import tiny_kit
    import tiny_z_image
    from mlxengine import InferenceEngine, LoadContext
    from mlxengine_diffusion.backends import backend

    library, pipeline, parts = MODELS[name]
    index: dict[str, Any] = {"_class_name": pipeline}
    for part, config in parts.items():
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(
            json.dumps(config if part == "vae" else kept(config, share))
        )
        kind = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
        index[part] = ["", kind.get(part, "CLIPTextModelWithProjection")]
        if not part.startswith("text_encoder"):
            continue
        words = folder / part.replace("text_encoder", "tokenizer")
        index[words.name] = ["", "CLIPTokenizer"]
        words.mkdir()
        if "hidden_act" in config or config.get("max_position_embeddings") == 77:
            for file in TOKENIZER.iterdir():
                (words / file.name).write_bytes(file.read_bytes())
        elif "d_model" in config:
            tiny_kit.write_t5_tokenizer(words)
        else:
            tiny_z_image.write_tokenizer(words)
    (folder / "scheduler").mkdir()
    noise = {
        "_class_name": "EulerDiscreteScheduler" if library == "sd" else "FlowMatchEulerDiscreteScheduler"
    }
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(noise))
    (folder / "model_index.json").write_text(json.dumps(index))
    with recorded() as shapes, InferenceEngine() as engine:
        card = engine.resolve(folder)
        context = LoadContext(
            path=folder,
            configuration=card.configuration,
            features=engine.features.view(),
            device=engine.device,
        )
        backend(library).load(card, context)
    for part, named in shapes.items():
        stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
        write_zeros(folder / part / f"{stem}.safetensors", named)


def measure(folder: str, way: str, side: int) -> None:
    """One picture in this process; prints bytes predicted and measured."""
    from mlxengine import InferenceEngine, PictureWorkload

    flags = WAYS[way]
    with InferenceEngine(features={"core.degrade": False}) as engine:
        import mlx.core as mx

        model = engine.load_images(folder, features=flags)
        mx.reset_peak_memory()
        model.image("a red circle", size=(side, side), steps=1, seed=0)
        workload = PictureWorkload(
            size=(side, side),
            vae_tiling=flags["diffusion.vae_tiling"] == "on",
            low_memory="diffusion.keep_loaded" in flags,
        )
        estimate = engine.fit(folder, workload).estimate
        print(json.dumps({"predicted": estimate.total, "measured": mx.get_peak_memory()}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure, options.side)
        return
    found: dict[str, Any] = {}
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            try:
                write(name, Path(folder), options.share)
            except ImportError as error:
                print(f"{name}: left out, {error}")
                continue
            for way in WAYS:
                command = [sys.executable, "-m", "benchmarks.pictures.memory", "--side", str(options.side)]
                done = subprocess.run(
                    [*command, "--measure", folder, way], capture_output=True, text=True, check=False
                )
                if done.returncode:
                    print(f"{name}, {way}: {done.stderr.strip()[-400:]}")
                    continue
                figures = json.loads(done.stdout.splitlines()[-1])
                error = figures["predicted"] / figures["measured"] - 1
                found[f"{name}, {way}"] = {**figures, "error": round(error, 3)}
                gib = {key: f"{value / 2**30:.2f} GiB" for key, value in figures.items()}
                print(
                    f"{name}, {way}: {gib['predicted']} predicted, {gib['measured']} measured, {error:+.0%}",
                    flush=True,
                )
    if options.out:
        options.out.write_text(
            json.dumps({"share": options.share, "side": options.side, "figures": found}, indent=1)
        )


if __name__ == "__main__":
    main()
