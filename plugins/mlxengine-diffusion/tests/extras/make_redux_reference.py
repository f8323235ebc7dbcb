"""Compute what diffusers' Redux tells a tiny FLUX.1 of pictures, and what becomes of it: references.

    python make_redux_reference.py CLIP_TOKENIZER_FOLDER [OUT_FOLDER]

Needs torch, diffusers, transformers and safetensors.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import tiny_adapters as a
import tiny_flux1 as f1
import tiny_kit as k
import torch
from diffusers import FluxPriorReduxPipeline
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from make_mflux_reference import flux1_pipe, picture
from PIL import Image
from safetensors.numpy import save_file
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else k.DATA
    side = f1.SIGLIP["image_size"]
    encoder = SiglipVisionModel(SiglipVisionConfig(**f1.SIGLIP)).eval()
    embedder = ReduxImageEncoder(redux_dim=f1.SIGLIP["hidden_size"], txt_in_features=f1.T5["d_model"])
    shapes: dict[str, dict[str, list[int]]] = {}
    for part, network in (("image_encoder", encoder), ("image_embedder", embedder)):
        shapes[part] = {}
        for own, value in network.state_dict().items():
            if own.endswith("position_ids"):
                continue
            # the published checkpoint is older than today's transformers
            inside = part == "image_encoder" and not own.startswith("vision_model.")
            name = f"vision_model.{own}" if inside else own
            shapes[part][name] = list(value.shape)
            value.copy_(torch.from_numpy(k.weight("redux", part, name, tuple(value.shape))))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        pipe, _ = flux1_pipe(Path(folder), Path(sys.argv[1]))
        kept = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        prior = FluxPriorReduxPipeline(
            image_encoder=encoder,
            feature_extractor=SiglipImageProcessorPil(size={"height": side, "width": side}),
            image_embedder=embedder,
            **{name: pipe.components[name] for name in kept},
        )
        for label, (prompt, strengths) in f1.REDUX.items():
            shown = [Image.fromarray(item) for item in (a.other(), a.start())][: len(strengths)]
            # what it takes for a prompt where no text encoder is loaded, in these widths
            silent = {
                "prompt_embeds": torch.zeros(len(shown), 512, f1.T5["d_model"]),
                "pooled_prompt_embeds": torch.zeros(len(shown), f1.CLIP["hidden_size"]),
            }
            told = prior(
                shown, **({"prompt": prompt} if prompt else silent), prompt_embeds_scale=list(strengths)
            )
            found[f"{label}/words"] = told.prompt_embeds[0, 512:].numpy().copy()
            found[label] = picture(
                pipe,
                prompt_embeds=told.prompt_embeds,
                pooled_prompt_embeds=told.pooled_prompt_embeds,
                height=a.start().shape[0],
                width=a.start().shape[1],
                num_inference_steps=f1.STEPS,
                guidance_scale=f1.GUIDANCE,
                latents=torch.from_numpy(a.noise("flux1")),
            )
            print(label, found[f"{label}/words"].std(), found[label].std())
    (out / "redux.shapes.json").write_text(json.dumps(shapes, indent=0) + "\n")
    save_file(found, out / "redux.pictures.safetensors")


if __name__ == "__main__":
    main()
