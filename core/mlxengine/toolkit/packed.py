"""Key-value caches whose numbers are packed to a few bits, of one row and of several.

They answer to what mlx-lm and mlx-vlm call on their own caches; these take what has ``bits`` as packed.
Where the device cannot multiply with packed numbers, a layer's are unpacked for its attention, and it has no
``bits``.
mlx packs each token's keys and values by themselves, so a row holds the same numbers in a batch as alone.
Rows are padded on the left, as in the libraries' own batches, and the mask leaves the padding out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import mlx.core as mx

from ..errors import out_of_memory

_STEP = 256  # positions that a full buffer grows by


@cache
def multiplies(dtype: mx.Dtype, key_width: int, value_width: int, group_size: int, bits: int) -> bool:
    """Whether this device multiplies with packed numbers as attention asks for it; tried once in a process.

    mlx's CUDA back end has such products for few sizes, and not for pieces of a longer buffer, which caches
    are. One query and several are tried, of one row and of several, with query heads that share a key.
    """
    settings: dict[str, Any] = {"group_size": group_size, "bits": bits}
    product: Any = mx.quantized_matmul

    def numbers(*shape: int) -> mx.array:
        return mx.sin(mx.arange(math.prod(shape)).astype(mx.float32)).reshape(shape).astype(dtype)

    def tried(rows: int, count: int) -> bool:
        queries = numbers(rows, count, 4, key_width).swapaxes(1, 2)
        packed: list[Any] = []
        plain: list[mx.array] = []
        for width in (key_width, value_width):
            whole = mx.quantize(numbers(rows, 2, 64, width), **settings)
            held: Any = [part[..., :40, :] for part in whole]
            packed.append([part[:, :, None] for part in held])
            plain.append(mx.dequantize(*held, **settings)[:, :, None])
        queries = queries.reshape(rows, 2, 2, count, key_width) * key_width**-0.5
        scores = product(queries, *packed[0], transpose=True, **settings)
        found = product(mx.softmax(scores, axis=-1), *packed[1], transpose=False, **settings)
        wanted = mx.softmax(queries @ plain[0].swapaxes(-1, -2), axis=-1) @ plain[1]
        return bool(mx.allclose(found, wanted, rtol=0.05, atol=0.05).item())

    try:
        return all(tried(rows, count) for rows in (1, 3) for count in (1, 23))
    except Exception as error:
        if out_of_memory(error):
            raise
        return False


class _Packed:
    """``parts`` are the three arrays of the keys and the three of the values, each of shape (rows, heads,
    positions, numbers), of which the first ``_size`` positions are in use."""

    def __init__(self, group_size: int, bits: int) -> None:
        self.group_size = group_size
        self._bits = bits
        self._unpacks = False
        self.parts: list[mx.array] = []
        self._size = 0

    @property
    def bits(self) -> int:
        """Of each number; there is none where attention is handed unpacked numbers."""
        if self._unpacks:
            raise AttributeError("bits")
        return self._bits

    def _append(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Pack positions; the keys and values so far, packed where this device multiplies with that."""
        settings: dict[str, Any] = {"group_size": self.group_size, "bits": self._bits}
        self._unpacks = not multiplies(keys.dtype, keys.shape[-1], values.shape[-1], **settings)
        new = [*mx.quantize(keys, **settings), *mx.quantize(values, **settings)]
        count = keys.shape[2]
        end = self._size + count
        if not self.parts or end > self.parts[0].shape[2]:
            grown = (_STEP + count - 1) // _STEP * _STEP
            more = [mx.zeros((*part.shape[:2], grown, part.shape[3]), part.dtype) for part in new]
            self.parts = (
                [mx.concatenate(list(pair), axis=2) for pair in zip(self._held(), more, strict=True)]
                if self.parts
                else more
            )
        for part, piece in zip(self.parts, new, strict=True):
            part[..., self._size : end, :] = piece
        self._size = end
        held: Any = self._held()
        if self._unpacks:
            return mx.dequantize(*held[:3], **settings), mx.dequantize(*held[3:], **settings)
        return tuple(held[:3]), tuple(held[3:])

    def empty(self) -> bool:
        """Whether nothing was ever appended."""
        return not self.parts

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, what is not in use yet included."""
        return sum(part.nbytes for part in self.parts)

    def _held(self) -> list[mx.array]:
        return [part[..., : self._size, :] for part in self.parts]


class PackedKVCache(_Packed):
    """One row's packed cache, which can join a batch.

    Args:
        group_size: numbers that share a scale and a bias.
        bits: of each number.
    """

    @property
    def offset(self) -> int:
        """Positions that are held."""
        return self._size

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Pack and append positions; the keys and values so far."""
        return self._append(keys, values)

    def make_mask(self, length: int, *, return_array: bool = False, window_size: int | None = None) -> Any:
        """Which positions the next ``length`` tokens may look at."""
        if window_size is None and not return_array:
            return None if length == 1 else "causal"
        return _causal(length, self._size, window_size)

    def is_trimmable(self) -> bool:
        """Whether `trim` can be called."""
        return True

    def trim(self, count: int) -> int:
        """Forget the last positions; how many."""
        count = min(self._size, count)
        self._size -= count
        return count

    def size(self) -> int:
        """Positions that are held."""
        return self._size

    @property
    def state(self) -> list[mx.array]:
        """The packed keys and values that are held, six arrays or none; what is assigned is held then."""
        return self._held()

    @state.setter
    def state(self, parts: Sequence[mx.array]) -> None:
        self.parts = list(parts)
        self._size = self.parts[0].shape[2] if self.parts else 0

    @staticmethod
    def merge(rows: Sequence[PackedKVCache]) -> BatchPackedKVCache:
        """A batch of rows, padded on the left to the longest one."""
        longest = max(row.offset for row in rows)
        found = BatchPackedKVCache(rows[0].group_size, rows[0]._bits, [longest - row.offset for row in rows])
        if longest:
            found.parts = _stacked([(row.state, 1) for row in rows], longest)
            found.offset = found.offset + longest
            found._size = longest
        return found


class BatchPackedKVCache(_Packed):
    """The packed cache of several rows; ``offset`` (rows,) are the rows' own lengths."""

    def __init__(self, group_size: int, bits: int, left_padding: Sequence[int]) -> None:
        super().__init__(group_size, bits)
        self.left_padding = mx.array(list(left_padding))
        self.offset = -self.left_padding
        self._right_padding: mx.array | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Pack and append positions; the keys and values so far."""
        self.offset = self.offset + keys.shape[2]
        return self._append(keys, values)

    def make_mask(self, length: int, *, window_size: int | None = None, **_always_an_array: Any) -> mx.array:
        """Which positions the next ``length`` tokens of each row may look at."""
        own = mx.arange(self._size + length) >= self.left_padding[:, None, None, None]
        return _causal(length, self._size, window_size) & own

    def prepare(self, *, right_padding: Sequence[int], **_lengths: Any) -> None:
        """Before rows of different lengths are read in one pass, padded on the right."""
        self._right_padding = mx.array(list(right_padding))

    def finalize(self) -> None:
        """After that pass: the padding moves to the left."""
        padding, self._right_padding = self._right_padding, None
        if padding is not None:
            length = self.parts[0].shape[2]
            order = ((mx.arange(length) - padding[:, None]) % length)[:, None, :, None]
            self.parts = [mx.take_along_axis(part, order, axis=2) for part in self.parts]
            self.offset = self.offset - padding
            self.left_padding = self.left_padding + padding

    def filter(self, keep: Sequence[int]) -> None:
        """Keep these rows, and no more padding than they need."""
        at = mx.array(list(keep))
        self.parts = [part[at] for part in self.parts]
        self.offset, self.left_padding = self.offset[at], self.left_padding[at]
        least: Any = self.left_padding.min().item()
        if least > 0:
            self.parts = [part[..., least:, :] for part in self.parts]
            self._size -= least
            self.left_padding = self.left_padding - least

    def extend(self, other: BatchPackedKVCache) -> None:
        """Take in the rows of another batch."""
        longest = max(self._size, other._size)
        padding = [one.left_padding + (longest - one._size) for one in (self, other)]
        if self.parts or other.parts:
            rows = [(one._held(), one.offset.shape[0]) for one in (self, other)]
            self.parts = _stacked(rows, longest)
        self.offset = mx.concatenate([self.offset, other.offset])
        self.left_padding = mx.concatenate(padding)
        self._size = longest

    def extract(self, at: int) -> PackedKVCache:
        """One row's cache of its own."""
        found = PackedKVCache(self.group_size, self._bits)
        padding: Any = self.left_padding[at].item()
        found.state = [mx.contiguous(part[at : at + 1, :, padding : self._size]) for part in self.parts]
        return found

    @property
    def state(self) -> tuple[mx.array, ...]:
        """All arrays, to be evaluated."""
        return (*self.parts, self.offset, self.left_padding)


def _causal(length: int, held: int, window: int | None) -> mx.array:
    """Shape (length, held + length), bool."""
    queries, keys = mx.arange(held, held + length)[:, None], mx.arange(held + length)[None]
    mask: mx.array = queries >= keys
    return mask if window is None else mask & (queries < keys + window)


def _stacked(batches: Sequence[tuple[list[mx.array], int]], size: int) -> list[mx.array]:
    """The parts of several batches, each with its number of rows, with zeros before them to ``size``."""
    found = []
    for at, like in enumerate(next(parts for parts, _ in batches if parts)):
        padded = [
            mx.pad(parts[at], [(0, 0), (0, 0), (size - parts[at].shape[2], 0), (0, 0)])
            if parts
            else mx.zeros((rows, like.shape[1], size, like.shape[3]), like.dtype)
            for parts, rows in batches
        ]
        found.append(mx.concatenate(padded))
    return found


__all__ = ["BatchPackedKVCache", "PackedKVCache", "multiplies"]
