"""Compute what diffusers makes of the tiny Stable Diffusions with IP-Adapters: the stored reference.

    python make_ip_reference.py CLIP_TOKENIZER_FOLDER [OUT_FOLDER]

Needs torch, diffusers, transformers and safetensors.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import geometry as g
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionImg2ImgPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as img2img
from make_reference import Noises, build, call, fill, nchw, sampler, share_noise
from PIL import Image
from safetensors.numpy import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


def seeing(pipe: Any, family: str, label: str, encoder: Any) -> dict[str, Any]:
    """Give a pipeline the IP-Adapters of `geometry.SEEN`; what its call is told."""
    side = g.IMAGE_ENCODER["image_size"]
    pipe.register_modules(
        image_encoder=encoder, feature_extractor=CLIPImageProcessorPil(size=side, crop_size=side)
    )
    told = g.SEEN[label]
    with tempfile.TemporaryDirectory() as folder:
        for kind, _ in told:
            save_file(g.ip_tensors(family, kind), Path(folder) / f"{kind}.safetensors")
        names = [f"{kind}.safetensors" for kind, _ in told]
        pipe.load_ip_adapter(folder, subfolder="", weight_name=names, low_cpu_mem_usage=False)
    pipe.set_ip_adapter_scale([strength for _, strength in told])
    return {"ip_adapter_image": [Image.fromarray(g.ip_picture())] * len(told)}


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else g.DATA
    encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**g.IMAGE_ENCODER))
    shapes = fill(encoder, "ip", "image_encoder")
    usual = {"latents": nchw(g.noise(0)), "height": g.HEIGHT, "width": g.WIDTH}
    pictures = {}
    DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mean
    for family in ("sd1", "sdxl"):
        for label in g.SEEN:
            pipe, _ = build(family, Path(sys.argv[1]))
            pipe.scheduler = sampler(g.scheduler_config("euler", "epsilon", "leading"))
            told = seeing(pipe, family, label, encoder)
            pictures[f"{family}/{label}"] = call(pipe, **usual, **told)
            if family == "sdxl" or label != "plain":
                continue
            plain = {"guidance_scale": 1.0, "negative_prompt": None}
            pictures["sd1/no guidance"] = call(pipe, **usual, **told, **plain)
            other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
            img2img.randn_tensor = Noises(0)
            share_noise(1)
            start = {"image": Image.fromarray(g.picture()), "strength": g.STRENGTH}
            pictures["sd1/from picture"] = call(other, **start, **told)
            config = {key: value for key, value in g.control_config(family).items() if key != "_class_name"}
            net = ControlNetModel(**config)
            fill(net, family, "control edges")
            other = StableDiffusionControlNetPipeline(
                controlnet=net, **pipe.components, requires_safety_checker=False
            )
            shown = {"image": Image.fromarray(g.control_picture("edges"))}
            pictures["sd1/controlled"] = call(other, **usual, **shown, **told)
            down, up = (torch.from_numpy(item) for item in g.adapter_of_one())
            pipe.unet.get_submodule(g.ADAPTED).weight += up @ down
            pictures["sd1/adapted"] = call(pipe, **usual, **told)
    for label, values in pictures.items():
        print(label, values.shape, "standard deviation", values.std())
    (out / "ip.shapes.json").write_text(json.dumps(shapes, indent=0) + "\n")
    save_file(pictures, out / "ip.pictures.safetensors")


if __name__ == "__main__":
    main()
