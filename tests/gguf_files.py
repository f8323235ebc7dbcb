"""GGUF files written for tests, and a plain quantizer into blocks of 256 numbers."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

Packed = tuple[int, tuple[int, ...], bytes]
"""ggml's number of a type, a shape with the slowest dimension first, the bytes."""


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, list | tuple):
        if all(isinstance(item, str) for item in value):
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))
        return struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    return struct.pack("<II", 4, value)


def write_gguf(
    path: Path, metadata: dict[str, Any], tensors: dict[str, Any], types: dict[str, int] | None = None
) -> Path:
    """A GGUF file of fp32 arrays (or, by name, ones that claim another type) and of packed tensors."""
    head, pieces, size = b"", [], 0
    for name, value in tensors.items():
        if isinstance(value, tuple):
            kind, shape, raw = value
        else:
            array = np.asarray(value, np.float32)
            kind, shape, raw = (types or {}).get(name, 0), array.shape, array.tobytes()
        head += _text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += struct.pack("<IQ", kind, size)
        pieces.append(raw + b"\0" * (-len(raw) % 32))
        size += len(pieces[-1])
    keys = b"".join(_text(key) + _value(value) for key, value in metadata.items())
    start = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + keys + head
    path.write_bytes(start + b"\0" * (-len(start) % 32) + b"".join(pieces))
    return path


def packed_k(values: Any, bits: int) -> Packed:
    """Rows of fp32 numbers as ``Q4_K`` or ``Q5_K``: rounded to the nearest code, nothing searched for."""
    groups = np.asarray(values, np.float32).reshape(-1, 8, 32)
    least = np.maximum(-groups.min(-1), 0)
    steps = (groups.max(-1) + least) / (2**bits - 1)
    parts = []
    for of_groups in (steps, least):
        unit = (of_groups.max(-1, keepdims=True) / 63).astype(np.float16)
        parts += [unit, np.clip(np.rint(of_groups / unit.astype(np.float32)), 0, 63).astype(np.uint8)]
    unit, scale, least_unit, shift = parts
    step = unit.astype(np.float32) * scale
    below = least_unit.astype(np.float32) * shift
    codes = np.rint((groups + below[..., None]) / np.where(step, step, 1)[..., None])
    codes = np.clip(codes, 0, 2**bits - 1).astype(np.uint8).reshape(-1, 4, 2, 32)
    sixes = [
        scale[:, :4] | (scale[:, 4:] >> 4 << 6),
        shift[:, :4] | (shift[:, 4:] >> 4 << 6),
        (scale[:, 4:] & 15) | (shift[:, 4:] & 15) << 4,
    ]
    fifth = (codes >> 4).reshape(-1, 8, 32) << np.arange(8, dtype=np.uint8)[:, None]
    low = codes & 15
    nibbles = (low[:, :, 0] | low[:, :, 1] << 4).reshape(-1, 128)
    blocks = [unit.view(np.uint8), least_unit.view(np.uint8), *sixes]
    blocks += [fifth.sum(1, dtype=np.uint8)] * (bits == 5) + [nibbles]
    return {4: 12, 5: 13}[bits], np.shape(values), np.concatenate(blocks, axis=1).tobytes()
