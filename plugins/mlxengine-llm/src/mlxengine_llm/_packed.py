"""Packed key-value caches of several rows: what mlx-lm's batch needs to hold `QuantizedKVCache`.

mlx packs each token's keys and values by themselves, so a row holds the same numbers here as alone; rows are
padded on the left, as in mlx-lm's own batches, and the mask leaves the padding out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import QuantizedKVCache, dynamic_roll

_STEP = 256  # positions that a full buffer grows by


class PackedKVCache(QuantizedKVCache):  # type: ignore[misc]
    """One row's packed cache, which can join a batch."""

    @classmethod
    def of(cls, layer: Any) -> PackedKVCache:
        """The same cache, over the same arrays."""
        found = cls(group_size=layer.group_size, bits=layer.bits)
        found.keys, found.values, found.offset = layer.keys, layer.values, layer.offset
        return found

    def plain(self) -> QuantizedKVCache:
        """mlx-lm's cache over the same arrays: what it can write to disk."""
        found = QuantizedKVCache(group_size=self.group_size, bits=self.bits)
        found.keys, found.values, found.offset = self.keys, self.values, self.offset
        return found

    @staticmethod
    def merge(rows: Sequence[PackedKVCache]) -> BatchPackedKVCache:
        """A batch of rows, padded on the left to the longest one."""
        longest = max(row.offset for row in rows)
        found = BatchPackedKVCache(rows[0].group_size, rows[0].bits, [longest - row.offset for row in rows])
        if longest:
            held = [[part[..., : row.offset, :] for part in _parts(row)] for row in rows]
            found.parts = _stacked([(parts, 1) for parts in held], longest)
            found.offset = found.offset + longest
            found._idx = longest
        return found


class BatchPackedKVCache:
    """The packed cache of several rows, with the methods that mlx-lm calls on a batch's caches.

    ``parts`` are the three arrays of the keys and the three of the values, each of shape (rows, heads,
    positions, numbers); ``offset`` (rows,) are the rows' own lengths.
    """

    def __init__(self, group_size: int, bits: int, left_padding: Sequence[int]) -> None:
        self.group_size = group_size
        self.bits = bits
        self.parts: list[mx.array] = []
        self.left_padding = mx.array(list(left_padding))
        self.offset = -self.left_padding
        self._idx = 0
        self._right_padding: mx.array | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Pack and append positions; the keys and values so far, packed."""
        settings = {"group_size": self.group_size, "bits": self.bits}
        new = [*mx.quantize(keys, **settings), *mx.quantize(values, **settings)]  # type: ignore[arg-type]
        count = keys.shape[2]
        end = self._idx + count
        if not self.parts or end > self.parts[0].shape[2]:
            size = (_STEP + count - 1) // _STEP * _STEP
            more = [mx.zeros((*part.shape[:2], size, part.shape[3]), part.dtype) for part in new]
            self.parts = (
                [mx.concatenate(list(pair), axis=2) for pair in zip(self._held(), more, strict=True)]
                if self.parts
                else more
            )
        for part, piece in zip(self.parts, new, strict=True):
            part[..., self._idx : end, :] = piece
        self.offset = self.offset + count
        self._idx = end
        held = self._held()
        return tuple(held[:3]), tuple(held[3:])

    def make_mask(self, length: int, *, window_size: int | None = None, **_always_an_array: Any) -> mx.array:
        """Which positions the next ``length`` tokens of each row may look at."""
        mask: mx.array = create_causal_mask(
            length, offset=self._idx, left_padding=self.left_padding, window_size=window_size
        )
        return mask

    def prepare(self, *, right_padding: Sequence[int], **_lengths: Any) -> None:
        """Before rows of different lengths are read in one pass, padded on the right."""
        self._right_padding = mx.array(list(right_padding))

    def finalize(self) -> None:
        """After that pass: the padding moves to the left."""
        padding, self._right_padding = self._right_padding, None
        if padding is not None:
            self.parts = [dynamic_roll(part, padding[:, None], axis=2) for part in self.parts]
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
            self._idx -= least
            self.left_padding = self.left_padding - least

    def extend(self, other: BatchPackedKVCache) -> None:
        """Take in the rows of another batch."""
        longest = max(self._idx, other._idx)
        padding = [one.left_padding + (longest - one._idx) for one in (self, other)]
        if self.parts or other.parts:
            rows = [(one._held(), one.offset.shape[0]) for one in (self, other)]
            self.parts = _stacked(rows, longest)
        self.offset = mx.concatenate([self.offset, other.offset])
        self.left_padding = mx.concatenate(padding)
        self._idx = longest

    def extract(self, at: int) -> QuantizedKVCache:
        """One row's cache of its own."""
        found = QuantizedKVCache(group_size=self.group_size, bits=self.bits)
        padding: Any = self.left_padding[at].item()
        if self.parts:
            own = [mx.contiguous(part[at : at + 1, :, padding : self._idx]) for part in self.parts]
            found.keys, found.values = own[:3], own[3:]
            found.offset = self._idx - padding
        return found

    def empty(self) -> bool:
        return not self.parts

    @property
    def state(self) -> tuple[mx.array, ...]:
        return (*self.parts, self.offset, self.left_padding)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def _held(self) -> list[mx.array]:
        return [part[..., : self._idx, :] for part in self.parts]


def _parts(row: PackedKVCache) -> list[mx.array]:
    return [] if row.keys is None else [*row.keys, *row.values]


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


__all__ = ["BatchPackedKVCache", "PackedKVCache"]
