"""Activations, norms, products and attention: by numpy and MKL on a Linux CPU, by mlx everywhere else.

mlx's CPU back end takes 50 times as long as numpy for an exponential on x86-64 (measured: 55 against
0.9 ns an element), and a UNet is full of them. In float32 on a CPU these functions therefore evaluate what
they are given and go on in numpy, with MKL's functions where they are faster; large products
go the faster of both ways, and large convolutions that of `winograd`. Attention is done some rows at a time,
so that its score matrices (1 GiB at 512 × 512 pixels) never exist as a whole.
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlxengine.toolkit import blas

from . import cuda_norms, winograd

_BLOCK = 1 << 15
_SCORES = 1 << 16
_TILE = 384
_SAFE_SCORE = 60.0
_CLOSE = np.float32(1e-2)
_UNFOLDED = 8 << 20
_LARGE_PRODUCT = 25_000_000  # multiplications of an image: below, leaving mlx costs more than it gives
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


def _made(shape: Sequence[int]) -> tuple[mx.array, _Array]:
    """An array to be filled, float32, and numpy's view of it: what is written there needs no copy."""
    found = mx.empty(tuple(shape), mx.float32)
    mx.eval(found)
    return found, _view(found)


def _least(run: Callable[[], object], times: int) -> float:
    """Seconds of the fastest of several runs: whatever else the machine does only adds."""
    found = math.inf
    for _ in range(times):
        began = time.perf_counter()
        run()
        found = min(found, time.perf_counter() - began)
    return found


def _by_blocks(function: Callable[[_Array, _Array], None], given: _Array) -> mx.array:
    """Apply ``function(input, output)`` to pieces that fit in a processor's cache."""
    flat = given.reshape(-1)
    made, result = _made(given.shape)
    result = result.reshape(-1)
    with np.errstate(over="ignore"):
        for start in range(0, flat.size, _BLOCK):
            function(flat[start : start + _BLOCK], result[start : start + _BLOCK])
    return made


def silu(x: mx.array) -> mx.array:
    """x · σ(x), elementwise."""
    if not in_numpy(x):
        found: mx.array = nn.silu(x)
        return found
    return _by_blocks(_silu, _view(x))


def gated(x: mx.array, gate: mx.array) -> mx.array:
    """x · `gelu` of the gate, elementwise."""
    return x * gelu(gate) if in_numpy(x) else _gated(x, gate)


def gated_products(values: nn.Module, gates: nn.Module, x: mx.array) -> mx.array:
    """`gated` of two linear layers of ``x`` (…, width): (…, their outputs).

    On a CPU mlx lays a bias out before its product, which takes a fifth of the time of wide layers.
    """
    if not in_numpy(x) or any(type(item) not in _PLAIN or "bias" not in item for item in (values, gates)):
        return gated(values(x), gates(x))
    kept, through = (multiplied(x, item.weight) for item in (values, gates))
    mx.eval(kept, through)
    width = kept.shape[-1]
    found, result = _made(kept.shape)
    result = result.reshape(-1, width)
    rows = max(1, _BLOCK // width)
    passed, gate = (_view(item).reshape(result.shape) for item in (kept, through))
    for start in range(0, len(result), rows):
        piece = slice(start, start + rows)
        made = result[piece]
        spare = gate[piece] + _view(gates.bias)
        _gelu(spare.reshape(-1), made.reshape(-1))
        np.add(passed[piece], _view(values.bias), out=spare)
        made *= spare
    return found


class Linear(nn.Linear):  # type: ignore[misc]
    """mlx's layer, by numpy where that is faster."""

    def __call__(self, x: mx.array) -> mx.array:
        return multiplied(x, self.weight, self.bias if "bias" in self else None)


_PLAIN = (nn.Linear, Linear)  # neither adapted nor quantized


def multiplied(x: mx.array, weight: mx.array, bias: mx.array | None = None) -> mx.array:
    """``x`` (…, width) by a matrix (outputs, width), and a bias (outputs,): (…, outputs)."""
    outputs, width = weight.shape
    large = x.size // len(x) * outputs >= _LARGE_PRODUCT and weight.dtype == mx.float32
    if not (large and in_numpy(x) and _numpy_multiplies()):
        return x @ weight.T if bias is None else mx.addmm(bias, x, weight.T)
    found, result = _made((*x.shape[:-1], outputs))
    result = result.reshape(-1, outputs)
    np.matmul(_view(x).reshape(-1, width), _view(weight).T, out=result)
    if bias is not None:
        result += _view(bias)
    return found


@functools.cache
def _numpy_multiplies() -> bool:
    """Whether numpy's products take a twentieth less time than mlx's, measured once.

    Numpy brings OpenBLAS, mlx has MKL here: the one is faster on AMD's processors, the other on Intel's.
    """
    x, weight, bias = mx.ones((512, 640)), mx.ones((640, 640)), mx.zeros((640,))
    mx.eval(x, weight, bias)
    across, (_, made) = _view(weight).T, _made(x.shape)
    ours = _least(lambda: np.matmul(_view(x), across, out=made), 6)
    return ours < 0.95 * _least(lambda: mx.eval(mx.addmm(bias, x, weight.T)), 6)


def gelu(x: mx.array) -> mx.array:
    """x · Φ(x), elementwise, with Φ to 1e-7 (Abramowitz and Stegun, 7.1.26)."""
    if not in_numpy(x):
        found: mx.array = nn.gelu(x)
        return found
    return _by_blocks(_gelu, _view(x))


# On a GPU what one kernel does costs less than what two do: launching them is what takes the time.
@partial(mx.compile, shapeless=True)
def _gated(x: mx.array, gate: mx.array) -> mx.array:
    found: mx.array = x * nn.gelu(gate)
    return found


@partial(mx.compile, shapeless=True)
def _affine(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    return x * weight + bias


@partial(mx.compile, shapeless=True)
def _silu_of_affine(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    found: mx.array = nn.silu(x * weight + bias)
    return found


@partial(mx.compile, shapeless=True)
def joined(x: mx.array, bias: mx.array, beside: mx.array) -> mx.array:
    """A convolution's features with its bias and what stands beside it."""
    return x + bias + beside


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


@functools.cache
def _mkl_is_faster(name: str, function: np.ufunc) -> bool:
    """Whether MKL's function takes less time than numpy's, measured once.

    Of exponentials MKL takes half of numpy's time on Intel's processors, and twice of it on AMD's.
    """
    x: _Array = np.linspace(-8, 8, _BLOCK, dtype=np.float32)
    y: _Array = np.empty_like(x)
    if not _by_mkl(name, x, y):
        return False
    return _least(lambda: _by_mkl(name, x, y), 12) < _least(lambda: function(x, out=y), 12)


def _elementwise(name: str, function: np.ufunc, x: _Array) -> None:
    """Replace ``x``, contiguous, by numpy's ``function`` of it, which MKL calls ``name``."""
    if not (_mkl_is_faster(name, function) and _by_mkl(name, x, x)):
        function(x, out=x)


_exp = partial(_elementwise, "vmsExp", np.exp)


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


def activated(norm: nn.GroupNorm, x: mx.array, added: mx.array | None = None) -> mx.array:
    """`silu` of a group norm of ``x`` (batch, height, width, channels).

    Args:
        added: what comes to every place before, (batch or 1, channels).
    """
    if cuda_norms.serves(norm, x):
        return cuda_norms.normed(norm, x, added, silu=True)
    if added is not None:
        x = x + added[:, None, None]
    return _normed(norm, x, _silu_of_scaled) if in_numpy(x) else _grouped(norm, x, _silu_of_affine)


def group_norm(norm: nn.GroupNorm, x: mx.array) -> mx.array:
    """A group norm of ``x`` (batch, …, channels), the same shape."""
    if cuda_norms.serves(norm, x):
        return cuda_norms.normed(norm, x, None, silu=False)
    return _normed(norm, x, _scaled) if in_numpy(x) else _grouped(norm, x, _affine)


def _grouped(
    norm: nn.GroupNorm, x: mx.array, function: Callable[[mx.array, mx.array, mx.array], mx.array]
) -> mx.array:
    """Apply ``function(normed, weight, bias)`` to what a group norm has normed, by mlx.

    mlx's layer lays the channels out by group and back again, a copy each; ``function`` reads them where the
    norm left them, and writes them where they belong.
    """
    batch, groups = x.shape[0], norm.num_groups
    each = norm.dims // groups
    together = x.reshape(batch, -1, groups, each).transpose(0, 2, 1, 3).reshape(batch, groups, -1)
    normed = mx.fast.layer_norm(together, None, None, norm.eps)
    apart = normed.reshape(batch, groups, -1, each).transpose(0, 2, 1, 3)
    found = function(apart, norm.weight.reshape(groups, each), norm.bias.reshape(groups, each))
    return found.reshape(x.shape)


def warm(dtype: mx.Dtype) -> Iterator[None]:
    """Make the kernels of these functions for a number format, one a turn.

    A GPU takes about a second for each that its disk does not hold: nobody shall wait for it in a step.
    """
    norm = nn.GroupNorm(2, 4, pytorch_compatible=True)
    norm.set_dtype(dtype)
    x = mx.zeros((1, 2, 2, 4), dtype)
    for make in (
        partial(activated, norm),
        partial(group_norm, norm),
        silu,
        lambda x: gated(x, x),
        lambda x: joined(x, norm.bias, x),
    ):
        mx.eval(make(x))
        yield


def layer_norm(norm: nn.LayerNorm, x: mx.array) -> mx.array:
    """A layer norm of ``x`` (…, width), the same shape."""
    if not in_numpy(x):
        return mx.fast.layer_norm(x, norm.weight, norm.bias, norm.eps)
    given = _view(x).reshape(-1, x.shape[-1])
    weight, bias = _view(norm.weight), _view(norm.bias)
    share: _Array = np.full(given.shape[1], 1 / given.shape[1], np.float32)
    found, result = _made(x.shape)
    result = result.reshape(given.shape)
    rows = max(1, _BLOCK // given.shape[1])
    for start in range(0, len(given), rows):
        piece, y = given[start : start + rows], result[start : start + rows]
        np.subtract(piece, (piece @ share)[:, None], out=y)
        spread = np.einsum("pc,pc->p", y, y) * share[0]
        y *= (1 / np.sqrt(spread + np.float32(norm.eps)))[:, None]
        y *= weight
        y += bias
    return found


def _scaled(x: _Array, factor: _Array, offset: _Array, y: _Array) -> None:
    np.multiply(x, factor, out=y)
    y += offset


def _silu_of_scaled(x: _Array, factor: _Array, offset: _Array, y: _Array) -> None:
    # x · σ(x) = x / 2 · (1 + tanh(x / 2)): no division, and half of x comes for nothing.
    half = np.float32(0.5)
    _scaled(x, factor * half, offset * half, y)
    z = y.copy()
    _elementwise("vmsTanh", np.tanh, z)
    z += 1
    y *= z


def _normed(
    norm: nn.GroupNorm, x: mx.array, function: Callable[[_Array, _Array, _Array, _Array], None]
) -> mx.array:
    """Apply ``function(piece, factor, offset, output)``, where piece · factor + offset is the group norm."""
    given = _view(x).reshape(x.shape[0], -1, x.shape[-1])
    factors, offsets = _factors(norm, given)
    found, result = _made(x.shape)
    result = result.reshape(given.shape)
    rows = max(1, _BLOCK // given.shape[2])
    with np.errstate(over="ignore"):
        for image, factor, offset, made in zip(given, factors, offsets, result, strict=True):
            for start in range(0, len(image), rows):
                function(image[start : start + rows], factor, offset, made[start : start + rows])
    return found


def _factors(norm: nn.GroupNorm, given: _Array) -> tuple[_Array, _Array]:
    """By image and channel, what a group norm multiplies by and adds: (batch, channels) each."""
    batch, places, width = given.shape
    each = width // norm.num_groups

    def by_group(sums: _Array) -> _Array:
        """Means over groups of what was summed by channel, for each channel."""
        means: _Array = sums.reshape(batch, -1, each).sum(-1) / np.float32(places * each)
        spread: _Array = np.repeat(means, each, axis=-1)
        return spread

    def squares(of: _Array) -> _Array:
        return by_group(np.stack([np.einsum("pc,pc->c", item, item) for item in of]))

    mean = by_group(np.ones(places, np.float32) @ given)
    variance = squares(given) - mean * mean
    if (variance < _CLOSE * mean * mean).any():  # too few digits are left of the difference
        variance = squares(given - mean[:, None])
    factor: _Array = _view(norm.weight) / np.sqrt(variance + np.float32(norm.eps))
    offset: _Array = _view(norm.bias) - mean * factor
    return factor, offset


def convolved(layer: nn.Conv2d, x: mx.array, *, biased: bool = True) -> mx.array:
    """A convolution of ``x`` (batch, height, width, channels), some rows at a time: the same numbers.

    On a CPU mlx writes out what lies under the kernel at every place: nine copies of the input for a kernel
    of three by three. In bands of rows the copies stay in a processor's cache, which takes a fifth of the
    memory (512 × 512 places of 128 channels: 260 MiB instead of 1.4 GiB), and two thirds of the time. Large
    convolutions of three by three go another way, which is faster and nearly the same: see `winograd`.
    """
    biased = biased and "bias" in layer
    if winograd.pays(layer, x):
        return winograd.convolved(layer, x, biased=biased)
    _, high, wide, inner = layer.weight.shape
    each = x.shape[0] * x.shape[2] * wide * high * inner * x.itemsize  # bytes of a row's copies, or more
    stride, (above, beside) = layer.stride[0], layer.padding
    rows = max(2, _UNFOLDED // each)
    count = (x.shape[1] + 2 * above - high) // stride + 1
    if count <= rows:
        found: mx.array = mx.conv2d(
            x, layer.weight, layer.stride, layer.padding, layer.dilation, layer.groups
        )
        return found + layer.bias if biased else found
    bands = []
    for start in range(0, count, rows):
        first = start * stride - above
        last = (min(start + rows, count) - 1) * stride - above + high
        inside = x[:, max(0, first) : min(last, x.shape[1])]
        margins = (max(0, -first), max(0, last - x.shape[1]))
        if any(margins):
            inside = mx.pad(inside, [(0, 0), margins, (0, 0), (0, 0)])
        band = mx.conv2d(inside, layer.weight, layer.stride, (0, beside))
        bands.append(band + layer.bias if biased else band)
        mx.eval(bands[-1])
    return bands[0] if len(bands) == 1 else mx.concatenate(bands, axis=1)


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
    batch, heads, rows, _ = q.shape
    # Laid out as the layer behind reads it, heads side by side.
    found, result = _made((batch, rows, heads, v.shape[-1]))
    # Small heads are done several at a time: numpy takes over a microsecond a call.
    together = max(1, _SCORES // (rows * k.shape[3]))
    for image in range(batch):
        for first in range(0, heads, together):
            part = image, slice(first, first + together)
            made = result[image, :, part[1]].swapaxes(0, 1)
            _attend(q[part], k[part], told[part], made, safe=bool(safe[part].all()))
    return found.transpose(0, 2, 1, 3)


def _attend(asked: _Array, across: _Array, told: _Array, result: _Array, *, safe: bool) -> None:
    """Some heads: queries (heads, rows, width), keys laid out across (heads, width, keys), and values with
    their column of ones (heads, keys, width + 1).

    Safe scores need no largest of a row, so that tiles of rows and keys can be summed, small enough for a
    processor's cache and large enough for its products; else whole rows of scores are made.
    """
    heads, count, _ = asked.shape
    keys = across.shape[2]
    tile = min(_TILE, keys) if safe else keys
    rows = min(count, _TILE if safe else max(16, _SCORES // keys))
    scores = np.empty(heads * rows * tile, np.float32)
    for start in range(0, count, rows):
        part = asked[:, start : start + rows]
        sums = np.zeros((heads, part.shape[1], told.shape[2]), np.float32)
        mixed = np.empty_like(sums)
        for first in range(0, keys, tile):
            last = min(first + tile, keys)
            weights = scores[: heads * part.shape[1] * (last - first)].reshape(heads, part.shape[1], -1)
            np.matmul(part, across[..., first:last], out=weights)
            if not safe:
                weights -= weights.max(axis=-1, keepdims=True)
            _exp(weights)
            sums += np.matmul(weights, told[:, first:last], out=mixed)
        np.divide(sums[..., :-1], sums[..., -1:], out=result[:, start : start + rows])


__all__ = [
    "Linear",
    "activated",
    "attention",
    "convolved",
    "gated",
    "gated_products",
    "group_norm",
    "in_numpy",
    "joined",
    "layer_norm",
    "multiplied",
    "silu",
    "traceable",
    "warm",
]
