"""PNG files, written with the standard library alone (PNG specification, third edition)."""

from __future__ import annotations

import struct
import zlib

from mlxengine import Array

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(pixels: Array) -> bytes:
    """A PNG of pixels of shape (height, width, 3), uint8.

    Raises:
        ValueError: they are something else.
    """
    if pixels.dtype != "uint8" or len(pixels.shape) != 3 or pixels.shape[2] != 3:
        raise ValueError(
            f"A picture has pixels (height, width, 3) of uint8, found {pixels.shape} {pixels.dtype}."
        )
    height, width, _ = pixels.shape
    view = memoryview(pixels.data).cast("B")
    line = width * 3
    rows = b"".join(b"\0" + bytes(view[row * line : (row + 1) * line]) for row in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    return b"".join(
        [_SIGNATURE, _chunk(b"IHDR", head), _chunk(b"IDAT", zlib.compress(rows, 6)), _chunk(b"IEND", b"")]
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


__all__ = ["png"]
