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
# Bytes of what should stay in a processor's caches: an image's tiles together, a band's numbers, the turned
# kernels of some outputs where tiles are many, and where they are few.
_TILES, _BAND, _MANY, _FEW = 48 << 20, 8 << 20, 24 << 20, 4 << 20
# OpenBLAS multiplies up to this many triples of numbers as they lie; what is larger it copies first, which
# costs more than a product with few tiles (measured: half of the time at 16 × 16 places; with 64 tiles it is
# the other way round).
_SMALL_PRODUCT, _OUTPUTS_AT_ONCE, _FEW_TILES = 1_000_000, (8, 32), 32
# Of an image. With fewer the kernels' own transformation costs more than it saves (measured: 1.4 times as
# fast with two images of 4 tiles and 1,280 channels, 0.6 with 1). Nothing here may depend on how many images
# there are, nor do products take several together: a picture is the same alone and beside others.
_FEWEST_TILES = 4
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
    tiles = -(-x.shape[1] // 4) * -(-x.shape[2] // 4)
    return (
        (high, wide) == (3, 3) and plain and tiles >= _FEWEST_TILES and min(inner, outer) >= _FEWEST_CHANNELS
    )


def convolved(layer: nn.Conv2d, x: mx.array, *, biased: bool) -> mx.array:
    """What `pays` said yes to: (batch, height, width, outputs), float32, to about 2e-5 of the largest.

    Where an image's tiles fit a cache, kernels are turned some outputs at a time: four times as large as they
    were, they would come from memory, which takes longer than the products with few tiles. Else they are
    turned once, and tiles are some rows of one image at a time.
    """
    batch, height, width, inner = x.shape
    down, across = -(-height // 4), -(-width // 4)
    around: _Array = np.zeros((batch, 4 * down + 2, 4 * across + 2, inner), np.float32)
    around[:, 1 : height + 1, 1 : width + 1] = np.array(x, copy=False)
    outer = layer.weight.shape[0]
    kernels = np.array(layer.weight, copy=False).reshape(outer, 9, inner)
    made = mx.empty((batch, 4 * down, 4 * across, outer), mx.float32)
    mx.eval(made)
    view = np.array(made, copy=False)
    together = 36 * 4 * inner * down * across <= _TILES
    if together:
        images, rows, outputs = batch, down, _outputs(down * across, inner)
    else:
        images, rows, outputs = 1, max(1, _BAND // (36 * 4 * across * max(inner, outer))), outer
    spare = np.empty((min(outputs, outer), 36, inner), np.float32)
    turned = None
    for start in range(0, outer, outputs):
        some = slice(start, start + outputs)
        factors = np.matmul(_KERNELS, kernels[some], out=spare[: outer - start]).transpose(1, 2, 0)
        for image in range(0, batch, images):
            for first in range(0, down, rows):
                last = min(down, first + rows)
                if turned is None or not together:
                    turned = _turned(around[image : image + images, 4 * first : 4 * last + 2])
                mixed = np.matmul(turned, factors)
                found = _OUTPUTS @ mixed.reshape(images, 36, -1)
                if biased:
                    by_output = found.reshape(-1, mixed.shape[3])
                    by_output += np.array(layer.bias, copy=False)[some]
                result = view[image : image + images, 4 * first : 4 * last, :, some]
                for place, (i, j) in enumerate(np.ndindex(4, 4)):
                    at = result[:, i::4, j::4]
                    at[:] = found[:, place].reshape(at.shape)
    return made[:, :height, :width]


def _outputs(tiles: int, inner: int) -> int:
    """How many outputs' kernels to turn at once."""
    fewest, most = _OUTPUTS_AT_ONCE
    small = min(_SMALL_PRODUCT // (tiles * inner), most, _FEW // (36 * 4 * inner))
    return small if small >= fewest and tiles <= _FEW_TILES else max(fewest, _MANY // (36 * 4 * inner))


def _turned(around: _Array) -> _Array:
    """The tiles of images with a margin (images, high, wide, inner): (images, 36, tiles, inner)."""
    images, height, width, inner = around.shape
    down, across = height // 4, width // 4
    under = np.empty((images, 36, down, across, inner), np.float32)
    for place, (i, j) in enumerate(np.ndindex(6, 6)):
        under[:, place] = around[:, i : i + 4 * down - 3 : 4, j : j + 4 * across - 3 : 4]
    turned: _Array = (_INPUTS @ under.reshape(images, 36, -1)).reshape(images, 36, -1, inner)
    return turned


__all__ = ["convolved", "pays"]
