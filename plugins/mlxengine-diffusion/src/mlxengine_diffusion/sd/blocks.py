"""diffuse-mlx's blocks with our arithmetic."""

from __future__ import annotations

import math

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
        if ops.in_numpy(x):
            return ops.group_norm(self, x)
        found: mx.array = super().__call__(x)
        return found


class _Convolution(nn.Conv2d):  # type: ignore[misc]
    """mlx's layer, some rows at a time."""

    def __call__(self, x: mx.array) -> mx.array:
        if ops.in_numpy(x):
            return ops.convolved(self, x)
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
        scale = 1 / math.sqrt(q.shape[-1])
        mixed = ops.attention(q, k, v, scale)
        for strength, *told in self.get("seen", ()):  # of IP-Adapters
            k, v = (mx.unflatten(item, -1, (self.num_heads, -1)).transpose(0, 2, 1, 3) for item in told)
            mixed = mixed + strength * ops.attention(q, k, v, scale)
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


def with_our_ops(module: nn.Module) -> None:
    """Let every block inside ``module`` compute as `ops` does."""
    ours: dict[type, type] = {
        ResnetBlock2D: _Resnet,
        TransformerBlock: _Block,
        nn.GroupNorm: _GroupNorm,
        nn.Conv2d: _Convolution,
    }
    for _, item in module.named_modules():
        item.__class__ = ours.get(type(item), type(item))
        if isinstance(item, _Block):
            item.attn1.__class__ = item.attn2.__class__ = _Attention


__all__ = ["set_eps", "with_our_ops"]
