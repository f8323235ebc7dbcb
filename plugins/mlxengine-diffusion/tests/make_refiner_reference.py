"""Compute what diffusers makes of the tiny Stable Diffusion XL with a refiner: the stored reference.

    python make_refiner_reference.py CLIP_TOKENIZER_FOLDER [OUT_FOLDER]

Needs torch, diffusers, transformers and safetensors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import geometry as g
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.stable_diffusion_xl import pipeline_stable_diffusion_xl_img2img as img2img
from make_reference import Noises, build, call, fill, nchw, sampler, share_noise
from PIL import Image
from safetensors.numpy import save_file


def words(told: dict[str, Any]) -> dict[str, Any]:
    """What diffusers calls what geometry says."""
    names = {"negative": "negative_prompt", "guidance": "guidance_scale"}
    return {names[key]: value for key, value in told.items()}


def left(name: str, at: float) -> int:
    """How many evaluations are the first network's."""
    walk = sampler(g.scheduler_config(name, "epsilon", "leading"))
    walk.set_timesteps(g.STEPS)
    return int((walk.timesteps >= round(1000 * (1 - at))).sum())


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else g.DATA
    base, _ = build("sdxl", Path(sys.argv[1]))
    unet = UNet2DConditionModel(**g.refiner_config())
    shapes = fill(unet, "sdxl", "refiner")
    common = {name: base.components[name] for name in ("vae", "text_encoder_2", "tokenizer_2")}
    rest = {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
    rest["add_watermarker"] = False
    refiner = StableDiffusionXLImg2ImgPipeline(
        unet=unet,
        text_encoder=None,
        tokenizer=None,
        scheduler=base.scheduler,
        **common,
        **rest,
    )
    refiner.set_progress_bar_config(disable=True)
    pictures = {}
    for label, (name, at, told) in g.REFINED.items():
        for pipe in (base, refiner):
            pipe.scheduler = sampler(g.scheduler_config(name, "epsilon", "leading"))
        values = {"num_inference_steps": g.STEPS, "guidance_scale": g.GUIDANCE, "negative_prompt": g.NEGATIVE}
        share_noise(1)
        latents = base(
            **{"prompt": g.PROMPT, **values, **words(told)},
            latents=nchw(g.noise(0)),
            height=g.HEIGHT,
            width=g.WIDTH,
            denoising_end=at,
            output_type="latent",
        ).images
        share_noise(1 + left(name, at))
        pictures[label] = call(refiner, image=latents, denoising_start=at, **words(told))
    DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mean
    first = StableDiffusionXLImg2ImgPipeline(**base.components, add_watermarker=False)
    first.set_progress_bar_config(disable=True)
    for pipe in (first, refiner):
        pipe.scheduler = sampler(g.scheduler_config("euler", "epsilon", "leading"))
    img2img.randn_tensor = Noises(0)
    latents = first(
        g.PROMPT,
        negative_prompt=g.NEGATIVE,
        guidance_scale=g.GUIDANCE,
        num_inference_steps=g.STEPS,
        image=Image.fromarray(g.picture()),
        strength=g.STRENGTH,
        denoising_end=0.6,
        output_type="latent",
    ).images
    pictures["from picture"] = call(refiner, image=latents, denoising_start=0.6)
    for label, values in pictures.items():
        print(label, values.shape, "standard deviation", values.std())
    (out / "refiner.shapes.json").write_text(json.dumps(shapes, indent=0) + "\n")
    save_file(pictures, out / "refiner.pictures.safetensors")


if __name__ == "__main__":
    main()
