"""Layers of experts under LoRA adapters: each expert has a small product of its own.

A block of experts sorts its tokens by expert before it calls its layers, which then cannot tell whose they
are. So where rows use different adapters, the block is given the rows of one adapter after the other.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from attrs import frozen
from mlx.utils import tree_map

from .adapted import Deltas, Rows


@frozen(kw_only=True)
class Experts:
    """A library's own classes of experts; by default there are none.

    Args:
        layers: linear layers that hold a matrix for each expert; called with tokens, the indices of their
            experts, and whether these are sorted.
        blocks: what holds such layers and calls them; called with tokens, the indices of their experts, and
            perhaps further arrays, the dimensions of rows and positions first in all of them.
    """

    layers: tuple[type, ...] = ()
    blocks: tuple[type, ...] = ()


class AdaptedExperts(nn.Module):  # type: ignore[misc]
    """A layer of experts with the deltas of all loaded adapters; a call is for the rows of one of them."""

    def __init__(self, base: nn.Module, rows: Rows) -> None:
        super().__init__()
        self.base = base
        self.deltas = Deltas(rows)

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> Any:
        plain = self.base(x, indices, sorted_indices=sorted_indices)
        (name,) = set(self.deltas.wanted())
        if name is None:
            return plain
        delta = self.deltas.by_name[name].delta
        low = x
        for part in (delta.a, delta.b):
            low = mx.gather_mm(low, part, rhs_indices=indices, sorted_indices=sorted_indices)
        return plain + (delta.scale * low).astype(plain.dtype)


class _Apart:
    """A block of experts whose rows may use different adapters."""

    rows: Rows

    def __call__(self, x: mx.array, indices: mx.array, *more: Any, **named: Any) -> mx.array:
        names = self.rows.names
        whole: Any = super().__call__  # type: ignore[misc]
        if len(set(names)) == 1:
            found: mx.array = whole(x, indices, *more, **named)
            return found
        places = indices.shape[:-1]

        def by_row(part: Any) -> Any:  # some models flatten rows and positions
            return part if part is None else part.reshape(len(names), -1, *part.shape[len(places) :])

        given, named = tree_map(by_row, ((x, indices, *more), named))
        order: list[int] = []
        parts = []
        try:
            for name in dict.fromkeys(names):
                at = [row for row, other in enumerate(names) if other == name]
                self.rows.names = (name,)
                parts.append(_of_rows(whole, mx.array(at), given, named))
                order += at
        finally:
            self.rows.names = names
        joined = mx.concatenate(parts)[mx.argsort(mx.array(order))]
        return joined.reshape(*places, *joined.shape[2:])


def _of_rows(whole: Any, at: mx.array, given: Any, named: Any) -> mx.array:
    given, named = tree_map(lambda part: part if part is None else part[at], (given, named))
    found: mx.array = whole(*given, **named)
    return found


def part(block: nn.Module, rows: Rows) -> None:
    """Give a block the rows of one adapter after the other; nothing where that is done already."""
    if not isinstance(block, _Apart):
        kind = type(block)
        block.__class__ = type(kind.__name__, (_Apart, kind), {"rows": rows, "plain": kind})


def rejoin(block: Any) -> None:
    """Make a block again what it was, if none of its layers is adapted any more."""
    kind: Any = type(block)
    if issubclass(kind, _Apart) and not any(isinstance(item, AdaptedExperts) for item in block.values()):
        block.__class__ = kind.plain


__all__ = ["AdaptedExperts", "Experts", "part", "rejoin"]
