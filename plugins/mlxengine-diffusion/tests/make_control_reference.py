"""Compute what diffusers makes of the tiny Stable Diffusions with ControlNets: the stored reference.

    python make_control_reference.py CLIP_TOKENIZER_FOLDER [OUT_FOLDER]

Needs torch, diffusers, transformers and safetensors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import geometry as g
import torch
from diffusers import (
    ControlNetModel,
    MultiControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.controlnet import pipeline_controlnet_img2img
from make_reference import Noises, build, call, fill, nchw, sampler, share_noise
from PIL import Image
from safetensors.numpy import save_file


@torch.no_grad()
def make(kind: Any, pipe: Any, nets: dict[str, Any], told: Any, scheduler: str = "euler", **more: Any) -> Any:
    """A picture with the ControlNets that `geometry.CONTROLS` names."""
    together = MultiControlNetModel([nets[name] for name, *_ in told])
    rest = {"add_watermarker": False} if "XL" in kind.__name__ else {"requires_safety_checker": False}
    other = kind(controlnet=together, **pipe.components, **rest)
    other.set_progress_bar_config(disable=True)
    other.scheduler = sampler(g.scheduler_config(scheduler, "epsilon", "leading"))
    images = [Image.fromarray(g.control_picture(name)) for name, *_ in told]
    return call(
        other,
        **{"image": images, **({"control_image": images} if "image" in more else {}), **more},
        controlnet_conditioning_scale=[item[1] for item in told],
        control_guidance_start=[item[2] for item in told],
        control_guidance_end=[item[3] for item in told],
        height=g.HEIGHT,
        width=g.WIDTH,
    )


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else g.DATA
    pictures, shapes = {}, {}
    for family in ("sd1", "sdxl"):
        pipe, _ = build(family, Path(sys.argv[1]))
        nets: dict[str, Any] = {}
        for name in ("edges", "depth"):
            config = {key: value for key, value in g.control_config(family).items() if key != "_class_name"}
            nets[name] = ControlNetModel(**config)
            shapes[family] = fill(nets[name], family, f"control {name}")
        xl = family == "sdxl"
        kind = StableDiffusionXLControlNetPipeline if xl else StableDiffusionControlNetPipeline
        for label, told in g.CONTROLS.items():
            pictures[f"{family}/{label}"] = make(kind, pipe, nets, told, latents=nchw(g.noise(0)))
        if xl:
            continue
        told = g.CONTROLS["controlled for a while"]
        share_noise(1)
        pictures["sd1/heun"] = make(kind, pipe, nets, told, "heun", latents=nchw(g.noise(0)))
        DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mean
        pipeline_controlnet_img2img.randn_tensor = Noises(0)
        start = {"image": Image.fromarray(g.picture()), "strength": g.STRENGTH}
        kind = StableDiffusionControlNetImg2ImgPipeline
        pictures["sd1/from picture"] = make(kind, pipe, nets, told, **start)
    for label, values in pictures.items():
        print(label, values.shape, "standard deviation", values.std())
    (out / "control.shapes.json").write_text(json.dumps(shapes, indent=0) + "\n")
    save_file(pictures, out / "control.pictures.safetensors")


if __name__ == "__main__":
    main()
