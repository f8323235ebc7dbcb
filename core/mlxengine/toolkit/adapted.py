"""A linear layer under LoRA and DoRA adapters, of which each row of a batch may use another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import mlx.core as mx
import mlx.nn as nn
from attrs import frozen


@frozen(kw_only=True)
class Delta:
    """An adapter at one layer: ``a`` (inputs, rank), ``b`` (rank, outputs), ``magnitude`` (outputs,).

    At a layer of experts ``a`` and ``b`` have their number before these dimensions.
    """

    a: mx.array
    b: mx.array
    scale: float
    magnitude: mx.array | None = None


@frozen
class Ready:
    """A delta at its layer; ``ratio`` (outputs,) is DoRA's magnitude over the adapted norm."""

    delta: Delta
    ratio: mx.array | None


class Adapted(nn.Module):  # type: ignore[misc]
    """A linear layer with the deltas of all loaded adapters, of which each row may use another."""

    def __init__(self, base: nn.Module, rows: Rows) -> None:
        super().__init__()
        self.base = base
        self.deltas = Deltas(rows)

    def __call__(self, x: mx.array) -> Any:
        names = self.deltas.wanted()
        if not any(names):
            return self.base(x)
        if len(set(names)) > 1:  # some models flatten rows and positions
            mixed = self._mixed(x.reshape(len(names), -1, x.shape[-1]), names)
            return mixed.reshape(*x.shape[:-1], -1)
        ready = self.deltas.by_name[names[0]]
        delta = ready.delta
        low = ((x @ delta.a) @ delta.b) * delta.scale
        if ready.ratio is None:
            return self.base(x) + low.astype(x.dtype)
        return self._rescaled(self.base(x), low, ready.ratio)

    def _mixed(self, x: mx.array, names: Sequence[str | None]) -> mx.array:
        """Rows with different adapters: each takes its own out of a stack; none is one of zeros."""
        stack = self.deltas.stack()
        at = mx.array([stack.place[name] for name in names])
        low = ((x @ stack.a[at]) @ stack.b[at]) * stack.scale[at][:, None, None]
        plain = self.base(x)
        out: mx.array = plain + low.astype(x.dtype)
        if stack.ratio is None:
            return out
        rescaled = self._rescaled(plain, low, stack.ratio[at][:, None])
        return mx.where(stack.rescales[at][:, None, None], rescaled, out)

    def _rescaled(self, plain: mx.array, low: mx.array, ratio: mx.array) -> mx.array:
        bias = self.base.bias if "bias" in self.base else None
        inner = plain if bias is None else plain - bias
        out: mx.array = (inner + low.astype(plain.dtype)) * ratio.astype(plain.dtype)
        return out if bias is None else out + bias


class Rows:
    """The adapter of each row of the next forward pass; one name stands for all rows."""

    def __init__(self) -> None:
        self.names: tuple[str | None, ...] = (None,)


@frozen(kw_only=True)
class _Stack:
    """All deltas of a layer, ranks padded with zeros, after one that does nothing.

    ``a`` (adapters, inputs, rank), ``b`` (adapters, rank, outputs), ``scale`` and ``rescales`` (adapters,),
    ``ratio`` (adapters, outputs) or ``None`` without DoRA; ``place`` of each name.
    """

    place: Mapping[str | None, int]
    a: mx.array
    b: mx.array
    scale: mx.array
    rescales: mx.array
    ratio: mx.array | None


class Deltas:
    """Kept apart from the module's parameters, which stay those of the base."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.by_name: dict[str | None, Ready] = {}
        self._stack: _Stack | None = None

    def put(self, name: str, ready: Ready | None) -> None:
        """Add an adapter's delta, or take it away."""
        self._stack = None
        if ready is None:
            del self.by_name[name]
        else:
            self.by_name[name] = ready

    def wanted(self) -> tuple[str | None, ...]:
        """The adapter of each row, ``None`` where it leaves this layer alone."""
        return tuple(name if name in self.by_name else None for name in self.rows.names)

    def stack(self) -> _Stack:
        """All of them as arrays, made when rows first differ."""
        if self._stack is None:
            self._stack = _stacked(self.by_name)
            mx.eval([value for value in attrs.astuple(self._stack) if isinstance(value, mx.array)])
        return self._stack


def _stacked(by_name: Mapping[str | None, Ready]) -> _Stack:
    found = list(by_name.values())
    rank = max(item.delta.a.shape[1] for item in found)
    first = found[0].delta
    none_a, none_b = mx.zeros((first.a.shape[0], rank)), mx.zeros((rank, first.b.shape[1]))
    ones = mx.ones((first.b.shape[1],))
    more = [rank - item.delta.a.shape[1] for item in found]
    return _Stack(
        place={None: 0, **{name: at + 1 for at, name in enumerate(by_name)}},
        a=mx.stack(
            [none_a.astype(first.a.dtype)]
            + [mx.pad(item.delta.a, [(0, 0), (0, m)]) for item, m in zip(found, more, strict=True)]
        ),
        b=mx.stack(
            [none_b.astype(first.b.dtype)]
            + [mx.pad(item.delta.b, [(0, m), (0, 0)]) for item, m in zip(found, more, strict=True)]
        ),
        scale=mx.array([0.0, *(item.delta.scale for item in found)]).astype(first.a.dtype),
        rescales=mx.array([False, *(item.ratio is not None for item in found)]),
        ratio=None
        if all(item.ratio is None for item in found)
        else mx.stack([ones, *(ones if item.ratio is None else item.ratio for item in found)]),
    )


__all__ = ["Adapted", "Delta", "Deltas", "Ready", "Rows"]
