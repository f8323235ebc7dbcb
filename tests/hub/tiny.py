"""Small, valid weight files made in memory, and ways to make them lie."""

from __future__ import annotations

import json
import random
import struct
from typing import Any


def safetensors(sizes: dict[str, int], seed: int = 0, **changes: Any) -> bytes:
    """A safetensors file of U8 tensors; ``changes`` replace entries of the header."""
    header: dict[str, Any] = {}
    at = 0
    for name, size in sizes.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        at += size
    encoded = json.dumps({**header, **changes}).encode()
    return struct.pack("<Q", len(encoded)) + encoded + random.Random(seed).randbytes(at)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def gguf(
    elements: int = 64, *, offset: int = 0, kind: int = 0, room: int | None = None, second: int | None = None
) -> bytes:
    """A GGUF file with a tensor ``w`` of ``elements`` elements (shape 2 × half) and a long vocabulary.

    ``second`` is where another tensor ``v`` of the same shape begins.
    """
    pairs = [
        _text("general.architecture") + struct.pack("<I", 8) + _text("llama"),
        _text("llama.block_count") + struct.pack("<II", 4, 3),
        _text("llama.rope.freq_base") + struct.pack("<If", 6, 10000.0),
        _text("tokenizer.ggml.tokens")
        + struct.pack("<IIQ", 9, 8, 1000)
        + b"".join(_text(f"token{i}") for i in range(1000)),
        _text("llama.sections") + struct.pack("<IIQ3i", 9, 5, 3, 1, 2, 3),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, 1 if second is None else 2, len(pairs)) + b"".join(pairs)
    head += _text("w") + struct.pack("<IQQIQ", 2, elements // 2, 2, kind, offset)
    if second is not None:
        head += _text("v") + struct.pack("<IQQIQ", 2, elements // 2, 2, kind, second)
    head += b"\0" * (-len(head) % 32)
    return head + b"\0" * (4 * elements if room is None else room)
