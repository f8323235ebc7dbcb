"""Convolutions of three by three on a CPU with a quarter of the products (Winograd's F(4 × 4, 3 × 3)).

Places are made sixteen at a time, from six by six beneath them: 36 products for each pair of channels instead
of 144. What lies around those products are small products too, which MKL or OpenBLAS do.

Source: Lavin and Gray 2016 (arXiv:1509.09308), whose matrices these are.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_KERNEL = ((6, 0, 0), (-4, -4, -4), (-4, 4, -4), (1, 2, 4), (1, -2, 4), (0, 0, 24))  # in 24ths
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
_BAND = 8 << 20  # bytes of a band's numbers, which should stay in a processor's cache
# With fewer tiles or channels the kernel's own transformation costs more than it saves (measured: 1.3 to 1.8
# times as fast from 32 × 32 places on, a batch of two; 0.6 to 0.75 at 16 × 16).
_FEWEST_TILES = 128
_FEWEST_CHANNELS = 64
_Array = np.ndarray[Any, Any]


def _both(matrix: tuple[tuple[int, ...], ...], scale: float = 1.0) -> _Array:
    """A transformation of rows and columns at once."""
    one: _Array = np.array(matrix, np.float64) * scale
    both: _Array = np.kron(one, one).astype(np.float32)
    return both


_INPUTS, _KERNELS, _OUTPUTS = _both(_INPUT), _both(_KERNEL, 1 / 24), _both(_OUTPUT)


def pays(layer: nn.Conv2d, x: mx.array) -> bool:
    """Whether this is the faster way for a layer and what it is given (batch, height, width, channels)."""
    outer, high, wide, inner = layer.weight.shape
    plain = (layer.stride, layer.padding, layer.dilation, layer.groups) == ((1, 1), (1, 1), 1, 1)
    batch, height, width, _ = x.shape
    tiles = batch * -(-height // 4) * -(-width // 4)
    return (
        (high, wide) == (3, 3) and plain and tiles >= _FEWEST_TILES and min(inner, outer) >= _FEWEST_CHANNELS
    )


def convolved(layer: nn.Conv2d, x: mx.array, *, biased: bool) -> mx.array:
    """What `pays` said yes to: (batch, height, width, outputs), float32, to about 2e-5 of the largest."""
    batch, height, width, inner = x.shape
    down, across = -(-height // 4), -(-width // 4)
    around: _Array = np.zeros((batch, 4 * down + 2, 4 * across + 2, inner), np.float32)
    around[:, 1 : height + 1, 1 : width + 1] = np.array(x, copy=False)
    kernel = np.ascontiguousarray(np.array(layer.weight, copy=False).transpose(1, 2, 3, 0))
    outer = kernel.shape[-1]
    kernels = (_KERNELS @ kernel.reshape(9, -1)).reshape(36, inner, outer)
    made = np.empty((batch, 4 * down, 4 * across, outer), np.float32)
    rows = max(1, _BAND // (36 * 4 * across * max(inner, outer)))
    for image, result in zip(around, made, strict=True):
        for first in range(0, down, rows):
            last = min(down, first + rows)
            under = np.empty((36, last - first, across, inner), np.float32)
            for place, (i, j) in enumerate(np.ndindex(6, 6)):
                under[place] = image[4 * first + i : 4 * last + i - 3 : 4, j : 4 * across + j - 3 : 4]
            turned = (_INPUTS @ under.reshape(36, -1)).reshape(36, -1, inner)
            mixed = np.matmul(turned, kernels)
            found = (_OUTPUTS @ mixed.reshape(36, -1)).reshape(16, last - first, across, outer)
            if biased:
                found += np.array(layer.bias, copy=False)
            for place, (i, j) in enumerate(np.ndindex(4, 4)):
                result[4 * first + i : 4 * last : 4, j::4] = found[place]
    return mx.array(made[:, :height, :width])


__all__ = ["convolved", "pays"]
