"""Activations, group norms and attention: by numpy and MKL on a Linux CPU, by mlx everywhere else.

mlx's CPU back end takes 50 times as long as numpy for an exponential on x86-64 (measured: 55 against
0.9 ns an element), and a UNet is full of them. In float32 on a CPU these functions therefore evaluate what
they are given and go on in numpy, with MKL's exponentials where MKL is there; matrix products and
convolutions stay mlx's. Attention is done some rows at a time, so that its score matrices (1 GiB at
512 × 512 pixels) never exist as a whole.
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlxengine.toolkit import blas

_BLOCK = 1 << 15
_SCORES = 1 << 16
_SAFE_SCORE = 60.0
_Array = np.ndarray[Any, Any]


_tracing = threading.local()


@contextmanager
def traceable() -> Iterator[None]:
    """On this thread, leave everything to mlx: numpy cannot be compiled."""
    _tracing.on = True
    try:
        yield
    finally:
        _tracing.on = False


def in_numpy(x: mx.array) -> bool:
    """Whether numpy takes over for this array."""
    if getattr(_tracing, "on", False):
        return False
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    return on_cpu and x.dtype == mx.float32 and sys.platform != "darwin"


def _view(x: mx.array) -> _Array:
    found: _Array = np.array(x, copy=False)
    return found


def _by_blocks(function: Callable[[_Array, _Array], None], given: _Array) -> mx.array:
    """Apply ``function(input, output)`` to pieces that fit in a processor's cache."""
    flat = given.reshape(-1)
    result = np.empty_like(flat)
    with np.errstate(over="ignore"):
        for start in range(0, flat.size, _BLOCK):
            function(flat[start : start + _BLOCK], result[start : start + _BLOCK])
    return mx.array(result.reshape(given.shape))


def silu(x: mx.array) -> mx.array:
    """x · σ(x), elementwise."""
    if not in_numpy(x):
        found: mx.array = nn.silu(x)
        return found
    return _by_blocks(_silu, _view(x))


def gelu(x: mx.array) -> mx.array:
    """x · Φ(x), elementwise, with Φ to 1e-7 (Abramowitz and Stegun, 7.1.26)."""
    if not in_numpy(x):
        found: mx.array = nn.gelu(x)
        return found
    return _by_blocks(_gelu, _view(x))


@functools.cache
def _mkl() -> Any:
    """MKL's vector mathematics where MKL does mlx's products; else ``None``."""
    found = blas.load()
    return ctypes.CDLL(found.path) if found.library == "MKL" and found.path else None


_MKL_MODE = ctypes.c_int64(0x101)  # errors of 1 in the last place are allowed, and not reported


def _by_mkl(name: str, x: _Array, y: _Array) -> bool:
    """Let MKL compute ``y``, which may be ``x``; ``False`` where there is no MKL. Both are contiguous."""
    library = _mkl()
    if library is None:
        return False
    places = (ctypes.c_void_p(item.ctypes.data) for item in (x, y))
    getattr(library, name)(ctypes.c_int(x.size), *places, _MKL_MODE)
    return True


def _exp(x: _Array) -> None:
    """Replace ``x``, contiguous, by its exponential."""
    if not _by_mkl("vmsExp", x, x):
        np.exp(x, out=x)


def _silu(x: _Array, y: _Array) -> None:
    np.negative(x, out=y)
    _exp(y)
    y += 1
    np.divide(x, y, out=y)


_ERF = tuple(map(np.float32, (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)))


def _gelu(x: _Array, y: _Array) -> None:
    if _by_mkl("vmsCdfNorm", x, y):
        y *= x
        return
    z = np.abs(x)
    z *= np.float32(math.sqrt(0.5))
    t = z * np.float32(0.3275911)
    t += 1
    np.reciprocal(t, out=t)
    np.multiply(t, _ERF[0], out=y)
    for factor in _ERF[1:]:
        y += factor
        y *= t
    z *= z
    np.negative(z, out=z)
    np.exp(z, out=z)
    y *= z  # 1 - erf(|x| / √2), twice Φ(-|x|)
    y *= np.float32(0.5)
    y *= np.abs(x, out=z)
    np.subtract(np.maximum(x, 0, out=t), y, out=y)


def activated(norm: nn.GroupNorm, x: mx.array) -> mx.array:
    """`silu` of a group norm of ``x`` (batch, height, width, channels)."""
    return silu(norm(x)) if not in_numpy(x) else _by_blocks(_silu, _group_norm(norm, x))


def group_norm(norm: nn.GroupNorm, x: mx.array) -> mx.array:
    """A group norm of ``x`` (batch, height, width, channels) in numpy, the same shape."""
    return mx.array(_group_norm(norm, x))


def _group_norm(norm: nn.GroupNorm, x: mx.array) -> _Array:
    given = _view(x).reshape(x.shape[0], -1, x.shape[-1])
    batch, places, width = given.shape
    each = width // norm.num_groups

    def by_group(sums: _Array) -> _Array:
        """Means over groups of what was summed by channel, for each channel."""
        means: _Array = sums.reshape(batch, -1, each).sum(-1) / np.float32(places * each)
        spread: _Array = np.repeat(means, each, axis=-1)
        return spread

    ones: _Array = np.ones(places, np.float32)
    found: _Array = given - by_group(ones @ given)[:, None]
    squares = np.stack([np.einsum("pc,pc->c", item, item) for item in found])
    factor = _view(norm.weight) / np.sqrt(by_group(squares) + np.float32(norm.eps))
    found *= factor[:, None]
    found += _view(norm.bias)
    shaped: _Array = found.reshape(x.shape)
    return shaped


def attention(queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    """Softmax attention without a mask: (batch, heads, rows, width) each; the same shape as ``queries``."""
    if not in_numpy(queries):
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale)
    q = np.multiply(_view(queries), np.float32(scale), order="C")
    k = np.ascontiguousarray(_view(keys).swapaxes(2, 3))
    v = _view(values)
    # A last column of ones: the product with the values sums the weights as well.
    told = np.ones((*v.shape[:-1], v.shape[-1] + 1), np.float32)
    told[..., :-1] = v
    # Scores that cannot overflow an exponential need no look for the largest (Cauchy and Schwarz).
    longest = np.einsum("bhnd,bhnd->bhn", q, q).max(-1) * np.einsum("bhdn,bhdn->bhn", k, k).max(-1)
    safe = np.sqrt(longest) < _SAFE_SCORE
    result = np.empty((*q.shape[:-1], v.shape[-1]), np.float32)
    rows = min(q.shape[2], max(16, _SCORES // k.shape[3]))
    scores = np.empty((rows, k.shape[3]), np.float32)
    mixed = np.empty((rows, told.shape[-1]), np.float32)
    for place in np.ndindex(*q.shape[:2]):
        asked, across, end = q[place], k[place], result[place]
        for start in range(0, len(asked), rows):
            part = asked[start : start + rows]
            weights = np.matmul(part, across, out=scores[: len(part)])
            if not safe[place]:
                weights -= weights.max(axis=-1, keepdims=True)
            _exp(weights)
            found = np.matmul(weights, told[place], out=mixed[: len(part)])
            np.divide(found[:, :-1], found[:, -1:], out=end[start : start + rows])
    return mx.array(result)


__all__ = ["activated", "attention", "gelu", "group_norm", "in_numpy", "silu", "traceable"]
