"""Bounded key-value caches: the first tokens and the last ones, alone and in a batch.

Attention leans on the first tokens of a text, whatever they say (Xiao et al. 2023), so a bounded cache keeps
``keep`` of them and lets the oldest of the others go. A token attends to those first ones and to the last
``max_size - keep``, itself included, however a prompt was cut into pieces. mlx-lm's `RotatingKVCache` does so
too when it reads token by token; its mask of longer pieces leaves the first ones out, which about doubles the
perplexity of what follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import RotatingKVCache

_STEP = 256  # positions that a full buffer grows by


class BoundedKVCache(RotatingKVCache):  # type: ignore[misc]
    """One row's bounded cache, which can join a batch."""

    def make_mask(self, length: int, *, return_array: bool = False, **_no_window: Any) -> Any:
        """Which of the held positions the next ``length`` tokens may look at; the first ones always."""
        if length == 1:
            return None
        held = min(self.max_size - 1, self.offset)  # what `update_and_fetch` leaves before them
        if held + length <= self.max_size and not return_array:
            return "causal"
        mask: mx.array = create_causal_mask(length, held, window_size=self.max_size - self.keep)
        first = mx.arange(held + length)[None] < self.keep
        return mask | (first & create_causal_mask(length, held))

    @staticmethod
    def merge(rows: Sequence[BoundedKVCache]) -> BatchBoundedKVCache:
        """A batch of rows, each in the order of its own buffer."""
        return BatchBoundedKVCache(rows)

    def ring(self) -> tuple[list[mx.array], int]:
        """The keys and the values that are held, at most ``max_size``, and where the next ones go."""
        if self.keys is None:
            return [], 0
        surplus = self.keys.shape[2] - self.max_size
        if surplus > 0:
            return [self._trim(surplus, part) for part in (self.keys, self.values)], self.max_size
        size = min(self.offset, self.keys.shape[2])
        return [part[..., :size, :] for part in (self.keys, self.values)], self._idx


class BatchBoundedKVCache:
    """The bounded caches of several rows, with the methods that mlx-lm calls on a batch's caches.

    Every row begins at slot 0 and has its own place where the next position goes, so nothing is padded on the
    left. ``parts`` are the keys and the values, each of shape (rows, heads, slots, numbers); ``offset``
    (rows,) counts the positions that each row has seen, ``at`` (rows,) is its next slot.

    Args:
        rows: the caches of single rows, of one size.
    """

    def __init__(self, rows: Sequence[BoundedKVCache]) -> None:
        rings = [row.ring() for row in rows]
        self.max_size, self.keep = rows[0].max_size, rows[0].keep
        self.offset = mx.array([row.offset for row in rows])
        self.at = mx.array([at for _, at in rings])
        self.parts: list[mx.array] = []
        self._used = max((parts[0].shape[2] for parts, _ in rings if parts), default=0)
        self._right_padding: mx.array | None = None
        if self._used:
            self.parts = _stacked([(parts, 1) for parts, _ in rings], self._used)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, ...]:
        """Add positions; the keys and values that are held. Several at once must not exceed the bound."""
        count = keys.shape[2]
        before, self._used = self._used, min(self._used + count, self.max_size)
        self._grow(keys, values)
        if count == 1:
            slot = mx.where(self.at >= self.max_size, self.keep, self.at)
            where = mx.broadcast_to(slot[:, None, None, None], (keys.shape[0], keys.shape[1], 1, 1))
            self.parts = [
                mx.put_along_axis(part, where, new, axis=2)
                for part, new in zip(self.parts, (keys, values), strict=True)
            ]
            self.at = slot + 1
        else:  # a prompt is read into rows of the same length, all of it within the bound
            assert before + count <= self.max_size
            for part, new in zip(self.parts, (keys, values), strict=True):
                part[..., before : before + count, :] = new
            self.at = self.at + count
        self.offset = self.offset + count
        return tuple(part[..., : self._used, :] for part in self.parts)

    def make_mask(self, length: int, **_always_an_array: Any) -> mx.array:
        """Which slots the next ``length`` tokens of each row may look at."""
        if length > 1:
            mask: mx.array = create_causal_mask(length, self._used)
            return mask
        slots = mx.arange(min(self._used + 1, self.max_size))
        return (slots < mx.minimum(self.offset + 1, self.max_size)[:, None])[:, None, None, :]

    def prepare(self, *, right_padding: Sequence[int], **_lengths: Any) -> None:
        """Before rows are read in one pass, padded on the right."""
        self._right_padding = mx.array(list(right_padding))

    def finalize(self) -> None:
        """After that pass: what lies behind a row's last position is overwritten later."""
        padding, self._right_padding = self._right_padding, None
        if padding is not None:
            self.offset, self.at = self.offset - padding, self.at - padding

    def filter(self, keep: Sequence[int]) -> None:
        """Keep these rows, and no more slots than they need."""
        at = mx.array(list(keep))
        self.offset, self.at = self.offset[at], self.at[at]
        longest: Any = self.offset.max().item()
        self._used = min(longest, self.max_size)
        self.parts = [part[at][..., : self._used, :] for part in self.parts]

    def extend(self, other: BatchBoundedKVCache) -> None:
        """Take in the rows of another batch."""
        self._used = max(self._used, other._used)
        if self._used:
            self.parts = _stacked([(one.parts, one.offset.shape[0]) for one in (self, other)], self._used)
        self.offset = mx.concatenate([self.offset, other.offset])
        self.at = mx.concatenate([self.at, other.at])

    def extract(self, row: int) -> BoundedKVCache:
        """One row's cache of its own."""
        found = BoundedKVCache(self.max_size, keep=self.keep)
        mx.eval(self.offset, self.at)
        offset: Any = self.offset[row].item()
        at: Any = self.at[row].item()
        if self.parts:
            size = min(offset, self.max_size)
            found.keys, found.values = (mx.contiguous(part[row : row + 1, :, :size]) for part in self.parts)
            found.offset, found._idx = offset, at
        return found

    def empty(self) -> bool:
        return not self.parts

    @property
    def state(self) -> tuple[mx.array, ...]:
        return (*self.parts, self.offset, self.at)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def _grow(self, keys: mx.array, values: mx.array) -> None:
        held = self.parts[0].shape[2] if self.parts else 0
        if self._used <= held:
            return
        size = min(max(_STEP, self._used - held), self.max_size - held)
        more = [mx.zeros((*new.shape[:2], size, new.shape[3]), new.dtype) for new in (keys, values)]
        if self.parts:
            more = [mx.concatenate(list(pair), axis=2) for pair in zip(self.parts, more, strict=True)]
        self.parts = more


def _stacked(batches: Sequence[tuple[list[mx.array], int]], size: int) -> list[mx.array]:
    """The parts of several batches, each with its number of rows, with zeros behind them up to ``size``."""
    found = []
    for at, like in enumerate(next(parts for parts, _ in batches if parts)):
        filled = []
        for parts, rows in batches:
            part = parts[at] if parts else mx.zeros((rows, like.shape[1], 0, like.shape[3]), like.dtype)
            part = part[..., :size, :]
            filled.append(mx.pad(part, [(0, 0), (0, 0), (0, size - part.shape[2]), (0, 0)]))
        found.append(mx.concatenate(filled))
    return found


__all__ = ["BatchBoundedKVCache", "BoundedKVCache"]
