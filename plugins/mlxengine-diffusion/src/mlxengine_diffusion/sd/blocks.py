"""diffuse-mlx's blocks with our arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn
from diffuse_mlx.stable_diffusion.unet import ResnetBlock2D, TransformerBlock

from . import ops


def set_eps(module: nn.Module, eps: float) -> None:
    """Give every group norm inside ``module`` this epsilon (the library builds them with 1e-5)."""
    for _, item in module.named_modules():
        if isinstance(item, nn.GroupNorm):
            item.eps = eps


class _GroupNorm(nn.GroupNorm):  # type: ignore[misc]
    """mlx's layer with our arithmetic."""

    def __call__(self, x: mx.array) -> mx.array:
        return ops.group_norm(self, x)


class _LayerNorm(nn.LayerNorm):  # type: ignore[misc]
    """mlx's layer with our arithmetic."""

    def __call__(self, x: mx.array) -> mx.array:
        return ops.layer_norm(self, x)


class _Convolution(nn.Conv2d):  # type: ignore[misc]
    """mlx's layer, some rows at a time."""

    def __call__(self, x: mx.array) -> mx.array:
        if ops.in_numpy(x):
            return ops.convolved(self, x)
        found: mx.array = super().__call__(x)
        return found

    def unbiased(self, x: mx.array) -> mx.array:
        """The same without the bias, which is left to whoever comes next."""
        if ops.in_numpy(x):
            return ops.convolved(self, x, biased=False)
        return mx.conv2d(x, self.weight, self.stride, self.padding, self.dilation, self.groups)


class _Resnet(ResnetBlock2D):  # type: ignore[misc]
    """The library's block with our activation; ``time`` is what its `timed` made."""

    def timed(self, active: mx.array) -> mx.array:
        """What the time adds to its features, with the first convolution's bias; once a picture."""
        found: mx.array = self.time_emb_proj(active)
        return found + self.conv1.bias if type(self.conv1) is _Convolution else found

    def __call__(self, x: mx.array, time: mx.array | None = None) -> mx.array:
        y = ops.activated(self.norm1, x)
        # An adapter's layer in its place keeps its bias.
        apart = time is not None and type(self.conv1) is _Convolution
        y = self.conv1.unbiased(y) if apart else self.conv1(y)
        y = ops.activated(self.norm2, y, time)
        beside = self.conv_shortcut(x) if "conv_shortcut" in self else x
        if type(self.conv2) is not _Convolution or ops.in_numpy(y):
            found: mx.array = self.conv2(y) + beside
            return found
        return ops.joined(self.conv2.unbiased(y), self.conv2.bias, beside)


class _Attention(nn.MultiHeadAttention):  # type: ignore[misc]
    """The library's layer with our attention."""

    def read(self, memory: mx.array) -> tuple[mx.array, mx.array]:
        """Keys and values: (batch, heads, rows, width) each."""
        return self.heads(self.key_proj(memory)), self.heads(self.value_proj(memory))

    def __call__(self, x: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        q = self.heads(self.query_proj(x))
        scale = 1 / math.sqrt(q.shape[-1])
        mixed = ops.attention(q, keys, values, scale)
        for strength, k, v in self.get("seen", ()):  # of IP-Adapters
            mixed = mixed + strength * ops.attention(q, k, v, scale)
        found: mx.array = self.out_proj(mixed.transpose(0, 2, 1, 3).flatten(-2, -1))
        return found

    def told(self, memory: mx.array) -> tuple[mx.array, mx.array]:
        """The same of what every step reads: laid out once."""
        keys, values = self.read(memory)
        return mx.contiguous(keys), mx.contiguous(values)

    def heads(self, x: mx.array) -> mx.array:
        """Queries, keys or values (batch, rows, all widths) by head: (batch, heads, rows, width)."""
        return mx.unflatten(x, -1, (self.num_heads, -1)).transpose(0, 2, 1, 3)


class _Block(TransformerBlock):  # type: ignore[misc]
    """The library's block with our activation; of the prompts it takes the next keys and values."""

    def __call__(self, x: mx.array, told: Iterator[tuple[mx.array, mx.array]], *_masks: None) -> mx.array:
        y = self.norm1(x)
        x = x + self.attn1(y, *self.attn1.read(y))
        x = x + self.attn2(self.norm2(x), *next(told))
        y = self.norm3(x)
        found: mx.array = x + self.linear3(ops.gated_products(self.linear1, self.linear2, y))
        return found


def with_our_ops(module: nn.Module) -> None:
    """Let every block inside ``module`` compute as `ops` does."""
    ours: dict[type, type] = {
        ResnetBlock2D: _Resnet,
        TransformerBlock: _Block,
        nn.GroupNorm: _GroupNorm,
        nn.LayerNorm: _LayerNorm,
        nn.Conv2d: _Convolution,
        nn.Linear: ops.Linear,
    }
    for _, item in module.named_modules():
        item.__class__ = ours.get(type(item), type(item))
        if isinstance(item, _Block):
            item.attn1.__class__ = item.attn2.__class__ = _Attention


__all__ = ["set_eps", "with_our_ops"]
