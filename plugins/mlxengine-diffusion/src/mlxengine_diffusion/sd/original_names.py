"""How layers were called in the code that the checkpoints were trained with, latent-diffusion's.

Adapters of kohya's form write these names, and checkpoints in one file have them. Source: the module names of
github.com/CompVis/latent-diffusion (``openaimodel.py``, ``model.py``) and github.com/mlfoundations/open_clip.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from .unet import UNet

_ORIGINAL: Mapping[str, str] = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_MIDDLE = {("resnets", "0"): "0", ("attentions", "0"): "1", ("resnets", "1"): "2"}
_PLACE = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def original_unet_name(name: str, network: UNet) -> str | None:
    """The name in the original latent-diffusion code, which numbers blocks through all resolutions."""
    if name in _ORIGINAL:
        return _ORIGINAL[name]
    if name.startswith("mid_block."):
        _, kind, index, rest = name.split(".", 3)
        return f"middle_block.{_MIDDLE[kind, index]}.{_ORIGINAL.get(rest, rest)}"
    match = _PLACE.fullmatch(name)
    if match is None:
        return None
    way, level, kind, place, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    blocks = network.down_blocks if way == "down" else network.up_blocks
    before = sum(len(block.resnets) + (way == "down") for block in blocks[:level])
    if kind == "downsamplers":
        return f"input_blocks.{1 + before + len(blocks[level].resnets)}.0.op"
    if kind == "upsamplers":
        last = before + len(blocks[level].resnets) - 1
        return f"output_blocks.{last}.{2 if 'attentions' in blocks[level] else 1}.conv"
    prefix = f"input_blocks.{1 + before + place}" if way == "down" else f"output_blocks.{before + place}"
    return f"{prefix}.{0 if kind == 'resnets' else 1}.{_ORIGINAL.get(rest, rest)}"


_VAE = (
    (r"(en|de)coder\.conv_norm_out", r"\1coder.norm_out"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"(down|up)samplers\.0\.conv", r"\1sample.conv"),
    (r"resnets\.", "block."),
    (r"conv_shortcut", "nin_shortcut"),
)


def original_vae_name(name: str, levels: int) -> str:
    """A layer of the autoencoder; its decoder counts ``levels`` resolutions from the finest."""
    name = re.sub(r"down_blocks\.(\d+)", r"down.\1", name)
    name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{levels - 1 - int(match[1])}", name)
    for ours, theirs in _VAE:
        name = re.sub(ours, theirs, name)
    return name


_OPEN_CLIP = (
    ("embeddings.token_embedding", "token_embedding"),
    ("encoder.layers.", "transformer.resblocks."),
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("self_attn.out_proj", "attn.out_proj"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("final_layer_norm", "ln_final"),
)


def original_clip_name(name: str) -> str:
    """A layer of OpenCLIP's text encoder, by its name in transformers (without ``text_model.``)."""
    for ours, theirs in _OPEN_CLIP:
        name = name.replace(ours, theirs)
    return name


__all__ = ["original_clip_name", "original_unet_name", "original_vae_name"]
