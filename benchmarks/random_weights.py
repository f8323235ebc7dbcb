"""Safetensors files of random numbers as quickly as a disk takes them: real shapes without the download."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from attrs import frozen

BLOCK = (1 << 24) + 1  # numbers that repeat; odd, so that no two rows of a matrix are alike
KINDS = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2), "uint32": ("U32", 4)}


@frozen
class Numbers:
    """A tensor: normal numbers around ``mean``; of uint32, random bits."""

    shape: tuple[int, ...]
    dtype: str
    spread: float = 0.0
    mean: float = 0.0


def begin(out: IO[bytes], tensors: Mapping[str, Numbers]) -> int:
    """The header of a file; gives the bytes that have to follow."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, tensor in tensors.items():
        kind, width = KINDS[tensor.dtype]
        start, end = end, end + width * math.prod(tensor.shape)
        header[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)
    return end


def zeros(file: Path, tensors: Mapping[str, Numbers]) -> None:
    """A file of zeros that takes no blocks on the disk."""
    with file.open("wb") as out:
        size = begin(out, tensors)
        out.truncate(out.tell() + size)


def write(file: Path, tensors: Mapping[str, Numbers]) -> None:
    """A file of these."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(BLOCK, np.float32)
    blocks: dict[tuple[str, float, float], np.ndarray] = {}
    at = 0
    with file.open("wb") as out:
        begin(out, tensors)
        for tensor in tensors.values():
            key = (tensor.dtype, tensor.spread, tensor.mean)
            if key not in blocks:
                blocks[key] = (
                    rng.integers(0, 1 << 32, BLOCK, np.uint32)
                    if tensor.dtype == "uint32"
                    else _as(normal * np.float32(tensor.spread) + np.float32(tensor.mean), tensor.dtype)
                )
            block = blocks[key]
            left = math.prod(tensor.shape)
            while left:
                piece = block[at : at + left]
                out.write(piece)
                left -= len(piece)
                at = (at + len(piece)) % len(block)


def _as(numbers: np.ndarray, dtype: str) -> np.ndarray:
    if dtype != "bfloat16":
        return numbers.astype(dtype)
    return ((numbers.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)  # no NaN to keep, so it rounds so
