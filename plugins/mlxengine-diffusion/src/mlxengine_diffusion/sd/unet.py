"""The UNet: diffuse-mlx's blocks, put together as a configuration says.

The assembly is ours, because the library's fixes the number of groups of its transformers' norms at 32,
leaves out the epsilons that the checkpoints were trained with, and takes only sizes that can be halved at
every level.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from attrs import frozen
from diffuse_mlx.stable_diffusion.unet import (
    ResnetBlock2D,
    TimestepEmbedding,
    Transformer2D,
    upsample_nearest,
)
from mlx.utils import tree_flatten
from mlxengine.toolkit.cache import keep_pages

from . import ops
from .blocks import set_eps, with_our_ops
from .config import Config, UNetSettings

_TRANSFORMER_EPS = 1e-6


def sinusoids(values: mx.array, width: int) -> mx.array:
    """Sinusoidal features (cosines first) of shape (*values.shape, width), float32 (Vaswani et al. 2017)."""
    half = width // 2
    exponents = np.float32(-math.log(10000)) * np.arange(half, dtype=np.float32) / np.float32(half)
    angles = values[..., None].astype(mx.float32) * mx.array(np.exp(exponents))
    return mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1)


@frozen
class Given:
    """What the layers take beside the features, each in its turn.

    Args:
        timed: by residual block, what the time adds to its features, (rows or 1, width).
        told: by layer of cross-attention, the prompts' keys and values, (rows, heads, tokens, width).
    """

    timed: Iterator[mx.array]
    told: Iterator[tuple[mx.array, mx.array]]


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

    def layer(self, index: int, x: mx.array, given: Given) -> mx.array:
        x = self.resnets[index](x, next(given.timed))
        if "attentions" in self:
            x = self.attentions[index](x, given.told, None, None)
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

    def __call__(self, x: mx.array, given: Given) -> mx.array:
        x = self.attentions[0](self.resnets[0](x, next(given.timed)), given.told, None, None)
        found: mx.array = self.resnets[1](x, next(given.timed))
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


class Encoder(nn.Module):  # type: ignore[misc]
    """The way down to the coarsest resolution, which a UNet and a ControlNet share."""

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
        self.skip_widths = tuple(skips)

    @property
    def nbytes(self) -> int:
        """Bytes of its weights, read or not."""
        return sum(array.nbytes for _, array in tree_flatten(self.parameters()))

    def timed(self, time: mx.array, added: tuple[mx.array, mx.array] | None, dtype: mx.Dtype) -> mx.array:
        """What the times (rows,) add to the features of all residual blocks: (rows, their widths together).

        Args:
            added: SDXL's pooled prompt (rows, width) and its six size numbers (rows, 6).
        """
        embedding = self.time_embedding(sinusoids(time, self.shape.channels[0]).astype(dtype))
        if added is not None and self.shape.size_embedding is not None:
            pooled, sizes = added
            flat = sinusoids(sizes, self.shape.size_embedding).flatten(1).astype(dtype)
            embedding = embedding + self.add_embedding(mx.concatenate([pooled, flat], axis=-1))
        active = ops.silu(embedding)
        return mx.concatenate([block.timed(active) for block in self._resnets()], axis=-1)

    def told(self, context: mx.array) -> list[tuple[mx.array, mx.array]]:
        """Keys and values of the prompts' states (rows, tokens, width), by layer of cross-attention."""
        return [
            block.attn2.told(context)
            for level in self._levels()
            for transformer in level.get("attentions", ())
            for block in transformer.transformer_blocks
        ]

    def _levels(self) -> list[nn.Module]:
        return [*self.down_blocks, self.mid_block, *self.get("up_blocks", ())]

    def _resnets(self) -> list[nn.Module]:
        return [block for level in self._levels() for block in level.resnets]

    def encoded(
        self,
        x: mx.array,
        timed: mx.array,
        told: Iterable[tuple[mx.array, mx.array]],
        beside: mx.array | None = None,
    ) -> tuple[mx.array, list[mx.array], Given]:
        """The features in the middle, those on the way, and what is given to the layers behind.

        Args:
            timed: one row of what `timed` makes, or one for each row of ``x``.
            told: what `told` makes.
            beside: what is added to the first features.
        """
        ends = np.cumsum([block.norm2.dims for block in self._resnets()])[:-1].tolist()
        given = Given(iter(mx.split(timed, ends, axis=-1)), iter(told))
        x = self.conv_in(x)
        if beside is not None:
            x = x + beside
        skips = [x]
        for block in self.down_blocks:
            for index in range(len(block.resnets)):
                x = block.layer(index, x, given)
                skips.append(x)
            if "downsample" in block:
                x = block.downsample(x)
                skips.append(x)
        return self.mid_block(x, given), skips, given


class UNet(Encoder):
    """The network that predicts the noise (or velocity) in latents."""

    def __init__(self, shape: UNetSettings) -> None:
        super().__init__(shape)
        widths, skips, width = shape.channels, list(self.skip_widths), shape.channels[-1]
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
        self,
        x: mx.array,
        time: mx.array,
        context: mx.array,
        added: tuple[mx.array, mx.array] | None = None,
        more: list[mx.array] | None = None,
    ) -> mx.array:
        """Predict, for latents ``x`` (batch, height, width, channels) at the timesteps ``time`` (batch,).

        Args:
            context: the prompts' states, (batch, tokens, width).
            added: SDXL's pooled prompt (batch, width) and its six size numbers (batch, 6).
            more: what ControlNets add to the features on the way down, and in the middle (the last).
        """
        return self.predicted(x, self.timed(time, added, x.dtype), self.told(context), more)

    def predicted(
        self,
        x: mx.array,
        timed: mx.array,
        told: Iterable[tuple[mx.array, mx.array]],
        more: list[mx.array] | None = None,
    ) -> mx.array:
        """The same from what evaluations have in common: see `encoded`."""
        x, skips, given = self.encoded(x, timed, told)
        if more is not None:
            *beside, middle = more
            skips = [skip + item for skip, item in zip(skips, beside, strict=True)]
            x = x + middle
        for block in self.up_blocks:
            for index in range(len(block.resnets)):
                x = block.layer(index, mx.concatenate([x, skips.pop()], axis=-1), given)
            if "upsample" in block:
                # An odd size was rounded up on the way down: cut what doubling it adds.
                height, width = skips[-1].shape[1:3]
                x = block.upsample(upsample_nearest(x)[:, :height, :width])
        found: mx.array = self.conv_out(ops.activated(self.conv_norm_out, x))
        return found


def build_unet(config: Config) -> UNet:
    """A UNet with arbitrary weights from a ``unet/config.json``."""
    keep_pages()
    made = UNet(UNetSettings.read(config))
    with_our_ops(made)
    return made


__all__ = ["Encoder", "UNet", "build_unet", "sinusoids"]
