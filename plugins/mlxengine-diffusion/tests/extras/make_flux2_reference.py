"""Compute what diffusers makes of a tiny FLUX.2 klein: the stored reference.

    python make_flux2_reference.py [OUT_FOLDER]

Needs torch, diffusers, transformers and safetensors.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tiny_flux2 as f
import tiny_kit as k
import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from safetensors.numpy import save_file
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else k.DATA
    parts: dict[str, Any] = {
        "transformer": Flux2Transformer2DModel(**f.TRANSFORMER),
        "vae": AutoencoderKLFlux2(**f.VAE),
        "text_encoder": Qwen3ForCausalLM(Qwen3Config(**f.TEXT, tie_word_embeddings=True)),
    }
    shapes: dict[str, dict[str, list[int]]] = {}
    for part, network in parts.items():
        shapes[part] = {}
        for name, value in network.state_dict().items():
            if name.endswith("num_batches_tracked") or name == "lm_head.weight":
                continue
            shapes[part][name] = list(value.shape)
            value.copy_(torch.from_numpy(f.weight(part, name, tuple(value.shape))))
        network.eval()
    with tempfile.TemporaryDirectory() as folder:
        f.write_tokenizer(Path(folder))
        pipe = Flux2KleinPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            tokenizer=AutoTokenizer.from_pretrained(folder),
            **parts,
        )
        pipe.set_progress_bar_config(disable=True)
        side = f.SIDE // 16
        latents = torch.from_numpy(f.noise()).reshape(1, side, side, 128).permute(0, 3, 1, 2)
        pictures = {}
        for name, guidance in f.GUIDANCES.items():
            image = pipe(
                prompt=f.PROMPT,
                height=f.SIDE,
                width=f.SIDE,
                num_inference_steps=f.STEPS,
                guidance_scale=guidance,
                latents=latents.clone(),
                output_type="np",
            ).images[0]
            pictures[name] = np.ascontiguousarray(np.round(image * 255).astype(np.uint8))
            print(name, pictures[name].shape, "standard deviation", pictures[name].std())
    (out / "flux2.shapes.json").write_text(json.dumps(shapes, indent=0) + "\n")
    save_file(pictures, out / "flux2.pictures.safetensors")


if __name__ == "__main__":
    main()
