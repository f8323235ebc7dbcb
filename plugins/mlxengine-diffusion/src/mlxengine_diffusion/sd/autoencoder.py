"""The autoencoder: diffuse-mlx's, with attention, decoding and encoding that stay small."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from diffuse_mlx.stable_diffusion.config import AutoencoderConfig
from diffuse_mlx.stable_diffusion.unet import upsample_nearest
from diffuse_mlx.stable_diffusion.vae import Attention, Autoencoder

from . import ops, tiles
from .blocks import set_eps, with_our_ops
from .config import Config, tile_side

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


def decoded(vae: Any, latents: mx.array, *, tiled: bool) -> Generator[None, None, mx.array]:
    """The picture of latents (1, height, width, channels): (height, width, 3), about -1 to 1."""

    def run(part: mx.array) -> Generator[None, None, mx.array]:
        return _last(_decoding(vae, part))

    tile, scale = vae.tile, vae.pixels_per_latent
    made = yield from (tiles.walk(run, latents, tile, tile * scale) if tiled else run(latents))
    return made[0]


def encoded(vae: Any, pixels: mx.array, *, tiled: bool) -> Generator[None, None, mx.array]:
    """The latents of a picture (1, height, width, 3) from -1 to 1: the mean of their distribution."""

    def run(part: mx.array) -> Generator[None, None, mx.array]:
        return _last(_encoding(vae, part))

    tile, scale = vae.tile, vae.pixels_per_latent
    return (yield from (tiles.walk(run, pixels, tile * scale, tile) if tiled else run(pixels)))


def _last(steps: Generator[mx.array, None, None]) -> Generator[None, None, mx.array]:
    """A turn for each step; what the last one made."""
    for features in steps:  # noqa: B007
        yield None
    return features


def _decoding(vae: Any, latents: mx.array) -> Generator[mx.array, None, None]:
    """The decoder's features, evaluated one convolution at a time; the last are the picture.

    One at a time, because in one graph several of them would live at once. It also keeps each of the
    scheduler's turns short.
    """
    decoder = vae.decoder
    x = decoder.conv_in(vae.post_quant_proj(latents / vae.scaling_factor + vae.shift_factor))
    for block in decoder.mid_blocks:
        x = block(x)
        yield _evaluated(x)
    for level in decoder.up_blocks:
        for block in level.resnets:
            x = yield from _through(block, x)
        if "upsample" in level:
            x = level.upsample(upsample_nearest(x))
            yield _evaluated(x)
    yield _evaluated(decoder.conv_out(ops.activated(decoder.conv_norm_out, x)))


def _encoding(vae: Any, pixels: mx.array) -> Generator[mx.array, None, None]:
    """The encoder's features in the same way; the last are the latents."""
    encoder = vae.encoder
    x = encoder.conv_in(pixels)
    for level in encoder.down_blocks:
        for block in level.resnets:
            x = yield from _through(block, x)
        if "downsample" in level:
            x = level.downsample(mx.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)]))
            yield _evaluated(x)
    for block in encoder.mid_blocks:
        x = block(x)
        yield _evaluated(x)
    x = vae.quant_proj(encoder.conv_out(ops.activated(encoder.conv_norm_out, x)))
    mean = x[..., : x.shape[-1] // 2]
    yield _evaluated((mean - vae.shift_factor) * vae.scaling_factor)


def _through(block: Any, x: mx.array) -> Generator[mx.array, None, mx.array]:
    """A residual block, in two turns."""
    y = block.conv1(ops.activated(block.norm1, x))
    yield _evaluated(y)
    y = block.conv2(ops.activated(block.norm2, y))
    x = y + (block.conv_shortcut(x) if "conv_shortcut" in block else x)
    yield _evaluated(x)
    return x


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
    made.pixels_per_latent = 2 ** (len(config["block_out_channels"]) - 1)
    made.tile = tile_side(config) // made.pixels_per_latent
    made.shift_factor = config.get("shift_factor") or 0.0
    for name, key in (("quant_proj", "use_quant_conv"), ("post_quant_proj", "use_post_quant_conv")):
        if not config.get(key, True):
            made[name] = nn.Identity()
    return made


__all__ = ["build_vae", "decoded", "encoded"]
