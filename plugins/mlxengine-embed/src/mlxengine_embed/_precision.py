"""Vectors in fewer bits, as sentence-transformers' ``quantize_embeddings`` makes them.

``int8`` and ``uint8`` spread each dimension's range over 256 steps; ``binary`` and ``ubinary`` keep the sign
of each dimension, eight to a byte, the first in the highest bit (``binary`` is the same byte minus 128).
"""

from __future__ import annotations

from typing import Any

import numpy as np

Vectors = Any  # a numpy array
PRECISIONS = ("float32", "float16", "int8", "uint8", "binary", "ubinary")
NEEDS_RANGES = ("int8", "uint8")


def ranges_of(vectors: Vectors) -> Vectors:
    """(2, size): the lowest and the highest value of each dimension."""
    return np.stack([vectors.min(axis=0), vectors.max(axis=0)])


def quantize(vectors: Vectors, precision: str, ranges: Vectors | None = None) -> Vectors:
    """Vectors (count, size) in another precision; ``binary`` and ``ubinary`` are (count, ⌈size / 8⌉).

    Args:
        vectors: fp32.
        precision: one of `PRECISIONS`.
        ranges: what `ranges_of` gave for a calibration set; needed for ``int8`` and ``uint8``.
    """
    if precision in ("float32", "float16"):
        return vectors.astype(precision, copy=False)
    if precision in ("binary", "ubinary"):
        bits = np.packbits(vectors > 0, axis=-1)
        return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    assert ranges is not None
    lowest, step = ranges[0], (ranges[1] - ranges[0]) / 255
    levels = np.clip(np.floor((vectors - lowest) / np.where(step == 0, 1, step)), 0, 255)
    return levels.astype(np.uint8) if precision == "uint8" else (levels - 128).astype(np.int8)


__all__ = ["NEEDS_RANGES", "PRECISIONS", "quantize", "ranges_of"]
