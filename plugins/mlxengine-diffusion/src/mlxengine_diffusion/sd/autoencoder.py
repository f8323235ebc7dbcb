"""The autoencoder: diffuse-mlx's, with attention and decoding that stay small."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from diffuse_mlx.stable_diffusion.config import AutoencoderConfig
from diffuse_mlx.stable_diffusion.unet import upsample_nearest
from diffuse_mlx.stable_diffusion.vae import Attention, Autoencoder

from . import ops
from .blocks import set_eps, with_our_ops
from .config import Config

_EPS = 1e-6
_ATTENTION_ROWS = 4096


class _RowwiseAttention(Attention):  # type: ignore[misc]
    """The autoencoder's attention with our own, some rows of its score matrix at a time."""

    def __call__(self, x: mx.array) -> mx.array:
        batch, height, width, channels = x.shape
        y = self.group_norm(x).reshape(batch, 1, height * width, channels)
        queries, keys, values = self.query_proj(y), self.key_proj(y), self.value_proj(y)
        scale = 1 / math.sqrt(channels)
        # At 1024 × 1024 pixels the whole score matrix is one GiB in float32.
        rows = [
            ops.attention(queries[:, :, start : start + _ATTENTION_ROWS], keys, values, scale)
            for start in range(0, height * width, _ATTENTION_ROWS)
        ]
        y = rows[0] if len(rows) == 1 else mx.concatenate(rows, axis=2)
        found: mx.array = x + self.out_proj(y.reshape(batch, height, width, channels))
        return found


def decoding(vae: Any, latents: mx.array) -> Iterator[mx.array]:
    """The decoder's features, evaluated one convolution at a time; the last is the picture, about -1 to 1.

    One at a time, because a convolution on a CPU holds nine copies of its input, and with the whole
    decoder in one graph several of them live at once. It also keeps each of the scheduler's turns short.
    """
    decoder = vae.decoder
    x = decoder.conv_in(vae.post_quant_proj(latents / vae.scaling_factor + vae.shift_factor))
    for block in decoder.mid_blocks:
        x = block(x)
        yield _evaluated(x)
    for level in decoder.up_blocks:
        for block in level.resnets:
            y = block.conv1(ops.activated(block.norm1, x))
            yield _evaluated(y)
            y = block.conv2(ops.activated(block.norm2, y))
            x = y + (block.conv_shortcut(x) if "conv_shortcut" in block else x)
            yield _evaluated(x)
        if "upsample" in level:
            x = level.upsample(upsample_nearest(x))
            yield _evaluated(x)
    yield _evaluated(decoder.conv_out(ops.activated(decoder.conv_norm_out, x)))


def encoded(vae: Any, pixels: mx.array) -> mx.array:
    """Latents (the distribution's mean) of a picture (1, height, width, 3), about -1 to 1."""
    mean, _ = vae.encode(pixels)
    found: mx.array = mean - vae.shift_factor * vae.scaling_factor
    return found


def _evaluated(x: mx.array) -> mx.array:
    mx.eval(x)
    return x


def build_vae(config: Config) -> Any:
    """An autoencoder with arbitrary weights from a ``vae/config.json``."""
    latent, groups = config["latent_channels"], config["norm_num_groups"]
    made = Autoencoder(
        AutoencoderConfig(
            in_channels=config["in_channels"],
            out_channels=config["out_channels"],
            latent_channels_out=2 * latent,
            latent_channels_in=latent,
            block_out_channels=tuple(config["block_out_channels"]),
            layers_per_block=config["layers_per_block"],
            norm_num_groups=groups,
            scaling_factor=config.get("scaling_factor", 0.18215),
        )
    )
    width = config["block_out_channels"][-1]
    for half in (made.encoder, made.decoder):
        half.mid_blocks[1] = _RowwiseAttention(width, groups)
    set_eps(made, _EPS)
    with_our_ops(made)
    made.shift_factor = config.get("shift_factor") or 0.0
    for name, key in (("quant_proj", "use_quant_conv"), ("post_quant_proj", "use_post_quant_conv")):
        if not config.get(key, True):
            made[name] = nn.Identity()
    return made


__all__ = ["build_vae", "decoding", "encoded"]
