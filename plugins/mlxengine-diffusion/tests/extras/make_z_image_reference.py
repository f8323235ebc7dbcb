"""Compute what diffusers makes of a tiny Z-Image: the stored reference.

    python make_z_image_reference.py [OUT_FOLDER]

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
import tiny_z_image as z
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from make_kit_reference import fill
from safetensors.numpy import save_file
from transformers import AutoTokenizer, Qwen3Config, Qwen3Model


def z_image_pipe(words: Path) -> tuple[Any, Any]:
    """A pipeline of Z-Image, and its tensors' shapes."""
    parts: dict[str, Any] = {
        "transformer": ZImageTransformer2DModel(**z.TRANSFORMER),
        "vae": AutoencoderKL(**z.VAE),
        "text_encoder": Qwen3Model(Qwen3Config(**z.TEXT)),
    }
    shapes = {name: fill(part, "z_image", name) for name, part in parts.items()}
    pipe = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        tokenizer=AutoTokenizer.from_pretrained(words),
        **parts,
    )
    return pipe, shapes


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else k.DATA
    with tempfile.TemporaryDirectory() as folder:
        z.write_tokenizer(Path(folder))
        pipe, shapes = z_image_pipe(Path(folder))
        pipe.set_progress_bar_config(disable=True)
        pictures = {}
        for name, guidance in (("plain", 0.0), ("guided", 4.0)):
            image = pipe(
                z.PROMPT,
                negative_prompt=z.NEGATIVE,
                height=z.SIDE,
                width=z.SIDE,
                num_inference_steps=z.STEPS,
                guidance_scale=guidance,
                latents=torch.from_numpy(k.noise()),
                output_type="np",
            ).images[0]
            pictures[name] = np.ascontiguousarray(np.round(image * 255).astype(np.uint8))
            print(name, pictures[name].shape, "standard deviation", pictures[name].std())
    (out / "z_image.shapes.json").write_text(json.dumps(shapes, indent=0) + "\n")
    save_file(pictures, out / "z_image.pictures.safetensors")


if __name__ == "__main__":
    main()
