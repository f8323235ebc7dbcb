"""Compute what diffusers makes of tiny FLUX.1, FLUX.2 klein and Qwen-Image: the stored references.

    python make_mflux_reference.py CLIP_TOKENIZER_FOLDER [OUT_FOLDER]

Needs torch, diffusers, transformers and safetensors.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tiny_flux1 as f1
import tiny_flux2 as f2
import tiny_kit as k
import tiny_qwen_image as q
import tiny_z_image as z
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from safetensors.numpy import save_file
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

Weight = Callable[[str, str, tuple[int, ...]], k.Array]
# Buffers, and what is the same tensor under another name.
_SKIPPED = ("num_batches_tracked", "position_ids", "lm_head.weight", "encoder.embed_tokens.weight")


def published(part: str, name: str) -> str:
    """The name of a tensor in the published checkpoint, which is older than today's transformers."""
    if part != "text_encoder":
        return name
    if name.startswith(("embeddings.", "encoder.", "final_layer_norm.")):  # CLIP
        return f"text_model.{name}"
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def fill(parts: dict[str, Any], weight: Weight) -> dict[str, dict[str, list[int]]]:
    """Give every network its weights; the published names and shapes of them."""
    shapes: dict[str, dict[str, list[int]]] = {}
    for part, network in parts.items():
        shapes[part] = {}
        for own, value in network.state_dict().items():
            if own.endswith(_SKIPPED):
                continue
            name = published(part, own)
            shapes[part][name] = list(value.shape)
            value.copy_(torch.from_numpy(weight(part, name, tuple(value.shape))))
        network.eval()
    return shapes


def picture(pipe: Any, **options: Any) -> np.ndarray[Any, Any]:
    pipe.set_progress_bar_config(disable=True)
    image = pipe(output_type="np", **options).images[0]
    return np.ascontiguousarray(np.round(image * 255).astype(np.uint8))


def flux1_pipe(words: Path, clip_words: Path, changes: Any = (), scheduler: Any = None) -> tuple[Any, Any]:
    """A pipeline of FLUX.1, and its tensors' shapes."""
    k.write_t5_tokenizer(words)
    parts: dict[str, Any] = {
        "transformer": FluxTransformer2DModel(**{**f1.TRANSFORMER, **dict(changes)}),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**f1.CLIP)),
        "text_encoder_2": T5EncoderModel(T5Config(**f1.T5)),
        "vae": AutoencoderKL(**f1.VAE),
    }
    shapes = fill(parts, partial(k.weight, "flux1"))
    settings = {key: value for key, value in (scheduler or f1.SCHEDULER).items() if key != "_class_name"}
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**settings),
        tokenizer=CLIPTokenizer.from_pretrained(clip_words),
        tokenizer_2=AutoTokenizer.from_pretrained(words),
        **parts,
    )
    return pipe, shapes


def flux1(words: Path, clip_words: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    pictures, shapes = {}, {}
    for name, (changes, scheduler) in {"dev": ({}, f1.SCHEDULER), "schnell": f1.SCHNELL}.items():
        pipe, found = flux1_pipe(words, clip_words, changes, scheduler)
        shapes = shapes or found
        pictures[name] = picture(
            pipe,
            prompt=f1.PROMPT,
            height=f1.SIDE,
            width=f1.SIDE,
            num_inference_steps=f1.STEPS,
            guidance_scale=f1.GUIDANCE,
            max_sequence_length=512 if name == "dev" else 256,
            latents=torch.from_numpy(k.packed(k.noise())),
        )
    return shapes, pictures


def flux2_pipe(words: Path) -> tuple[Any, Any]:
    """A pipeline of FLUX.2 klein, and its tensors' shapes."""
    parts: dict[str, Any] = {
        "transformer": Flux2Transformer2DModel(**f2.TRANSFORMER),
        "vae": AutoencoderKLFlux2(**f2.VAE),
        "text_encoder": Qwen3ForCausalLM(Qwen3Config(**f2.TEXT, tie_word_embeddings=True)),
    }
    shapes = fill(parts, f2.weight)
    pipe = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        tokenizer=AutoTokenizer.from_pretrained(words),
        **parts,
    )
    return pipe, shapes


def flux2(words: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    pipe, shapes = flux2_pipe(words)
    side = f2.SIDE // 16
    latents = torch.from_numpy(f2.noise()).reshape(1, side, side, 128).permute(0, 3, 1, 2)
    pictures = {
        name: picture(
            pipe,
            prompt=f2.PROMPT,
            height=f2.SIDE,
            width=f2.SIDE,
            num_inference_steps=f2.STEPS,
            guidance_scale=guidance,
            latents=latents.clone(),
        )
        for name, guidance in f2.GUIDANCES.items()
    }
    return shapes, pictures


def qwen_image_pipe(words: Path) -> tuple[Any, Any]:
    """A pipeline of Qwen-Image, and its tensors' shapes."""
    configuration = Qwen2_5_VLConfig(text_config=q.TEXT, vision_config=q.VISION)
    parts: dict[str, Any] = {
        "transformer": QwenImageTransformer2DModel(**q.TRANSFORMER),
        "vae": AutoencoderKLQwenImage(**q.VAE),
        "text_encoder": Qwen2_5_VLForConditionalGeneration(configuration),
    }
    shapes = fill(parts, q.weight)
    settings = {key: value for key, value in q.SCHEDULER.items() if key != "_class_name"}
    pipe = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**settings),
        tokenizer=AutoTokenizer.from_pretrained(words),
        **parts,
    )
    return pipe, shapes


def qwen_image(words: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    pipe, shapes = qwen_image_pipe(words)
    pictures = {
        name: picture(
            pipe,
            prompt=q.PROMPT,
            negative_prompt=q.NEGATIVE if guidance > 1 else None,
            height=q.SIDE,
            width=q.SIDE,
            num_inference_steps=q.STEPS,
            true_cfg_scale=guidance,
            latents=torch.from_numpy(k.packed(k.noise())),
        )
        for name, guidance in q.GUIDANCES.items()
    }
    return shapes, pictures


def levels() -> dict[str, list[float]]:
    """Noise levels of schedulers, by `f1.LEVELS`' names, for `f1.WALKS`."""
    found = {}
    for name, settings in f1.LEVELS.items():
        for steps, places in f1.WALKS:
            scheduler = FlowMatchEulerDiscreteScheduler(**settings)
            shift = calculate_shift(
                places,
                settings.get("base_image_seq_len", 256),
                settings.get("max_image_seq_len", 4096),
                settings.get("base_shift", 0.5),
                settings.get("max_shift", 1.15),
            )
            dynamic = {"mu": shift} if settings.get("use_dynamic_shifting") else {}
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), **dynamic)
            found[f"{name}/{steps}/{places}"] = scheduler.sigmas.tolist()
    return found


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    clip_words = Path(sys.argv[1])
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else k.DATA
    with tempfile.TemporaryDirectory() as folder:
        t5_words, words = Path(folder) / "t5", Path(folder) / "words"
        t5_words.mkdir()
        z.write_tokenizer(words)
        families = {
            "flux1": lambda: flux1(t5_words, clip_words),
            "flux2": lambda: flux2(words),
            "qwen_image": lambda: qwen_image(words),
        }
        for family, make in families.items():
            shapes, pictures = make()
            for name, values in pictures.items():
                print(family, name, values.shape, "standard deviation", values.std())
            (out / f"{family}.shapes.json").write_text(json.dumps(shapes, indent=0) + "\n")
            save_file(pictures, out / f"{family}.pictures.safetensors")
    (out / "levels.json").write_text(json.dumps(levels(), indent=0) + "\n")


if __name__ == "__main__":
    main()
