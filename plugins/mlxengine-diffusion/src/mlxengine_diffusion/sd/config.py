"""The parts' configurations as diffusers writes them: what is understood, and what is refused by name.

Nothing here imports a model library, so that a model that cannot run is refused before it is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen
from mlxengine.errors import UnsupportedArchitectureError

Config = Mapping[str, Any]
_LARGEST_TILE = 512

# Settings that change what a part computes, with the only values that are implemented.
_UNET_FIXED: dict[str, tuple[object, ...]] = {
    "act_fn": ("silu",),
    "addition_embed_type": (None, "text_time"),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "cross_attention_norm": (None,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
_VAE_FIXED: dict[str, tuple[object, ...]] = {
    "act_fn": ("silu",),
    "latents_mean": (None,),
    "latents_std": (None,),
    "mid_block_add_attention": (True,),
    "shift_factor": (None, 0),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}
_CONTROL_FIXED: dict[str, tuple[object, ...]] = {
    "_class_name": ("ControlNetModel",),
    "conditioning_channels": (3,),
    "controlnet_conditioning_channel_order": ("rgb",),
    "global_pool_conditions": (False,),
}
_CONTROL_NEEDED = (
    "in_channels",
    "block_out_channels",
    "layers_per_block",
    "attention_head_dim",
    "cross_attention_dim",
    "down_block_types",
    "norm_num_groups",
)
_CLIP_FIXED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("quick_gelu", "gelu"),
    "model_type": ("clip_text_model", "clip"),
}
_BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
_VAE_BLOCKS = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}


def read_config(file: Path) -> Config:
    """A ``config.json``.

    Raises:
        UnsupportedArchitectureError: it is no JSON.
    """
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnsupportedArchitectureError(f"{file} is no configuration: {error}.") from error
    return config if isinstance(config, Mapping) else {}


def _refused(config: Config, fixed: Mapping[str, tuple[object, ...]]) -> list[str]:
    return [
        f"{key}={config[key]!r}" for key, known in fixed.items() if config.get(key, known[0]) not in known
    ]


def _unknown_blocks(config: Config, known: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [
        f"{key} with {name!r}"
        for key, names in known.items()
        for name in config.get(key, ())
        if name not in names
    ]


@frozen(kw_only=True)
class UNetSettings:
    """A UNet's shape. Tuples hold one entry per resolution, from the finest to the coarsest."""

    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    depth: tuple[int, ...]
    context: tuple[int, ...]
    down_attention: tuple[bool, ...]
    up_attention: tuple[bool, ...]
    groups: int
    eps: float
    kernel_in: int
    kernel_out: int
    size_embedding: int | None
    added_width: int | None
    sample_size: int

    @classmethod
    def read(cls, config: Config) -> UNetSettings:
        """Read a decoded ``unet/config.json`` that `unet_problems` found nothing wrong with."""
        channels = tuple(config["block_out_channels"])

        def each(value: Any) -> tuple[Any, ...]:
            return tuple(value) if isinstance(value, list | tuple) else (value,) * len(channels)

        added = config.get("addition_embed_type") == "text_time"
        return cls(
            in_channels=config["in_channels"],
            out_channels=config["out_channels"],
            channels=channels,
            layers=each(config["layers_per_block"]),
            # diffusers' "attention_head_dim" is, for these models, the number of heads.
            heads=each(config.get("num_attention_heads") or config["attention_head_dim"]),
            depth=each(config.get("transformer_layers_per_block", 1)),
            context=each(config["cross_attention_dim"]),
            down_attention=tuple("CrossAttn" in name for name in config["down_block_types"]),
            up_attention=tuple("CrossAttn" in name for name in config["up_block_types"]),
            groups=config["norm_num_groups"],
            eps=config.get("norm_eps", 1e-5),
            kernel_in=config.get("conv_in_kernel", 3),
            kernel_out=config.get("conv_out_kernel", 3),
            size_embedding=config["addition_time_embed_dim"] if added else None,
            added_width=config["projection_class_embeddings_input_dim"] if added else None,
            sample_size=config.get("sample_size") or 64,
        )


def unet_problems(config: Config, latent_channels: int) -> list[str]:
    """Settings of a ``unet/config.json`` that are not implemented; empty if it can be built."""
    wrong = _refused(config, _UNET_FIXED) + _unknown_blocks(config, _BLOCKS)
    if config.get("in_channels") not in (latent_channels, 2 * latent_channels + 1):
        # Inpainting models are shown a mask and another picture's latents; depth models something else.
        wrong.append(f"in_channels={config.get('in_channels')!r} for latents of {latent_channels}")
    return wrong


def control_problems(config: Config) -> list[str]:
    """Settings of a ControlNet's ``config.json`` that are not implemented; empty if it can be built."""
    fixed = {**_UNET_FIXED, **_CONTROL_FIXED}
    absent = [f"no {key}" for key in _CONTROL_NEEDED if key not in config]
    return _refused(config, fixed) + _unknown_blocks(config, _BLOCKS) + absent


def vae_problems(config: Config) -> list[str]:
    """Settings of a ``vae/config.json`` that are not implemented; empty if it can be built."""
    return _refused(config, _VAE_FIXED) + _unknown_blocks(config, _VAE_BLOCKS)


def tile_side(vae: Config) -> int:
    """Pixels along a side of a tile of the autoencoder: the size it was trained at, 512 at most."""
    return min(int(vae.get("sample_size") or _LARGEST_TILE), _LARGEST_TILE)


def clip_problems(config: Config) -> list[str]:
    """Settings of a text encoder's ``config.json`` that are not implemented; empty if it can be built."""
    return _refused(config, _CLIP_FIXED)


__all__ = [
    "Config",
    "UNetSettings",
    "clip_problems",
    "control_problems",
    "read_config",
    "tile_side",
    "unet_problems",
    "vae_problems",
]
