"""Quicker blocks for encoders, most of them for a CPU.

On a CPU mlx computes ``erf``, ``exp`` and with them GELU and softmax one element at a time, at 25 to 60 ns
each: for short texts GELU alone takes longer than all products together. The functions here use
multiplications and additions only, which run many elements at a time, and agree with the exact ones to the
last bits of fp32:

- ``GELU(x) = max(x, 0) - |x| / (2 P(|x|)^32)``: a form of Hastings' approximation of the complementary error
  function (Approximations for Digital Computers, 1955, sheet 48), with a polynomial of degree 5 fitted to
  GELU itself: within 9e-7.
- ``exp(x) = Q(x / 64)^64`` for x from -25 to 0, with a polynomial of degree 5: within 8e-6 of its value.
  Below -25 it stays at 1e-11, nothing beside the 1 that the largest term of a softmax has.

Layer norms take their two means as products, which a BLAS has, instead of mlx's sums along an axis, and all
that follows them in one pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ._bert import Bert
from ._bert import SelfAttention as Plain

Array = Any
_log = logging.getLogger("mlxengine.embed")

_HALVED = 2 ** (1 / 32)  # puts the factor 1/2 of GELU into the polynomial
_GELU = tuple(
    _HALVED * value
    for value in (1.00000021, 0.024932328, 0.0102605231, 0.0013887582, -7.93913701e-05, 1.97815112e-05)
)
_LOWEST = -25.0
_EXP = tuple(
    value / 64**power
    for power, value in enumerate(
        (0.9999999955, 0.9999995176, 0.4999875603, 0.1665379103, 0.04103752646, 0.006864877743)
    )
)
_SMALL = 1 << 14
"""Attention scores up to which mlx's own attention is quicker: its few calls cost less than its ``exp``."""


def _polynomial(x: Array, coefficients: tuple[float, ...]) -> Array:
    value = x * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        value = value * x + coefficient
    return value


def _gelu_start(x: Array) -> Array:
    return _polynomial(mx.abs(x), _GELU)


def _gelu_end(x: Array, value: Array) -> Array:
    for _ in range(5):
        value = value * value
    return mx.maximum(x, 0) - mx.abs(x) / value


def _exp_start(x: Array) -> Array:
    return _polynomial(mx.maximum(x, _LOWEST), _EXP)


def _exp_end(value: Array) -> Array:
    for _ in range(6):
        value = value * value
    return value


def _squared(x: Array, mean: Array) -> Array:
    return (x - mean) * (x - mean)


def _scaled(x: Array, mean: Array, by: Array, weight: Array) -> Array:
    return (x - mean) * by * weight


def _shifted(x: Array, mean: Array, by: Array, weight: Array, bias: Array) -> Array:
    return (x - mean) * by * weight + bias


class Kernels:
    """The functions above, compiled where a C++ compiler is at hand.

    Each is cut in two, because mlx fuses at most eleven operations in depth into one loop.
    """

    def __init__(self) -> None:
        plain = (_gelu_start, _gelu_end, _exp_start, _exp_end, _squared, _scaled, _shifted)
        self.compiled = True
        try:
            self._use(tuple(mx.compile(function, shapeless=True) for function in plain))
            sample = mx.ones((2, 2), dtype=mx.float32)
            mx.eval(self.gelu(sample), self.exp(-sample))
        except Exception as error:
            _log.info("mlx cannot compile on this CPU (%s); its operations run one by one", error)
            self.compiled = False
            self._use(plain)

    def _use(self, functions: tuple[Callable[..., Array], ...]) -> None:
        self._gelu_start, self._gelu_end, self._exp_start, self._exp_end, *others = functions
        self.squared, self.scaled, self.shifted = others

    def gelu(self, x: Array) -> Array:
        """GELU of fp32 values."""
        return self._gelu_end(x, self._gelu_start(x))

    def exp(self, x: Array) -> Array:
        """exp of fp32 values that are not positive."""
        return self._exp_end(self._exp_start(x))

    def attention(self, q: Array, k: Array, v: Array, mask: Array | None) -> Array:
        """softmax(q kᵀ + mask) v of (batch, heads, length, size); q is scaled already."""
        if q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] <= _SMALL:
            return mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask=mask)
        scores = q @ k.swapaxes(-1, -2)
        if mask is not None:
            scores = scores + mask
        weights = self.exp(scores - mx.max(scores, axis=-1, keepdims=True))
        return (weights @ v) / mx.sum(weights, axis=-1, keepdims=True)


class LayerNorm(nn.Module):  # type: ignore[misc]
    """Layer normalisation of fp32 values.

    Args:
        plain: the module with the weights.
        kernels: functions for the CPU.
    """

    def __init__(self, plain: Any, kernels: Kernels) -> None:
        super().__init__()
        self.weight, self._eps, self._kernels = plain.weight, plain.eps, kernels
        if "bias" in plain:
            self.bias = plain.bias
        size = plain.weight.shape[0]
        self._mean = mx.full((size, 1), 1 / size)

    def __call__(self, x: Array) -> Array:
        mean = x @ self._mean
        by = mx.rsqrt(self._kernels.squared(x, mean) @ self._mean + self._eps)
        if "bias" in self:
            return self._kernels.shifted(x, mean, by, self.weight, self.bias)
        return self._kernels.scaled(x, mean, by, self.weight)


class Linear(nn.Module):  # type: ignore[misc]
    """A dense layer as a product and a sum: mlx's fused form first copies the bias to every row."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def __call__(self, x: Array) -> Array:
        return x @ self.weight.T + self.bias


def _quicker(layer: Any) -> Any:
    """The same layer as a `Linear`, unless it is quantized or has no bias."""
    return Linear(layer) if isinstance(layer, nn.Linear) and "bias" in layer else layer


class SelfAttention(nn.Module):  # type: ignore[misc]
    """BERT's self-attention with its three projections in one product.

    Args:
        plain: the module with the weights.
        kernels: functions for the CPU; ``None`` for mlx's own fused attention (a GPU).
    """

    def __init__(self, plain: Plain, kernels: Kernels | None) -> None:
        super().__init__()
        self._heads = plain.num_attention_heads
        self._size = plain.attention_head_size
        self._rope = plain.rope
        self._kernels = kernels
        # Scaling the weights saves a pass over the queries; in half precision it would round them.
        scale = self._size**-0.5 if kernels else 1
        layers = plain.query, plain.key, plain.value
        scales = scale, 1, 1
        self.weight = mx.concatenate([a.weight * b for a, b in zip(layers, scales, strict=True)]).T
        if "bias" in plain.query:
            self.bias = mx.concatenate([a.bias * b for a, b in zip(layers, scales, strict=True)])

    def __call__(self, hidden: Array, mask: Array | None = None) -> Array:
        rows, length, _size = hidden.shape
        joined = hidden @ self.weight
        if "bias" in self:
            joined = joined + self.bias
        q, k, v = joined.reshape(rows, length, 3, self._heads, self._size).transpose(2, 0, 3, 1, 4)
        if self._rope is not None:
            q, k = self._rope(q), self._rope(k)
        if self._kernels is None:
            out = mx.fast.scaled_dot_product_attention(q, k, v, scale=self._size**-0.5, mask=mask)
        else:
            out = self._kernels.attention(q, k, v, mask)
        return out.transpose(0, 2, 1, 3).reshape(rows, length, -1)


class ModernAttention(nn.Module):  # type: ignore[misc]
    """The attention of mlx-embeddings' ModernBERT with the functions for the CPU.

    Args:
        plain: the module with the weights.
        kernels: functions for the CPU.
    """

    def __init__(self, plain: Any, kernels: Kernels) -> None:
        super().__init__()
        self._heads, self._size = plain.num_heads, plain.head_dim
        self._rope, self._kernels = plain.rotary_emb, kernels
        self._near = plain.local_attention != (-1, -1)
        queries = mx.arange(3 * plain.all_head_size) < plain.all_head_size
        scale = mx.where(queries, plain.scale, 1.0)  # in the weights it saves a pass over the queries
        self.weight = (plain.Wqkv.weight * scale[:, None]).T
        if "bias" in plain.Wqkv:
            self.bias = plain.Wqkv.bias * scale
        self.Wo = _quicker(plain.Wo)

    def __call__(
        self, hidden: Array, attention_mask: Array | None, sliding_window_mask: Array | None, **_: Any
    ) -> tuple[Array]:
        rows, length, _size = hidden.shape
        joined = hidden @ self.weight
        if "bias" in self:
            joined = joined + self.bias
        q, k, v = joined.reshape(rows, length, 3, self._heads, self._size).transpose(2, 0, 3, 1, 4)
        mask = sliding_window_mask if self._near else attention_mask
        out = self._kernels.attention(self._rope(q), self._rope(k), v, mask)
        return (self.Wo(out.transpose(0, 2, 1, 3).reshape(rows, length, -1)),)


def _berts(encoder: Any) -> Iterator[Any]:
    """The layers of one of our own encoders whose attention can be replaced."""
    for layer in encoder.encoder.layer if isinstance(encoder, Bert) else ():
        own = layer.attention.self
        if isinstance(own, Plain) and isinstance(own.query, nn.Linear) and "layer_norm_q" not in own:
            yield layer


def use_fused_attention(encoder: Any) -> None:
    """Give the attention of a loaded encoder's module one product for its three projections."""
    for layer in _berts(encoder):
        layer.attention.self = SelfAttention(layer.attention.self, None)


def use_cpu_blocks(encoder: Any) -> str:
    """Replace the slow blocks of a loaded encoder's module; call it once its weights are in fp32.

    Returns:
        What was replaced, for people; empty if nothing was.
    """
    if isinstance(encoder, Bert):
        kernels = Kernels()
        for layer in encoder.encoder.layer:
            layer.attention.output.dense = _quicker(layer.attention.output.dense)
            for part in (layer.attention.output, layer.output):
                part.LayerNorm = LayerNorm(part.LayerNorm, kernels)
            if "intermediate" not in layer:
                layer.experts.act = kernels.gelu if layer.experts.act is nn.gelu else layer.experts.act
                continue
            inner = layer.intermediate
            inner.act = kernels.gelu if inner.act is nn.gelu else inner.act
            inner.dense = _quicker(inner.dense)
            layer.output.dense = _quicker(layer.output.dense)
        for layer in _berts(encoder):
            layer.attention.self = SelfAttention(layer.attention.self, kernels)
    elif hasattr(encoder, "layers") and isinstance(getattr(encoder.layers[0].mlp, "act", None), nn.GELU):
        kernels = Kernels()
        for layer in encoder.layers:
            layer.mlp.act = kernels.gelu
            layer.mlp_norm = LayerNorm(layer.mlp_norm, kernels)
            if isinstance(layer.attn.Wqkv, nn.Linear):
                layer.attn = ModernAttention(layer.attn, kernels)
    else:
        return ""
    return "GELU and attention" + (", compiled" if kernels.compiled else "")


__all__ = ["Kernels", "use_cpu_blocks", "use_fused_attention"]
