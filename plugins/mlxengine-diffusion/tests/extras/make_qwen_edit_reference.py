"""Compute what diffusers makes of the tiny Qwen-Image-Edit: the stored references.

    python make_qwen_edit_reference.py [OUT_FOLDER]

Needs torch, diffusers, transformers, Pillow and safetensors.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tiny_kit as k
import tiny_qwen_edit as e
import tiny_qwen_image as q
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from make_mflux_reference import fill, picture
from PIL import Image
from safetensors.numpy import save_file
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

AREAS = {1024 * 1024: e.AREA, 384 * 384: e.SHOWN_AREA}


class Processor(Qwen2VLProcessor):
    """transformers' processor, whose part for films needs torchvision: pictures and words alone."""

    def __init__(self, images: Any, words: Any) -> None:
        self.image_processor, self.tokenizer = images, words

    def __call__(self, text: list[str], images: Any, **_: Any) -> Any:
        shown = self.image_processor(images=images, return_tensors="pt")
        counts = iter((shown["image_grid_thw"].prod(-1) // 4).tolist())
        pieces = text[0].split("<|image_pad|>")
        written = pieces[0] + "".join("<|image_pad|>" * next(counts) + piece for piece in pieces[1:])
        return _Inputs({**self.tokenizer([written], return_tensors="pt"), **shown})


class _Inputs(dict[str, Any]):
    def to(self, _device: Any) -> _Inputs:
        return self


def seeing(config: Any) -> Any:
    """The text encoder, which is told which tokens are pictures.

    With transformers 5, diffusers 0.42.1 leaves that out, and the encoder takes them for words, each behind
    the one before. The models were trained with rows and columns.
    """
    made = Qwen2_5_VLForConditionalGeneration(config)
    usual = made.forward

    def forward(input_ids: Any, **options: Any) -> Any:
        kinds = (input_ids == config.image_token_id).int()
        return usual(input_ids=input_ids, mm_token_type_ids=kinds, **options)

    made.forward = forward
    return made


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else k.DATA
    tokens = dict(zip(("vision_start", "image", "vision_end"), range(e.FIRST_TOKEN + 2, 64), strict=False))
    config = Qwen2_5_VLConfig(
        text_config=q.TEXT,
        vision_config=e.VISION,
        **{f"{name}_token_id": number for name, number in tokens.items()},
    )
    parts: dict[str, Any] = {
        "transformer": QwenImageTransformer2DModel(**q.TRANSFORMER),
        "vae": AutoencoderKLQwenImage(**q.VAE),
        "text_encoder": seeing(config),
    }
    shapes = fill(parts, e.weight)
    pictures = {}
    with tempfile.TemporaryDirectory() as folder:
        e.write_words(Path(folder))
        words = AutoTokenizer.from_pretrained(folder)
    settings = {key: value for key, value in q.SCHEDULER.items() if key != "_class_name"}
    for kind, maker in (("one", QwenImageEditPipeline), ("two", QwenImageEditPlusPipeline)):
        module = sys.modules[maker.__module__]
        usual = module.calculate_dimensions
        module.calculate_dimensions = lambda area, ratio, usual=usual: usual(AREAS[area], ratio)
        if hasattr(module, "CONDITION_IMAGE_SIZE"):
            assert module.CONDITION_IMAGE_SIZE in AREAS
        pipe = maker(
            scheduler=FlowMatchEulerDiscreteScheduler(**settings),
            tokenizer=words,
            processor=Processor(
                Qwen2VLImageProcessorPil(
                    **{key: value for key, value in e.PROCESSOR.items() if "type" not in key}
                ),
                words,
            ),
            **parts,
        )
        given = [Image.fromarray(item) for item in e.pictures()[kind]]
        for name, guidance in (("plain", 1.0), ("guided", e.GUIDANCE)):
            made = picture(
                pipe,
                image=given if kind == "two" else given[0],
                prompt=e.PROMPT,
                negative_prompt=e.NEGATIVE if guidance > 1 else None,
                num_inference_steps=e.STEPS,
                true_cfg_scale=guidance,
                latents=torch.from_numpy(e.noise()),
                generator=torch.Generator().manual_seed(0),
            )
            pictures[f"{kind} {name}"] = made
            print(kind, name, made.shape, "standard deviation", made.std())
        other = [Image.fromarray(255 - item) for item in e.pictures()[kind]]
        made = picture(
            pipe,
            image=other if kind == "two" else other[0],
            prompt=e.PROMPT,
            num_inference_steps=e.STEPS,
            true_cfg_scale=1.0,
            latents=torch.from_numpy(e.noise()),
        )
        print(
            kind,
            "of other pictures: mean difference",
            np.abs(made.astype(int) - pictures[f"{kind} plain"]).mean(),
        )
    (out / "qwen_edit.shapes.json").write_text(json.dumps(shapes, indent=0) + "\n")
    save_file(pictures, out / "qwen_edit.pictures.safetensors")


if __name__ == "__main__":
    main()
