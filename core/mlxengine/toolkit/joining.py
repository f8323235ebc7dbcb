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
import sys
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


def copied(layers: Sequence[Any]) -> bool:
    """Whether a batch's caches are of the kind that `keep_rows`, `write_rows` and `shorten` change."""
    return all(_name(layer) == "BatchKVCache" and layer.keys is not None for layer in layers)


def keep_rows(layers: Sequence[Any], at: Sequence[int]) -> None:
    """Keep these rows, in rising order, of a batch's caches.

    The library's ``filter`` gathers, which takes a GPU five times as long as to copy what lies side by side,
    and looks into each layer's padding, for which it waits until the device has done all that is queued.
    """
    runs: list[list[int]] = []
    for row in at:
        if runs and runs[-1][1] == row:
            runs[-1][1] += 1
        else:
            runs.append([row, row + 1])

    def of(states: mx.array) -> mx.array:
        parts = [states[start:end] for start, end in runs]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)

    padding, offset = of(layers[0].left_padding), of(layers[0].offset)
    for layer in layers:
        layer.keys, layer.values = of(layer.keys), of(layer.values)
        layer.left_padding, layer.offset = mx.array(padding), mx.array(offset)  # each writes into its own


def taken(layers: Sequence[Any], at: int, length: int) -> list[Any]:
    """One row's plain caches, of a batch's that hold so many positions of it; nothing is waited for."""
    found = []
    for layer in layers:
        end = layer._idx
        one = sys.modules[type(layer).__module__].KVCache()
        one.keys, one.values = (
            mx.contiguous(states[at : at + 1, :, end - length : end]) for states in (layer.keys, layer.values)
        )
        one.offset = length
        found.append(one)
    return found


def shorten(layers: Sequence[Any], surplus: int) -> None:
    """Cut positions off the front of a batch's caches, which nobody needs any more."""
    padding = layers[0].left_padding - surplus
    for layer in layers:
        layer.keys, layer.values = layer.keys[..., surplus:, :], layer.values[..., surplus:, :]
        layer.left_padding = mx.array(padding)
        layer._idx -= surplus


def write_rows(layers: Sequence[Any], at: Sequence[int], others: Sequence[Any]) -> None:
    """Write the rows of other caches, which are no longer than these, over some of a batch's."""
    end = layers[0]._idx
    start = end - others[0]._idx
    index = mx.array(list(at))
    padding, offset = mx.array(layers[0].left_padding), mx.array(layers[0].offset)
    padding[index] = others[0].left_padding + start
    offset[index] = others[0].offset
    for layer, other in zip(layers, others, strict=True):
        for into, states in ((layer.keys, other.keys), (layer.values, other.values)):
            for row, to in enumerate(at):
                into[to : to + 1, :, :start] = 0  # whatever is there is multiplied with, if by nought
                into[to : to + 1, :, start:end] = states[row : row + 1, :, : end - start]
        layer.left_padding, layer.offset = mx.array(padding), mx.array(offset)


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


__all__ = [
    "Company",
    "Merge",
    "batch_of",
    "copied",
    "cut",
    "keep_rows",
    "matrix",
    "merged",
    "rows_of",
    "shorten",
    "states",
    "taken",
    "write_rows",
]
