"""Safetensors files of random numbers as quickly as a disk takes them: real shapes without the download."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

BLOCK = (1 << 24) + 1  # numbers that repeat; odd, so that no two rows of a matrix are alike
KINDS = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}


def begin(out: IO[bytes], shapes: Mapping[str, tuple[int, ...]], dtype: str) -> int:
    """The header of a file whose tensors have one dtype; gives the bytes that have to follow."""
    kind, width = KINDS[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + width * math.prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)
    return end


def write(file: Path, shapes: Mapping[str, tuple[tuple[int, ...], float | None]], dtype: str) -> None:
    """Each name with its shape and its numbers' standard deviation; ``None``: ones."""
    normal = np.random.default_rng(0).standard_normal(BLOCK, np.float32)
    blocks: dict[float | None, np.ndarray] = {}
    at = 0
    with file.open("wb") as out:
        begin(out, {name: shape for name, (shape, _) in shapes.items()}, dtype)
        for shape, spread in shapes.values():
            if spread not in blocks:
                numbers = np.ones(BLOCK, np.float32) if spread is None else normal * np.float32(spread)
                blocks[spread] = _as(numbers, dtype)
            block = blocks[spread]
            left = math.prod(shape)
            while left:
                piece = block[at : at + left]
                out.write(piece)
                left -= len(piece)
                at = (at + len(piece)) % len(block)


def _as(numbers: np.ndarray, dtype: str) -> np.ndarray:
    if dtype != "bfloat16":
        return numbers.astype(dtype)
    return ((numbers.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)  # no NaN to keep, so it rounds so
