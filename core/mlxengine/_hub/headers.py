"""Safetensors headers: parsed from the first bytes of a file, and checked against its size.

The layout is that of the safetensors format: eight bytes (little-endian length ``n``), ``n`` bytes of
JSON, then the tensors' bytes without a hole (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from ..contract.configuration import TensorInfo
from ..errors import CorruptFileError, IncompatibleWeightsError
from .names import read_json

Reader = Callable[[int, int], bytes]
"""``read(start, stop)`` returns the bytes of a file in that range; shorter only at the file's end."""

MOST_HEADER_BYTES = 16 << 20
_MOST_TENSORS = 1 << 18
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


def safetensors_tensors(read: Reader, size: int, file: str) -> tuple[TensorInfo, ...]:
    """The tensors that a safetensors file of ``size`` bytes says it holds, in the order of their bytes.

    Raises:
        CorruptFileError: the header's length, a tensor's range, or the ranges together do not fit the file.
    """
    start = read(0, 8)
    if len(start) < 8:
        raise _lie(file, f"it has {size} bytes, a header takes at least 8")
    length = int.from_bytes(start, "little")
    if length > min(size - 8, MOST_HEADER_BYTES):
        raise _lie(file, f"its header says it is {length} bytes long, the file has {size}")
    data = read(8, 8 + length)
    if len(data) != length:
        raise _lie(file, f"its header ends after {len(data)} of {length} bytes")
    try:
        entries = read_json(data, f"The header of {file}", unique=True)
    except IncompatibleWeightsError as error:
        raise _lie(file, str(error.__cause__)) from error
    if not isinstance(entries, dict):
        raise _lie(file, "its header is not an object")
    if len(entries) > _MOST_TENSORS:
        raise _lie(file, f"its header describes {len(entries)} tensors")
    entries.pop("__metadata__", None)
    found = sorted((_tensor(name, entry, file) for name, entry in entries.items()), key=lambda pair: pair[0])
    end = 0
    for begin, tensor in found:
        if begin != end:
            how = "overlap" if begin < end else "leave a hole"
            raise _lie(file, f"its tensors {how} at byte {min(begin, end)} ({tensor.name!r})")
        end += tensor.nbytes
    if end != size - 8 - length:
        raise _lie(file, f"its tensors take {end} bytes, the file has {size - 8 - length} for them")
    return tuple(tensor for _, tensor in found)


def dtype_bits(dtype: str) -> int:
    """Bits of one element of a safetensors dtype (16 for one that is not known)."""
    return _BITS.get(dtype, 16)


def _tensor(name: str, entry: Any, file: str) -> tuple[int, TensorInfo]:
    if not isinstance(entry, Mapping):
        raise _lie(file, f"tensor {name!r} is not described")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise _lie(file, f"the description of tensor {name!r} is not valid")
    begin, stop = offsets
    bits = _BITS.get(dtype)
    if stop < begin or (bits is not None and (stop - begin) * 8 != math.prod(shape) * bits):
        raise _lie(file, f"tensor {name!r} ({dtype}, shape {shape}) cannot take {stop - begin} bytes")
    return begin, TensorInfo(name=name, dtype=dtype, shape=tuple(shape), nbytes=stop - begin, file=file)


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) <= 16
        and all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**63 for item in value)
    )


def _lie(file: str, what: str) -> CorruptFileError:
    return CorruptFileError(
        f"{file} is not a valid safetensors file: {what}.",
        hint="Fetch it again; if that does not help, the repository itself is damaged.",
    )
