"""What a GGUF file says about itself: its metadata and its tensor directory, without its tensors.

Follows the GGUF specification, versions 2 and 3, little-endian
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

from attrs import frozen

from .configuration import TensorInfo
from .errors import CorruptFileError

MAGIC = b"GGUF"

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_STRING, _MAX_ITEMS, _MAX_TENSORS, _MAX_DIMENSIONS = 1 << 24, 1 << 22, 1 << 17, 4

# ggml type number -> (name, weights in a block, bytes of a block)
_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}


@frozen(kw_only=True)
class GGUFHeader:
    """Metadata (scalars, strings and arrays, by key) and tensors (shapes as numpy writes them)."""

    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]


class _Reader:
    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream = stream
        self._name = name

    def corrupt(self, what: str) -> CorruptFileError:
        return CorruptFileError(f"{self._name} is not a sound GGUF file: {what}.", hint="Fetch it again.")

    def take(self, count: int) -> bytes:
        data = self._stream.read(count)
        if len(data) != count:
            raise EOFError(f"{self._name} ends inside its GGUF header.")
        return data

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def count(self, limit: int, what: str) -> int:
        value = int(self.scalar("Q"))
        if value > limit:
            raise self.corrupt(f"it claims {value} {what}")
        return value

    def text(self) -> str:
        return self.take(self.count(_MAX_STRING, "bytes of text")).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY and depth < 2:
            inner, count = self.scalar("I"), self.count(_MAX_ITEMS, "items")
            code = _SCALARS.get(inner)
            if code is None:
                return [self.value(inner, depth + 1) for _ in range(count)]
            data = self.take(count * struct.calcsize("<" + code))
            return list(struct.unpack(f"<{count}{code}", data))
        if kind not in _SCALARS:
            raise self.corrupt(f"it has a value of the unknown type {kind}")
        return self.scalar(_SCALARS[kind])

    def tensor(self) -> TensorInfo:
        name, rank = self.text(), self.scalar("I")
        if rank > _MAX_DIMENSIONS:
            raise self.corrupt(f"the tensor {name!r} has {rank} dimensions")
        shape = tuple(reversed([int(self.scalar("Q")) for _ in range(rank)]))
        number, _offset = self.scalar("I"), self.scalar("Q")
        dtype, block, size = _TYPES.get(number, (f"type {number}", 1, 0))
        return TensorInfo(
            name=name, dtype=dtype, shape=shape, nbytes=math.prod(shape) // block * size, file=self._name
        )


def read_header(stream: BinaryIO, name: str) -> GGUFHeader:
    """Read the header from the start of a GGUF file, or of as much of it as was fetched.

    Raises:
        EOFError: the stream ends before the header does: come back with more of the file.
        CorruptFileError: this is not GGUF, or its counts make no sense.
    """
    reader = _Reader(stream, name)
    if reader.take(4) != MAGIC:
        raise reader.corrupt("it does not begin with GGUF")
    version = reader.scalar("I")
    if version not in (2, 3):
        raise reader.corrupt(f"its version is {version}, and 2 and 3 are known")
    tensors, keys = reader.count(_MAX_TENSORS, "tensors"), reader.count(_MAX_ITEMS, "keys")
    metadata = {reader.text(): reader.value(reader.scalar("I")) for _ in range(keys)}
    return GGUFHeader(metadata=metadata, tensors=tuple(reader.tensor() for _ in range(tensors)))


__all__ = ["MAGIC", "GGUFHeader", "read_header"]
