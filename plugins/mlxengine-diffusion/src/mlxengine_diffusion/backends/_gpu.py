"""Blocks of transformers for a GPU: few kernels, and few blocks launched ahead of what is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any

import mlx.core as mx
from mlxengine.toolkit import launching

from ._memory import AHEAD


def waiting(blocks: Iterable[Any], ahead: int = AHEAD) -> None:
    """On a GPU, launch no more blocks ahead of the one that is computed than memory is reckoned for."""
    launching.waiting(blocks, ahead)


def fused(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """An elementwise function that is one kernel on a GPU. On a CPU a compiler would have to be there."""
    compiled: Callable[..., mx.array] = mx.compile(function, shapeless=True)

    @wraps(function)
    def call(*values: mx.array) -> mx.array:
        return (compiled if launching.on_gpu() else function)(*values)

    return call


@fused
def _modulated(x: mx.array, shift: mx.array, scale: mx.array) -> mx.array:
    return x * (1 + scale) + shift


def modulated(norm: Any, x: mx.array, shift: mx.array, scale: mx.array) -> mx.array:
    """A layer norm of ``x`` (1, places, width) · (1 + scale) + shift, each (1, 1 or places, width)."""
    if scale.shape[1] > 1:
        return _modulated(norm(x), shift, scale)
    # To the norm they are weights.
    return mx.fast.layer_norm(x, 1 + scale.reshape(-1), shift.reshape(-1), norm.eps)


@fused
def scaled(x: mx.array, scale: mx.array) -> mx.array:
    """x · (1 + scale)."""
    return x * (1 + scale)


@fused
def added(x: mx.array, gate: mx.array, y: mx.array) -> mx.array:
    """x + gate · y."""
    return x + gate * y


@fused
def gated(gate: mx.array, x: mx.array) -> mx.array:
    """x · SiLU of the gate."""
    return gate * mx.sigmoid(gate) * x


Turns = tuple[mx.array, mx.array]


def turns(cosines: mx.array, sines: mx.array) -> Turns:
    """How heads are turned at every place, as `attended` wants it.

    Args:
        cosines, sines: (places, half of a head), float32.
    """
    return mx.stack([cosines, sines], axis=-2)[:, None], mx.stack([-sines, cosines], axis=-2)[:, None]


@fused
def _turned(even: mx.array, odd: mx.array, along: mx.array, across: mx.array) -> mx.array:
    return (along * even.astype(mx.float32) + across * odd.astype(mx.float32)).astype(even.dtype)


def _rotated(x: mx.array, by: Turns) -> mx.array:
    """Pairs of neighbours in heads (1, places, heads, width) turned, in float32.

    First come all first ones of pairs, then all second ones: products of queries and keys stay what they
    are, and a GPU writes whole rows.
    """
    even, odd = x[..., None, ::2], x[..., None, 1::2]
    return _turned(even, odd, *by).reshape(x.shape)


def attended(by: Turns, *rows: tuple[mx.array, mx.array, mx.array]) -> mx.array:
    """Attention of rows, one behind the other, in the numbers that they come in: (1, places, width).

    Args:
        by: the `turns` of all places.
        rows: each with its queries, keys and values, (1, places, heads, width of a head).
    """
    q, k, v = (
        parts[0] if len(parts) == 1 else mx.concatenate(list(parts), axis=1)
        for parts in zip(*rows, strict=True)
    )
    # Heads come behind places in memory, so that the way back takes no copy.
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (_rotated(q, by), _rotated(k, by), v))
    mixed = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5)
    return mixed.transpose(0, 2, 1, 3).flatten(2)


def projected(
    layer: Any, x: mx.array, heads: int, names: tuple[str, str, str, str, str]
) -> tuple[mx.array, mx.array, mx.array]:
    """Queries, keys and values for `attended`, of rows (1, places, width).

    Args:
        names: of a layer's projections to the three, and of the norms of the first two.
    """
    q, k, v = (layer[name](x).reshape(*x.shape[:2], heads, -1) for name in names[:3])
    return layer[names[3]](q), layer[names[4]](k), v


def warm(dtype: mx.Dtype) -> Iterator[None]:
    """On a GPU, make the kernels of these functions for a number format, one a turn: it takes about a second
    for each that its disk does not hold.
    """
    x, turned = mx.zeros((1, 1, 4), dtype), mx.zeros((1, 1, 2, 4))
    pairs = mx.zeros((1, 1, 1, 1, 4), dtype)
    for function, values in (
        (_modulated, (x, x, x)),
        (scaled, (x, x)),
        (added, (x, x, x)),
        (gated, (x, x)),
        (_turned, (pairs, pairs, turned, turned)),
    ):
        if launching.on_gpu():
            mx.eval(function(*values))
            yield


PICTURE = ("to_q", "to_k", "to_v", "norm_q", "norm_k")
WORDS = ("add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k")

__all__ = [
    "PICTURE",
    "WORDS",
    "Turns",
    "added",
    "attended",
    "fused",
    "gated",
    "modulated",
    "projected",
    "scaled",
    "turns",
    "waiting",
    "warm",
]
