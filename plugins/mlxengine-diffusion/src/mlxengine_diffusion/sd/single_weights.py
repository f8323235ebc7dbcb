"""The tensors of a checkpoint in one file, under the names that diffusers and transformers give them.

Nothing is copied: names change, and what the original code keeps joined is sliced when it is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .original_names import original_clip_name, original_unet_name, original_vae_name
from .single_file import UNET, VAE, text_prefix
from .unet import UNet
from .weights import modules_by_origin

Tensors = Mapping[str, mx.array]
_JOINED = re.compile(r"(.+)\.self_attn\.([qkv])_proj")
_VELOCITY_SPREAD = 0.09
_LAST_NORM = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"


def part_of(tensors: Tensors, module: nn.Module, part: str) -> dict[str, mx.array]:
    """The tensors of one part of the pipeline, for `weights.fill`; those that it has no place for as well."""
    if part == "unet":
        assert isinstance(module, UNet)
        return _renamed(tensors, UNET, module, part, lambda name: original_unet_name(name, module) or name)
    if part == "vae":
        levels = len(module.decoder.up_blocks)
        return _renamed(tensors, VAE, module, part, lambda name: original_vae_name(name, levels))
    prefix, opened = text_prefix(part, {name: tuple(value.shape) for name, value in tensors.items()})
    if opened:
        return _open_clip(tensors, prefix, module, part)
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def predicts_velocity(tensors: Tensors) -> bool:
    """Whether a checkpoint of Stable Diffusion 2 is one for 768 pixels, which predict velocity.

    Nothing in the file says so. Its last norms do: they are spread about twice as wide as those of the base
    model (a fact that ComfyUI goes by, too).
    """
    found = tensors.get(_LAST_NORM)
    return found is not None and float(found.astype(mx.float32).std()) > _VELOCITY_SPREAD


def _renamed(
    tensors: Tensors, prefix: str, module: nn.Module, part: str, original: Callable[[str], str]
) -> dict[str, mx.array]:
    left = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    found = {}
    for name in {name for name, _, _, _ in modules_by_origin(module, part)}:
        for end in (".weight", ".bias"):
            if (value := left.pop(original(name) + end, None)) is not None:
                found[name + end] = value
    return found | left


def _open_clip(tensors: Tensors, prefix: str, module: Any, part: str) -> dict[str, mx.array]:
    """OpenCLIP's text encoder. Its last layer and projection are left where the model has none."""
    found = {}
    for name, _, _, _ in modules_by_origin(module, part):
        own = name.removeprefix("text_model.")
        if own == "text_projection":
            found[f"{name}.weight"] = tensors[f"{prefix}text_projection"].T
        elif own == "embeddings.position_embedding":
            found[f"{name}.weight"] = tensors[f"{prefix}positional_embedding"]
        elif joined := _JOINED.fullmatch(original_clip_name(own)):
            index = "qkv".index(joined[2])
            for end in ("weight", "bias"):
                value = tensors[f"{prefix}{joined[1]}.attn.in_proj_{end}"]
                found[f"{name}.{end}"] = mx.split(value, 3)[index]
        else:
            stem = prefix + original_clip_name(own)
            found |= {
                name + end: tensors[stem + end] for end in (".weight", ".bias") if stem + end in tensors
            }
    return found


__all__ = ["part_of", "predicts_velocity"]
