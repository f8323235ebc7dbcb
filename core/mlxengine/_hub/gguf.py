"""The metadata and tensor directory of a GGUF file (versions 2 and 3), without any tensor library.

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
from typing import Any

from ..contract.configuration import TensorInfo
from ..errors import CorruptFileError
from .headers import Reader

MOST_DIRECTORY_BYTES = 128 << 20
_LONGEST_TEXT = 64 << 10
_LONGEST_ARRAY = 64
_MOST_ITEMS = 1 << 17  # tensors, or entries of metadata
_MOST_VALUES = 1 << 21  # of an array: twice the words of the largest vocabularies

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9

# ggml type number: name, elements in a block, bytes of a block
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


def gguf_directory(read: Reader, size: int, file: str) -> tuple[dict[str, Any], tuple[TensorInfo, ...]]:
    """Metadata (numbers, texts of at most 64 KiB, arrays of at most 64 numbers) and tensors of a GGUF file.

    Shapes are written with the slowest dimension first, as mlx and numpy do.

    Raises:
        CorruptFileError: the file is not GGUF, or its directory does not fit the file.
    """
    metadata, entries = gguf_contents(read, size, file, whole=False)
    return metadata, tuple(tensor for _, tensor in entries)


def gguf_contents(
    read: Reader, size: int, file: str, *, whole: bool = True
) -> tuple[dict[str, Any], list[tuple[int, TensorInfo]]]:
    """Like `gguf_directory`, with the byte at which each tensor begins; ``whole``: and with long arrays."""
    cursor = _Cursor(read, size, file, whole)
    magic, version = cursor.take(4), cursor.number("I")
    if magic != b"GGUF" or version not in (2, 3):
        raise _lie(file, f"it begins with {magic!r}, version {version}")
    tensor_count, pair_count = cursor.number("Q"), cursor.number("Q")
    if max(tensor_count, pair_count) > _MOST_ITEMS:
        raise _lie(file, f"it claims {tensor_count} tensors and {pair_count} metadata entries")
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = cursor.text()
        value = cursor.value(cursor.number("I"))
        if key in metadata:
            raise _lie(file, f"its metadata names {key!r} twice")
        if value is not None:
            metadata[key] = value
    entries = [_entry(cursor, file) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        raise _lie(file, f"its alignment is {alignment!r}")
    begin = -(-cursor.at // alignment) * alignment
    if len({tensor.name for _, tensor in entries}) < len(entries):
        raise _lie(file, "it names a tensor twice")
    _check_ranges(entries, size - begin, file)
    return metadata, [(begin + offset, tensor) for offset, tensor in entries]


def _entry(cursor: _Cursor, file: str) -> tuple[int, TensorInfo]:
    name = cursor.text()
    dimensions = cursor.number("I")
    if dimensions > 8:
        raise _lie(file, f"tensor {name!r} has {dimensions} dimensions")
    shape = tuple(reversed([cursor.number("Q") for _ in range(dimensions)]))
    kind, offset = cursor.number("I"), cursor.number("Q")
    label, per_block, block_bytes = _TYPES.get(kind, (f"ggml:{kind}", 1, 0))
    elements = math.prod(shape)
    if elements % per_block or elements >= 2**62:
        raise _lie(file, f"tensor {name!r} of shape {shape} is not made of {label} blocks")
    nbytes = elements // per_block * block_bytes
    return offset, TensorInfo(name=name, dtype=label, shape=shape, nbytes=nbytes, file=file)


def _check_ranges(entries: list[tuple[int, TensorInfo]], room: int, file: str) -> None:
    end = 0
    for offset, tensor in sorted(entries, key=lambda pair: pair[0]):
        if offset < end:
            raise _lie(file, f"its tensors overlap at byte {offset} ({tensor.name!r})")
        end = offset + tensor.nbytes
        if end > room:
            raise _lie(file, f"tensor {tensor.name!r} ends {end - room} bytes after the file")


class _Cursor:
    """Reads forward through a file in pieces, never past its end or past the largest directory."""

    _PIECE = 1 << 18

    def __init__(self, read: Reader, size: int, file: str, whole: bool = False) -> None:
        self._whole = whole
        self._read, self._file = read, file
        self._limit = min(size, MOST_DIRECTORY_BYTES)
        self._piece = b""
        self._begin = 0
        self.at = 0

    def take(self, count: int) -> bytes:
        if self.at + count > self._limit:
            raise _lie(self._file, f"its directory does not end within {self._limit} bytes")
        first = self.at - self._begin
        if not 0 <= first <= len(self._piece) - count:
            stop = min(self._limit, self.at + max(count, self._PIECE))
            self._piece, self._begin, first = self._read(self.at, stop), self.at, 0
            if len(self._piece) < count:
                raise _lie(self._file, "it ends within its directory")
        self.at += count
        return self._piece[first : first + count]

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > self._limit:
            raise _lie(self._file, f"its directory does not end within {self._limit} bytes")

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """The value, or ``None`` where it is too long to be kept."""
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _TEXT:
            length = self.number("Q")
            if length > _LONGEST_TEXT:
                return self.skip(length)
            return self.take(length).decode("utf-8", "replace")
        if kind != _ARRAY:
            raise _lie(self._file, f"it has a metadata value of unknown type {kind}")
        item, length = self.number("I"), self.number("Q")
        if item in _NUMBERS:
            width = struct.calcsize("<" + _NUMBERS[item])
            if length > _LONGEST_ARRAY and not self._whole:
                return self.skip(width * length)
            if length > min(self._limit, _MOST_VALUES):
                raise _lie(self._file, f"it has an array of {length} numbers")
            return struct.unpack(f"<{length}{_NUMBERS[item]}", self.take(width * length))
        if item != _TEXT or length > min(self._limit, _MOST_VALUES):
            raise _lie(self._file, f"it has an array of {length} values of type {item}")
        if self._whole:
            return tuple(self.text() for _ in range(length))
        for _ in range(length):
            self.skip(self.number("Q"))
        return None


def _lie(file: str, what: str) -> CorruptFileError:
    return CorruptFileError(
        f"{file} is not a valid GGUF file: {what}.",
        hint="Fetch it again; if that does not help, the file itself is damaged.",
    )
