"""Quicker functions and layers for encoders on a CPU.

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
that follows them in one pass. Rotary positions are computed once for all layers, and turn queries and keys in
one pass. Weights lie the way in which products of few rows are quick (`turned`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

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


def _rotated(first: Array, second: Array, cosines: Array, sines: Array) -> tuple[Array, Array]:
    return first * cosines - second * sines, second * cosines + first * sines


class Kernels:
    """The functions above, compiled where a C++ compiler is at hand.

    Each is cut in two, because mlx fuses at most eleven operations in depth into one loop.
    """

    def __init__(self) -> None:
        plain = (_gelu_start, _gelu_end, _exp_start, _exp_end, _squared, _scaled, _shifted, _rotated)
        self.compiled = True
        try:
            self._use(tuple(mx.compile(function, shapeless=True) for function in plain))
            sample = mx.ones((2, 2), dtype=mx.float32)
            mx.eval(self.gelu(sample), self.exp(-sample))
        except Exception as error:
            _log.info("mlx cannot compile on this CPU (%s); its operations run one by one", error)
            self.compiled = False
            self._use(plain)

    def _use(self, functions: tuple[Callable[..., Any], ...]) -> None:
        self._gelu_start, self._gelu_end, self._exp_start, self._exp_end, *others = functions
        self.squared, self.scaled, self.shifted, self.rotated = others

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


def turned(weight: Array) -> Array:
    """A dense layer's weight, (inputs, outputs), as it stands in a product.

    BLAS libraries take a product of few rows up to twice as fast if the weight's rows lie in memory as they
    do here and not as checkpoints keep them; but rows of whole pages, which share a few places of the
    processor's cache, are left as they are.
    """
    whole_pages = weight.shape[0] * weight.itemsize % 4096 == 0
    return weight.T if whole_pages else mx.contiguous(weight.T)


class Linear(nn.Module):  # type: ignore[misc]
    """A dense layer as a product and a sum: mlx's fused form first copies the bias to every row."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.weight = turned(layer.weight)
        if "bias" in layer:
            self.bias = layer.bias

    def __call__(self, x: Array) -> Array:
        out = x @ self.weight
        return out + self.bias if "bias" in self else out


class Rotation:
    """Rotary positions with the first half of a head against the second; layers with the same ones share it.

    Args:
        plain: mlx's module.
        kernels: functions for the CPU.
    """

    def __init__(self, plain: nn.RoPE, kernels: Kernels) -> None:
        half = plain.dims // 2
        self._speeds = plain.scale * plain.base ** (-np.arange(half) / half)
        self._kernels = kernels
        self._tables: tuple[Array, Array] | None = None

    def __call__(self, x: Array) -> Array:
        """The heads of queries, keys or both, (…, length, size), turned by their places."""
        length = x.shape[-2]
        if self._tables is None or self._tables[0].shape[0] != length:
            angles = np.arange(length)[:, None] * self._speeds
            self._tables = mx.array(np.cos(angles), mx.float32), mx.array(np.sin(angles), mx.float32)
        return mx.concatenate(self._kernels.rotated(*mx.split(x, 2, axis=-1), *self._tables), axis=-1)


__all__ = ["Kernels", "LayerNorm", "Linear", "Rotation", "turned"]
