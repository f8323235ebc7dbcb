"""Seconds a denoising step at the shapes of Stable Diffusion 1.5 and XL, with random weights, on a GPU.

    python benchmarks/diffusion_gpu.py [--steps 20] [--dtype float16] [--out figures.json]

Needs mlx with its CUDA (or Metal) back end, diffuse-mlx and attrs; no network and no checkpoint. The same
UNets run on torch where torch and diffusers are installed; where they are not, the output says so. A step
is one call of the UNet with prompt and negative prompt (a batch of two) and one step of the sampler.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
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


def timed(step: Callable[[], None], steps: int) -> dict[str, float]:
    """Median and spread over the steps, after three that warm up (kernels are made at first use)."""
    for _ in range(3):
        step()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    ordered = sorted(seconds)
    return {
        "median": statistics.median(seconds),
        "fastest": ordered[0],
        "p90": ordered[int(0.9 * (len(ordered) - 1))],
    }


def ours(shape: dict[str, Any], dtype_name: str, steps: int, compiled: bool) -> dict[str, Any]:
    import mlx.core as mx
    from mlx.utils import tree_map
    from mlxengine_diffusion.sd import modules
    from mlxengine_diffusion.sd.schedulers import NoiseSettings, scheduler

    dtype = getattr(mx, dtype_name)
    unet = modules.build_unet(shape["unet"])
    unet.update(tree_map(lambda value: value.astype(dtype), unet.parameters()))
    mx.eval(unet.parameters())
    width = shape["unet"]["cross_attention_dim"]
    context = mx.random.normal((2, 77, width)).astype(dtype)
    added = None
    if "addition_embed_type" in shape["unet"]:
        added = (mx.random.normal((2, 1280)).astype(dtype), mx.full((2, 6), 1024.0))
    sampler = scheduler("euler", NoiseSettings(), 30)
    side = shape["latents"]
    latents = mx.random.normal((1, side, side, 4)) * sampler.initial_scale
    mx.eval(latents, context)
    network = mx.compile(unet) if compiled else unet
    mx.reset_peak_memory()

    def step() -> None:
        shown = sampler.scale_input(latents, 10).astype(dtype)
        times = mx.full((2,), sampler.timesteps[10])
        output = network(mx.concatenate([shown, shown]), times, context, added).astype(mx.float32)
        without, with_prompt = mx.split(output, 2)
        mx.eval(sampler.step(without + 7.5 * (with_prompt - without), latents, 10)[0])

    figures: dict[str, Any] = {"seconds_per_step": timed(step, steps)}
    figures["peak_gib"] = mx.get_peak_memory() / 2**30
    return figures


def decoding(side: int, steps: int) -> dict[str, Any]:
    import mlx.core as mx
    from mlxengine_diffusion.sd import modules

    vae = modules.build_vae(VAE)
    latents = mx.random.normal((1, side, side, 4))
    mx.eval(vae.parameters(), latents)
    mx.reset_peak_memory()

    def decode() -> None:
        for _ in modules.decoding(vae, latents):
            pass

    figures: dict[str, Any] = {"seconds": timed(decode, steps)}
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
    parser.add_argument("--only", help="a part of a shape's name")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
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
        for label, run in (
            ("ours", lambda shape=shape: ours(shape, options.dtype, options.steps, False)),
            ("ours, compiled", lambda shape=shape: ours(shape, options.dtype, options.steps, True)),
            ("decoding, float32", lambda shape=shape: decoding(shape["latents"], max(3, options.steps // 4))),
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
