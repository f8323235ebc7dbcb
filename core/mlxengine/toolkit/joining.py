"""Key-value caches of several requests: which can be filled in one pass, and how they become a batch's.

Prompts that start at the same position are read into the model's plain caches, all rows at once and padded on
the right: under a causal mask no token sees the padding behind it, so the mask stays the fast one that needs
no array. That holds for caches that can be cut back by setting their length. Recurrent states would take the
padding in, and sliding windows would let real positions go for it: such prompts share a pass only when they
are equally long.

mlx-lm and mlx-vlm have caches of the same names and making; they are told apart by these.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from attrs import frozen


@frozen(kw_only=True)
class Company:
    """What the caches of a model allow; a plugin finds out whether its network does.

    Args:
        padded: prompts of different lengths may be read in one pass from the start.
        equal: prompts of one length may.
        behind: so may prompts behind caches of different lengths, left padding masked.
        together: rows may decode in one pass.
    """

    padded: bool
    equal: bool
    behind: bool
    together: bool = True

    @classmethod
    def of(cls, layers: Sequence[Any], own: Callable[[Any], Any] = lambda layer: layer) -> Company:
        """Told from the classes of a row's empty caches; ``own`` makes of one what joins a batch."""
        padded = all(map(_plain, layers))
        return cls(
            padded=padded,
            equal=all(map(_divisible, layers)),
            behind=padded or all(_name(layer) == "PackedKVCache" for layer in layers),
            together=all(_mergeable(own(layer)) for layer in layers),
        )


def _name(layer: Any) -> str:
    return type(layer).__name__


def _plain(layer: Any) -> bool:
    """Whether it holds all keys and values of a row, and no more."""
    return _name(layer) == "KVCache"


def _divisible(layer: Any) -> bool:
    if _name(layer) == "CacheList":
        return all(map(_divisible, layer.caches))
    return _name(layer) in ("KVCache", "ArraysCache") or (
        _name(layer) == "RotatingKVCache" and not layer.keep
    )


def _mergeable(layer: Any) -> bool:
    if _name(layer) == "CacheList":
        return all(map(_mergeable, layer.caches))
    return hasattr(layer, "merge")


Merge = Callable[[Sequence[Sequence[Any]]], list[Any]]
"""Makes a batch's caches of the plain ones of single rows."""


def merged(rows: Sequence[Sequence[Any]]) -> list[Any]:
    """A batch's caches of the plain ones of single rows, by the library's own ``merge``."""
    return [type(parts[0]).merge(parts) for parts in zip(*rows, strict=True)]


def batch_of(layers: Sequence[Any], lengths: Sequence[int], merge: Merge = merged) -> list[Any]:
    """Plain caches that hold rows of such lengths, padded on the right, as a batch's caches."""
    return [_batch(layer, lengths, merge) for layer in layers]


def rows_of(layers: Sequence[Any], at: int, length: int) -> list[Any]:
    """One row's plain caches, of plain ones that hold several."""
    return [_row(layer, at, length) for layer in layers]


def _batch(layer: Any, lengths: Sequence[int], merge: Merge) -> Any:
    if not _plain(layer) or layer.keys is None:
        return merge([[_row(layer, at, length)] for at, length in enumerate(lengths)])[0]
    longest = max(lengths)
    padding = [longest - length for length in lengths]
    empty = type(layer)()
    found = type(empty.merge([empty]))(padding)
    found.keys, found.values, found._idx = layer.keys, layer.values, longest
    found.offset = found.offset + longest
    if any(padding):  # a batch's rows end together
        shift = found.left_padding[:, None]
        found.keys = _rolled(found.keys[..., :longest, :], shift)
        found.values = _rolled(found.values[..., :longest, :], shift)
    return found


def _rolled(states: mx.array, shift: mx.array) -> mx.array:
    """Each row's positions moved to the right by its shift, those beyond the end to the front."""
    length = states.shape[2]
    order = (mx.arange(length) - shift) % length
    return mx.take_along_axis(states, order[:, None, :, None], axis=2)


def _row(layer: Any, at: int, length: int) -> Any:
    """One row of a plain cache."""
    if _name(layer) == "CacheList":
        return type(layer)(*(_row(part, at, length) for part in layer.caches))
    if _name(layer) == "ArraysCache":
        found = type(layer)(len(layer.cache))
        found.cache = [None if part is None else part[at : at + 1] for part in layer.cache]
        return found
    if layer.empty():
        return layer
    found = copy.copy(layer)
    found.keys, found.values = layer.keys[at : at + 1], layer.values[at : at + 1]
    if _plain(layer):
        found.offset = length
    return found


def cut(layers: Sequence[Any], length: int) -> None:
    """Forget what was read of the padding behind ``length`` positions."""
    for layer in layers:
        if _plain(layer):
            layer.offset = length


def states(layers: Sequence[Any]) -> list[Any]:
    """The arrays of caches, to be evaluated."""
    return [layer.state for layer in layers]


def matrix(pieces: Sequence[Sequence[int]], length: int) -> mx.array:
    """Token ids of several prompts, shape (rows, length), zeros behind the shorter ones."""
    return mx.array([[*piece, *[0] * (length - len(piece))] for piece in pieces])


__all__ = ["Company", "Merge", "batch_of", "cut", "matrix", "merged", "rows_of", "states"]
