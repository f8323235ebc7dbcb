"""Seconds a denoising step at the shapes of Stable Diffusion 1.5 and XL, with random weights, on a GPU.

    python -m benchmarks.pictures.gpu [--steps 20] [--dtype float16] [--compile on] [--out figures.json]

Needs mlx with its CUDA (or Metal) back end; no network and no checkpoint. Ours is the engine and the plugin
as they are: a repository with random weights is written, loaded and asked for pictures, and the time between
two `Progress` events is a step (prompt and negative prompt, a batch of two, and one step of the sampler).
``--compile`` is the flag ``diffusion.compile``. The same UNets run on torch where torch and diffusers are
installed; where they are not, the output says so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "tests" / "models" / "tiny-shapes-sd" / "tokenizer"
sys.path[:0] = [str(ROOT / "core"), str(ROOT / "plugins" / "mlxengine-diffusion" / "src")]

COMMON: dict[str, Any] = {"in_channels": 4, "out_channels": 4, "norm_num_groups": 32, "layers_per_block": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "sd-1.5 512x512": {
        "latents": 64,
        "unet": {
            **COMMON,
            "sample_size": 64,
            "block_out_channels": [320, 640, 1280, 1280],
            "attention_head_dim": 8,
            "cross_attention_dim": 768,
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        },
    },
    "sdxl 1024x1024": {
        "latents": 128,
        "unet": {
            **COMMON,
            "sample_size": 128,
            "block_out_channels": [320, 640, 1280],
            "attention_head_dim": [5, 10, 20],
            "transformer_layers_per_block": [1, 2, 10],
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    },
}
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
TEXT: dict[str, Any] = {
    "vocab_size": 594,
    "intermediate_size": 3072,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "bos_token_id": 592,
    "eos_token_id": 593,
}


def timed(step: Callable[[], None], steps: int) -> dict[str, float]:
    """Median and spread over the steps, after three that warm up (kernels are made at first use)."""
    for _ in range(3):
        step()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return spread(seconds)


def spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "median": statistics.median(seconds),
        "fastest": ordered[0],
        "p90": ordered[int(0.9 * (len(ordered) - 1))],
    }


def write_repository(folder: Path, shape: dict[str, Any], dtype_name: str) -> None:
    """A repository in diffusers' layout with random weights, and text encoders of two layers."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlxengine_diffusion.sd import weights
    from mlxengine_diffusion.sd.autoencoder import build_vae
    from mlxengine_diffusion.sd.clip import build_clip
    from mlxengine_diffusion.sd.unet import build_unet

    xl = "addition_embed_type" in shape["unet"]
    configs: dict[str, dict[str, Any]] = {"unet": shape["unet"], "vae": {**VAE, "force_upcast": True}}
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    }
    for number, width in enumerate((768, 1280) if xl else (768,)):
        end = f"_{number + 1}" if number else ""
        configs[f"text_encoder{end}"] = {**TEXT, "hidden_size": width, "projection_dim": width}
        index[f"text_encoder{end}"] = [
            "transformers",
            "CLIPTextModelWithProjection" if number else "CLIPTextModel",
        ]
        index[f"tokenizer{end}"] = ["transformers", "CLIPTokenizer"]
        shutil.copytree(TOKENIZER, folder / f"tokenizer{end}")
    for part, config in configs.items():
        if part == "unet":
            made: Any = build_unet(config)
        elif part == "vae":
            made = build_vae(config)
        else:
            made = build_clip(config, projection=part == "text_encoder_2")
        kind = "text_encoder" if part.startswith("text_encoder") else part
        halves: dict[str, list[Any]] = {}
        for path, value in tree_flatten(made.parameters()):
            value = value.astype(getattr(mx, dtype_name))
            halves.setdefault(weights.origin(kind, path).name, []).append(
                value.transpose(0, 3, 1, 2) if value.ndim == 4 else value
            )
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config))
        stem = "model" if kind == "text_encoder" else "diffusion_pytorch_model"
        tensors = {name: mx.concatenate(items) for name, items in halves.items()}
        mx.save_safetensors(str(folder / part / f"{stem}.safetensors"), tensors)
    (folder / "scheduler").mkdir()
    noise = {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(noise))
    (folder / "model_index.json").write_text(json.dumps(index))
    mx.clear_cache()


def ours(folder: Path, shape: dict[str, Any], flags: dict[str, object], steps: int) -> dict[str, Any]:
    """The engine with the plugin, asked for pictures: nothing is done for it here."""
    import mlx.core as mx
    from mlxengine import ImageReady, ImageRequest, InferenceEngine, Progress

    side = 8 * shape["latents"]
    with (
        InferenceEngine() as engine,
        engine.load_images(folder, features=flags) as model,
    ):
        moments: list[float] = []
        decoding: list[float] = []
        request = ImageRequest(prompt="a red circle", size=(side, side), guidance=7.5, steps=steps, seed=1)
        figures: dict[str, Any] = {"compiled": model.info["compiled"]}
        for number in range(4):
            # The first picture also traces, compiles kernels and reads the prompt.
            mx.reset_peak_memory()
            moments = [time.perf_counter()]
            for event in model.stream(request):
                if isinstance(event, Progress | ImageReady):
                    moments.append(time.perf_counter())
            if number == 0:
                figures["first_picture_seconds"] = moments[-1] - moments[0]
                figures["first_step_seconds"] = moments[1] - moments[0]
            else:
                decoding.append(moments[-1] - moments[-2])
        between = [later - earlier for earlier, later in itertools.pairwise(moments[1:-1])]
        figures["seconds_per_step"] = spread(between)
        figures["decoding_seconds"] = statistics.median(decoding)
        figures["peak_gib"] = mx.get_peak_memory() / 2**30
    return figures


def torchs(shape: dict[str, Any], dtype_name: str, steps: int) -> dict[str, Any]:
    try:
        import torch
        from diffusers import UNet2DConditionModel
    except ImportError as error:
        return {"not_compared": f"{error.name} is not installed on this machine"}
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    dtype = getattr(torch, dtype_name)
    with torch.no_grad():
        unet = UNet2DConditionModel(**shape["unet"]).to(device, dtype).eval()
        side = shape["latents"]
        context = torch.randn(2, 77, shape["unet"]["cross_attention_dim"], device=device, dtype=dtype)
        latents = torch.randn(2, 4, side, side, device=device, dtype=dtype)
        added = None
        if "addition_embed_type" in shape["unet"]:
            added = {
                "text_embeds": torch.randn(2, 1280, device=device, dtype=dtype),
                "time_ids": torch.full((2, 6), 1024.0, device=device, dtype=dtype),
            }

        def step() -> None:
            output = unet(latents, 500, context, added_cond_kwargs=added).sample
            without, with_prompt = output.chunk(2)
            (without + 7.5 * (with_prompt - without)).sum().item()

        return {"device": device, "torch": torch.__version__, "seconds_per_step": timed(step, steps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--compile", default="auto", choices=("auto", "on", "off"))
    parser.add_argument("--only", help="a part of a shape's name")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    scratch = tempfile.TemporaryDirectory(prefix="mlxengine-benchmark-")
    from mlxengine.toolkit import blas

    blas.load()  # before mlx is imported: on a CPU its products are slow without
    import mlx.core as mx

    figures: dict[str, Any] = {
        "mlx": getattr(mx, "__version__", "?"),
        "device": str(mx.default_device()),
        "dtype": options.dtype,
        "steps": options.steps,
        "shapes": {},
    }
    for name, shape in SHAPES.items():
        if options.only and options.only not in name:
            continue
        found = figures["shapes"][name] = {}
        folder = Path(scratch.name) / name.replace(" ", "-")
        folder.mkdir()
        write_repository(folder, shape, options.dtype)
        flags = {"diffusion.dtype": options.dtype, "diffusion.compile": options.compile}
        for label, run in (
            (
                "ours",
                lambda shape=shape, folder=folder, flags=flags: ours(folder, shape, flags, options.steps),
            ),
            ("diffusers on torch", lambda shape=shape: torchs(shape, options.dtype, options.steps)),
        ):
            mx.clear_cache()
            try:
                found[label] = run()
            except Exception as error:  # one figure that fails must not cost the others
                found[label] = {"failed": f"{type(error).__name__}: {error}"}
            print(f"{name}: {label}: {json.dumps(found[label])}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
