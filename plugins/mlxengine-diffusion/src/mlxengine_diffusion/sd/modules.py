"""The networks: diffuse-mlx's blocks, put together as a configuration says.

The blocks are the library's. The assembly of the UNet is ours, because the library's fixes the number of
groups of its transformers' norms at 32, leaves out the epsilons that the checkpoints were trained with,
and takes only sizes that can be halved at every level.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from diffuse_mlx.stable_diffusion.clip import CLIPTextModel
from diffuse_mlx.stable_diffusion.config import AutoencoderConfig, CLIPTextModelConfig
from diffuse_mlx.stable_diffusion.unet import (
    ResnetBlock2D,
    TimestepEmbedding,
    Transformer2D,
    TransformerBlock,
    upsample_nearest,
)
from diffuse_mlx.stable_diffusion.vae import Attention, Autoencoder

from . import ops
from .config import Config, UNetSettings

_TRANSFORMER_EPS = 1e-6
_VAE_EPS = 1e-6
_ATTENTION_ROWS = 4096


def sinusoids(values: mx.array, width: int) -> mx.array:
    """Sinusoidal features (cosines first) of shape (*values.shape, width), float32 (Vaswani et al. 2017)."""
    half = width // 2
    exponents = np.float32(-math.log(10000)) * np.arange(half, dtype=np.float32) / np.float32(half)
    angles = values[..., None].astype(mx.float32) * mx.array(np.exp(exponents))
    return mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1)


def set_eps(module: nn.Module, eps: float) -> None:
    """Give every group norm inside ``module`` this epsilon (the library builds them with 1e-5)."""
    for _, item in module.named_modules():
        if isinstance(item, nn.GroupNorm):
            item.eps = eps


class _Level(nn.Module):  # type: ignore[misc]
    """The blocks of one resolution, on the way down or up."""

    def __init__(
        self, shape: UNetSettings, level: int, inputs: list[int], *, attention: bool, down: bool, up: bool
    ) -> None:
        super().__init__()
        width = shape.channels[level]
        self.resnets = [
            ResnetBlock2D(channels, width, groups=shape.groups, temb_channels=4 * shape.channels[0])
            for channels in inputs
        ]
        set_eps(self, shape.eps)
        if attention:
            self.attentions = [_transformer(shape, level) for _ in inputs]
        if down:
            self.downsample = nn.Conv2d(width, width, 3, stride=2, padding=1)
        if up:
            self.upsample = nn.Conv2d(width, width, 3, padding=1)

    def layer(self, index: int, x: mx.array, time: mx.array, context: mx.array) -> mx.array:
        x = self.resnets[index](x, time)
        if "attentions" in self:
            x = self.attentions[index](x, context, None, None)
        return x


class _Middle(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: UNetSettings) -> None:
        super().__init__()
        width, time = shape.channels[-1], 4 * shape.channels[0]
        self.resnets = [
            ResnetBlock2D(width, width, groups=shape.groups, temb_channels=time) for _ in range(2)
        ]
        set_eps(self, shape.eps)
        self.attentions = [_transformer(shape, len(shape.channels) - 1)]

    def __call__(self, x: mx.array, time: mx.array, context: mx.array) -> mx.array:
        x = self.resnets[0](x, time)
        found: mx.array = self.resnets[1](self.attentions[0](x, context, None, None), time)
        return found


def _transformer(shape: UNetSettings, level: int) -> nn.Module:
    width = shape.channels[level]
    made: nn.Module = Transformer2D(
        in_channels=width,
        model_dims=width,
        encoder_dims=shape.context[level],
        num_heads=shape.heads[level],
        num_layers=shape.depth[level],
        norm_num_groups=shape.groups,
    )
    set_eps(made, _TRANSFORMER_EPS)
    return made


class UNet(nn.Module):  # type: ignore[misc]
    """The network that predicts the noise (or velocity) in latents."""

    def __init__(self, shape: UNetSettings) -> None:
        super().__init__()
        self.shape = shape
        widths, last = shape.channels, len(shape.channels) - 1
        time = 4 * widths[0]
        self.conv_in = nn.Conv2d(
            shape.in_channels, widths[0], shape.kernel_in, padding=(shape.kernel_in - 1) // 2
        )
        self.time_embedding = TimestepEmbedding(widths[0], time)
        if shape.added_width is not None:
            self.add_embedding = TimestepEmbedding(shape.added_width, time)
        skips, width = [widths[0]], widths[0]
        self.down_blocks = []
        for level, following in enumerate(widths):
            inputs = [width] + [following] * (shape.layers[level] - 1)
            self.down_blocks.append(
                _Level(
                    shape,
                    level,
                    inputs,
                    attention=shape.down_attention[level],
                    down=level < last,
                    up=False,
                )
            )
            skips += [following] * (shape.layers[level] + (level < last))
            width = following
        self.mid_block = _Middle(shape)
        self.up_blocks = []
        for position, level in enumerate(reversed(range(len(widths)))):
            inputs = []
            for _ in range(shape.layers[level] + 1):
                inputs.append(width + skips.pop())
                width = widths[level]
            self.up_blocks.append(
                _Level(
                    shape,
                    level,
                    inputs,
                    attention=shape.up_attention[position],
                    down=False,
                    up=level > 0,
                )
            )
        self.conv_norm_out = nn.GroupNorm(shape.groups, widths[0], eps=shape.eps, pytorch_compatible=True)
        self.conv_out = nn.Conv2d(
            widths[0], shape.out_channels, shape.kernel_out, padding=(shape.kernel_out - 1) // 2
        )

    def __call__(
        self, x: mx.array, time: mx.array, context: mx.array, added: tuple[mx.array, mx.array] | None = None
    ) -> mx.array:
        """Predict, for latents ``x`` (batch, height, width, channels) at the timesteps ``time`` (batch,).

        Args:
            context: the prompts' states, (batch, tokens, width).
            added: SDXL's pooled prompt (batch, width) and its six size numbers (batch, 6).
        """
        embedding = self.time_embedding(sinusoids(time, self.shape.channels[0]).astype(x.dtype))
        if added is not None and self.shape.size_embedding is not None:
            pooled, sizes = added
            flat = sinusoids(sizes, self.shape.size_embedding).flatten(1).astype(x.dtype)
            embedding = embedding + self.add_embedding(mx.concatenate([pooled, flat], axis=-1))
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            for index in range(len(block.resnets)):
                x = block.layer(index, x, embedding, context)
                skips.append(x)
            if "downsample" in block:
                x = block.downsample(x)
                skips.append(x)
        x = self.mid_block(x, embedding, context)
        for block in self.up_blocks:
            for index in range(len(block.resnets)):
                x = block.layer(index, mx.concatenate([x, skips.pop()], axis=-1), embedding, context)
            if "upsample" in block:
                # An odd size was rounded up on the way down: cut what doubling it adds.
                height, width = skips[-1].shape[1:3]
                x = block.upsample(upsample_nearest(x)[:, :height, :width])
        found: mx.array = self.conv_out(ops.activated(self.conv_norm_out, x))
        return found


class _GroupNorm(nn.GroupNorm):  # type: ignore[misc]
    """mlx's layer with our arithmetic."""

    def __call__(self, x: mx.array) -> mx.array:
        if ops.in_numpy(x):
            return ops.group_norm(self, x)
        found: mx.array = super().__call__(x)
        return found


class _Resnet(ResnetBlock2D):  # type: ignore[misc]
    """The library's block with our activation."""

    def __call__(self, x: mx.array, time: mx.array | None = None) -> mx.array:
        y = self.conv1(ops.activated(self.norm1, x))
        if time is not None:
            y = y + self.time_emb_proj(ops.silu(time))[:, None, None, :]
        y = self.conv2(ops.activated(self.norm2, y))
        found: mx.array = y + (self.conv_shortcut(x) if "conv_shortcut" in self else x)
        return found


class _Attention(nn.MultiHeadAttention):  # type: ignore[misc]
    """The library's layer with our attention."""

    def __call__(self, queries: mx.array, keys: mx.array, values: mx.array, mask: None = None) -> mx.array:
        q, k, v = (
            mx.unflatten(layer(given), -1, (self.num_heads, -1)).transpose(0, 2, 1, 3)
            for layer, given in (
                (self.query_proj, queries),
                (self.key_proj, keys),
                (self.value_proj, values),
            )
        )
        assert mask is None
        mixed = ops.attention(q, k, v, 1 / math.sqrt(q.shape[-1]))
        found: mx.array = self.out_proj(mixed.transpose(0, 2, 1, 3).flatten(-2, -1))
        return found


class _Block(TransformerBlock):  # type: ignore[misc]
    """The library's block with our activation."""

    def __call__(self, x: mx.array, memory: mx.array, attn_mask: None, memory_mask: None) -> mx.array:
        y = self.norm1(x)
        x = x + self.attn1(y, y, y, attn_mask)
        x = x + self.attn2(self.norm2(x), memory, memory, memory_mask)
        y = self.norm3(x)
        found: mx.array = x + self.linear3(self.linear1(y) * ops.gelu(self.linear2(y)))
        return found


def _with_our_ops(module: nn.Module) -> None:
    ours: dict[type, type] = {
        ResnetBlock2D: _Resnet,
        TransformerBlock: _Block,
        nn.GroupNorm: _GroupNorm,
    }
    for _, item in module.named_modules():
        item.__class__ = ours.get(type(item), type(item))
        if isinstance(item, _Block):
            item.attn1.__class__ = item.attn2.__class__ = _Attention


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
    x = decoder.conv_in(vae.post_quant_proj(latents / vae.scaling_factor))
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


def _evaluated(x: mx.array) -> mx.array:
    mx.eval(x)
    return x


def build_unet(config: Config) -> UNet:
    """A UNet with arbitrary weights from a ``unet/config.json``."""
    made = UNet(UNetSettings.read(config))
    _with_our_ops(made)
    return made


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
    set_eps(made, _VAE_EPS)
    _with_our_ops(made)
    return made


def build_clip(config: Config, *, projection: bool) -> Any:
    """A CLIP text encoder with arbitrary weights; ``projection`` adds the one of the pooled output."""
    width = config["hidden_size"]
    made = CLIPTextModel(
        CLIPTextModelConfig(
            num_layers=config["num_hidden_layers"],
            model_dims=width,
            num_heads=config["num_attention_heads"],
            max_length=config["max_position_embeddings"],
            vocab_size=config["vocab_size"],
            projection_dim=config["projection_dim"] if projection else None,
            hidden_act=config.get("hidden_act", "quick_gelu"),
        )
    )
    inner, eps = config["intermediate_size"], config.get("layer_norm_eps", 1e-5)
    for layer in made.layers:
        if inner != 4 * width:
            layer.linear1, layer.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        layer.layer_norm1.eps = layer.layer_norm2.eps = eps
    made.final_layer_norm.eps = eps
    return made


__all__ = ["UNet", "build_clip", "build_unet", "build_vae", "decoding", "sinusoids"]
