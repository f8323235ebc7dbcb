"""Caches of several rows: what can be read in one pass, and how the result becomes a batch.

Prompts that start at the same position are read into the model's plain caches, all rows at once and padded on
the right: under a causal mask no token sees the padding behind it, so the mask stays the fast one that needs
no array. That holds for caches that can be cut back by setting their length. Recurrent states would take the
padding in, and sliding windows would let real positions go for it: such prompts share a pass only when they
are equally long.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from attrs import frozen
from mlx_lm.models.cache import (
    ArraysCache,
    BatchKVCache,
    CacheList,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    dynamic_roll,
)

from ._caches import own


@frozen(kw_only=True)
class Company:
    """What the caches of a model allow; `Trial` finds out whether its network does.

    Args:
        padded: prompts of different lengths may be read in one pass from the start.
        equal: prompts of one length may.
        behind: so may prompts behind caches of different lengths, left padding masked.
        together: rows may decode in one pass.
    """

    padded: bool
    equal: bool
    behind: bool
    together: bool

    @classmethod
    def of(cls, layers: Sequence[Any]) -> Company:
        """Told from the classes of a row's empty caches."""
        padded = all(type(layer) is KVCache for layer in layers)
        return cls(
            padded=padded,
            equal=all(map(_divisible, layers)),
            behind=padded or all(isinstance(layer, QuantizedKVCache) for layer in layers),
            together=all(map(_mergeable, layers)),
        )


def _divisible(layer: Any) -> bool:
    if type(layer) is CacheList:
        return all(map(_divisible, layer.caches))
    return type(layer) in (KVCache, ArraysCache) or (type(layer) is RotatingKVCache and not layer.keep)


def _mergeable(layer: Any) -> bool:
    if type(layer) is CacheList:
        return all(map(_mergeable, layer.caches))
    return hasattr(own(layer), "merge")


def batch_of(layers: Sequence[Any], lengths: Sequence[int]) -> list[Any]:
    """Plain caches that hold rows of such lengths, padded on the right, as a batch's caches."""
    return [_batch(layer, lengths) for layer in layers]


def _batch(layer: Any, lengths: Sequence[int]) -> Any:
    if type(layer) is not KVCache or layer.keys is None:
        rows = [own(_row(layer, at, length)) for at, length in enumerate(lengths)]
        return type(rows[0]).merge(rows)
    longest = max(lengths)
    padding = [longest - length for length in lengths]
    found = BatchKVCache(padding)
    found.keys, found.values, found._idx = layer.keys, layer.values, longest
    found.offset = found.offset + longest
    if any(padding):  # a batch's rows end together
        shift = found.left_padding[:, None]
        found.keys = dynamic_roll(found.keys[..., :longest, :], shift, axis=2)
        found.values = dynamic_roll(found.values[..., :longest, :], shift, axis=2)
    return found


def _row(layer: Any, at: int, length: int) -> Any:
    """One row of a plain cache."""
    if type(layer) is CacheList:
        return CacheList(*(_row(part, at, length) for part in layer.caches))
    if type(layer) is ArraysCache:
        found = ArraysCache(len(layer.cache))
        found.cache = [None if part is None else part[at : at + 1] for part in layer.cache]
        return found
    if layer.empty():
        return layer
    found = copy.copy(layer)
    found.keys, found.values = layer.keys[at : at + 1], layer.values[at : at + 1]
    if type(layer) is KVCache:
        found.offset = length
    return found


def cut(layers: Sequence[Any], length: int) -> None:
    """Forget what was read of the padding behind ``length`` positions."""
    for layer in layers:
        if type(layer) is KVCache:
            layer.offset = length


def states(layers: Sequence[Any]) -> list[Any]:
    """The arrays of caches, to be evaluated."""
    return [layer.state for layer in layers]


def matrix(pieces: Sequence[Sequence[int]], length: int) -> mx.array:
    """Token ids of several prompts, shape (rows, length), zeros behind the shorter ones."""
    return mx.array([[*piece, *[0] * (length - len(piece))] for piece in pieces])


__all__ = ["Company", "batch_of", "cut", "matrix", "states"]
