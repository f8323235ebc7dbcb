"""Compute what diffusers makes of the tiny FLUX.1 schnell and Stable Diffusion 3: the stored reference.

    python make_kit_reference.py CLIP_TOKENIZER_FOLDER [OUT_FOLDER]

Needs torch, diffusers, transformers and safetensors.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tiny_kit as k
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from safetensors.numpy import save_file
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)


def fill(module: torch.nn.Module, family: str, part: str) -> dict[str, list[int]]:
    found = {}
    for name, value in module.state_dict().items():
        if name.endswith("position_ids"):
            continue
        found[name] = list(value.shape)
        value.copy_(torch.from_numpy(k.weight(family, part, name, tuple(value.shape))))
    module.eval()
    return found


def text_model(family: str, width: int) -> Any:
    projection = family == "sd3"
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    return kind(CLIPTextConfig(**k.clip(width, projection)))


def build(family: str, tokenizer: Any, words: Any) -> tuple[Any, dict[str, Any]]:
    scale, shift = k.FACTORS[family]
    vae = AutoencoderKL(**k.VAE, scaling_factor=scale, shift_factor=shift)
    t5 = T5EncoderModel(T5Config(**k.t5(family)))
    first = text_model(family, 48)
    parts = {"vae": vae, "t5": t5, "clip_l": first}
    if family == "flux":
        transformer: Any = FluxTransformer2DModel(**k.FLUX)
        made: Any = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
            vae=vae,
            text_encoder=first,
            tokenizer=tokenizer,
            text_encoder_2=t5,
            tokenizer_2=words,
            transformer=transformer,
        )
    else:
        transformer = SD3Transformer2DModel(**k.SD3)
        parts["clip_g"] = second = text_model(family, 40)
        padded = CLIPTokenizer.from_pretrained(tokenizer.name_or_path, pad_token="!")
        made = StableDiffusion3Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae,
            text_encoder=first,
            tokenizer=tokenizer,
            text_encoder_2=second,
            tokenizer_2=padded,
            text_encoder_3=t5,
            tokenizer_3=words,
            transformer=transformer,
        )
    parts["transformer"] = transformer
    made.set_progress_bar_config(disable=True)
    return made, {name: fill(part, family, name) for name, part in parts.items()}


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else k.DATA
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = CLIPTokenizer.from_pretrained(sys.argv[1])
    shapes, pictures = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        k.write_t5_tokenizer(Path(folder))
        words = AutoTokenizer.from_pretrained(folder)
        for family in ("flux", "sd3"):
            pipe, shapes[family] = build(family, tokenizer, words)
            latents = torch.from_numpy(k.noise())
            values: dict[str, Any] = {
                "prompt": k.PROMPT,
                "height": k.SIDE,
                "width": k.SIDE,
                "num_inference_steps": k.STEPS[family],
                "output_type": "np",
            }
            if family == "flux":
                latents = pipe._pack_latents(latents, 1, 16, k.LATENT, k.LATENT)
                values |= {"guidance_scale": 0.0, "max_sequence_length": 256}
            else:
                values |= {
                    "guidance_scale": k.GUIDANCE,
                    "negative_prompt": k.NEGATIVE,
                    "max_sequence_length": 512,
                }
            image = pipe(latents=latents, **values).images[0]
            pictures[family] = np.ascontiguousarray(np.round(image * 255).astype(np.uint8))
            print(family, pictures[family].shape, "standard deviation", pictures[family].std())
    (out / "shapes.json").write_text(json.dumps(shapes, indent=0) + "\n")
    save_file(pictures, out / "kit.pictures.safetensors")


if __name__ == "__main__":
    main()
