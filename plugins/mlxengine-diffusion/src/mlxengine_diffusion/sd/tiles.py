"""An autoencoder run on overlapping tiles, so that memory does not grow with the picture.

The tiles, their overlap of a quarter and the way in which they are faded into each other are those of
``AutoencoderKL.enable_vae_tiling`` in diffusers 0.42.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import mlx.core as mx
import numpy as np

_OVERLAP = 0.25
_Tile = np.ndarray[Any, Any]
Run = Callable[[mx.array], Generator[None, None, mx.array]]
"""One tile through the network, in as many turns as it takes: (1, height, width, channels) each."""


def walk(run: Run, whole: mx.array, size: int, made: int) -> Generator[None, None, mx.array]:
    """What ``run`` makes of ``whole`` (1, height, width, channels), put together from tiles.

    Args:
        size, made: side of a tile, and of what comes out of it.
    """
    if max(whole.shape[1:3]) <= size:
        return (yield from run(whole))
    step, fade = int(size * (1 - _OVERLAP)), int(made * _OVERLAP)
    above: list[_Tile] = []
    bands = []
    for top in range(0, whole.shape[1], step):
        row: list[_Tile] = []
        for left in range(0, whole.shape[2], step):
            output = yield from run(whole[:, top : top + size, left : left + size])
            tile = np.array(output.astype(mx.float32))
            if above:
                _fade(above[len(row)], tile, fade, axis=1)
            if row:
                _fade(row[-1], tile, fade, axis=2)
            row.append(tile)
        bands.append(np.concatenate([tile[:, : made - fade, : made - fade] for tile in row], axis=2))
        above = row
    return mx.array(np.concatenate(bands, axis=1))


def _fade(before: _Tile, tile: _Tile, width: int, *, axis: int) -> None:
    """Let the end of one tile fade into the beginning of the next, in place."""
    width = min(before.shape[axis], tile.shape[axis], width)
    end, start = (np.swapaxes(item, axis, 1) for item in (before, tile))
    share = (np.arange(width, dtype=np.float32) / np.float32(width))[:, None, None]
    start[:, :width] = end[:, end.shape[1] - width :] * (1 - share) + start[:, :width] * share


__all__ = ["Run", "walk"]
