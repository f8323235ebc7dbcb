"""Activations and attention, by numpy where mlx computes on a Linux CPU, by mlx everywhere else.

mlx's CPU back end takes 50 times as long as numpy for an exponential on x86-64 (measured: 55 against
0.9 ns an element), and a UNet is full of them. In float32 on a CPU these functions therefore evaluate what
they are given and go on in numpy; matrix products and convolutions stay mlx's. Attention is done some rows
at a time, so that its score matrices (1 GiB at 512 × 512 pixels) never exist as a whole.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

_BLOCK = 1 << 15
_SCORES = 1 << 16
_Array = np.ndarray[Any, Any]


def _in_numpy(x: mx.array) -> bool:
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    return on_cpu and x.dtype == mx.float32 and sys.platform != "darwin"


def _by_blocks(function: Callable[[_Array, _Array], None], x: mx.array) -> mx.array:
    """Apply ``function(input, output)`` to pieces that fit in a processor's cache."""
    given = np.array(x, copy=False).reshape(-1)
    result = np.empty_like(given)
    with np.errstate(over="ignore"):
        for start in range(0, given.size, _BLOCK):
            function(given[start : start + _BLOCK], result[start : start + _BLOCK])
    return mx.array(result).reshape(x.shape)


def silu(x: mx.array) -> mx.array:
    """x · σ(x), elementwise."""
    if not _in_numpy(x):
        found: mx.array = nn.silu(x)
        return found
    return _by_blocks(_silu, x)


def gelu(x: mx.array) -> mx.array:
    """x · Φ(x), elementwise, with Φ to 1e-7 (Abramowitz and Stegun, 7.1.26)."""
    if not _in_numpy(x):
        found: mx.array = nn.gelu(x)
        return found
    return _by_blocks(_gelu, x)


def _silu(x: _Array, y: _Array) -> None:
    np.negative(x, out=y)
    np.exp(y, out=y)
    y += 1
    np.divide(x, y, out=y)


_ERF = tuple(map(np.float32, (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)))


def _gelu(x: _Array, y: _Array) -> None:
    z = np.abs(x) * np.float32(math.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    tail = np.full_like(t, 0)
    for factor in _ERF:
        tail = (tail + factor) * t
    tail *= np.exp(-z * z)  # 1 - erf(|x| / √2)
    tail *= np.float32(0.5)
    np.multiply(x, np.where(x < 0, tail, 1 - tail), out=y)


def attention(queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    """Softmax attention without a mask: (batch, heads, rows, width) each; the same shape as ``queries``."""
    if not _in_numpy(queries):
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale)
    q, k, v = (np.array(item, copy=False) for item in (queries, keys, values))
    result = np.empty((*q.shape[:-1], v.shape[-1]), np.float32)
    step = max(16, _SCORES // k.shape[2])
    for place in np.ndindex(*q.shape[:2]):
        asked = np.ascontiguousarray(q[place]) * np.float32(scale)
        across, told = np.ascontiguousarray(k[place].T), np.ascontiguousarray(v[place])
        for start in range(0, len(asked), step):
            scores = asked[start : start + step] @ across
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            mixed = scores @ told
            mixed /= scores.sum(axis=-1, keepdims=True)
            result[place][start : start + step] = mixed
    return mx.array(result)


__all__ = ["attention", "gelu", "silu"]
