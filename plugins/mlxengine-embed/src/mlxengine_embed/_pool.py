"""From one hidden vector a token to one vector a text: pooling, and the stages that follow it.

The modes are sentence-transformers' (``Pooling``); all of them compute in fp32, and give zeros rather than
NaN or infinity for a text of which nothing is left to pool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ._recipe import Dense, LayerNorm, Normalize, Stage

Array = Any

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "identity": lambda x: x,
    "tanh": mx.tanh,
    "gelu": nn.gelu,
    "relu": nn.relu,
    "sigmoid": mx.sigmoid,
    "silu": nn.silu,
}


def pool(hidden: Array, lengths: Array, modes: Sequence[str], start: int = 0) -> Array:
    """Pool right-padded hidden vectors.

    Args:
        hidden: (batch, length, size).
        lengths: (batch,) int32, how many tokens each row has.
        modes: results are concatenated in this order.
        start: tokens at the beginning that do not take part (a prompt's).

    Returns:
        (batch, size × number of modes), fp32.
    """
    hidden = hidden.astype(mx.float32)
    places = mx.arange(hidden.shape[1])
    chosen = (places >= start) & (places < lengths[:, None])
    weights = chosen.astype(mx.float32)
    some = (lengths > start)[:, None].astype(mx.float32)
    results = [_POOLS[mode](hidden, weights, lengths, start) * some for mode in modes]
    return results[0] if len(results) == 1 else mx.concatenate(results, axis=-1)


def _weighted_sum(hidden: Array, weights: Array) -> Array:
    return (weights[:, None, :] @ hidden)[:, 0]


def _mean(hidden: Array, weights: Array, lengths: Array, start: int) -> Array:  # noqa: ARG001
    return _weighted_sum(hidden, weights) / mx.maximum(mx.sum(weights, axis=1, keepdims=True), 1.0)


def _mean_sqrt(hidden: Array, weights: Array, lengths: Array, start: int) -> Array:  # noqa: ARG001
    count = mx.maximum(mx.sum(weights, axis=1, keepdims=True), 1.0)
    return _weighted_sum(hidden, weights) / mx.sqrt(count)


def _weighted_mean(hidden: Array, weights: Array, lengths: Array, start: int) -> Array:  # noqa: ARG001
    # A token counts by its place in the text; leaving the prompt out keeps the places of the rest.
    weights = weights * mx.arange(1, hidden.shape[1] + 1)
    return _weighted_sum(hidden, weights) / mx.maximum(mx.sum(weights, axis=1, keepdims=True), 1.0)


def _max(hidden: Array, weights: Array, lengths: Array, start: int) -> Array:  # noqa: ARG001
    lowest = mx.array(mx.finfo(mx.float32).min)
    return mx.max(mx.where(weights[:, :, None] > 0, hidden, lowest), axis=1)


def _cls(hidden: Array, weights: Array, lengths: Array, start: int) -> Array:  # noqa: ARG001
    return hidden[:, min(start, hidden.shape[1] - 1)]


def _last(hidden: Array, weights: Array, lengths: Array, start: int) -> Array:  # noqa: ARG001
    return hidden[mx.arange(hidden.shape[0]), mx.maximum(lengths - 1, 0)]


_POOLS: dict[str, Callable[[Array, Array, Array, int], Array]] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}


def normalize(vectors: Array) -> Array:
    """Vectors (…, size) with unit length; zero vectors stay zero."""
    norms = mx.sqrt(mx.sum(vectors * vectors, axis=-1, keepdims=True))
    return vectors / mx.maximum(norms, 1e-12)


class DenseLayer(nn.Module):  # type: ignore[misc]
    """A `Dense` stage; parameters are named as in its checkpoint."""

    def __init__(self, stage: Dense) -> None:
        super().__init__()
        self.linear = nn.Linear(stage.inputs, stage.outputs, bias=stage.bias)
        self._activation = _ACTIVATIONS[stage.activation]
        self._adds_input = stage.residual
        if stage.residual and stage.inputs != stage.outputs:
            self.residual = nn.Linear(stage.inputs, stage.outputs, bias=False)

    def __call__(self, x: Array) -> Array:
        out = self._activation(self.linear(x))
        if self._adds_input:
            out = out + (self.residual(x) if "residual" in self else x)
        return out


class NormLayer(nn.Module):  # type: ignore[misc]
    """A `LayerNorm` stage."""

    def __init__(self, stage: LayerNorm) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(stage.size)

    def __call__(self, x: Array) -> Array:
        return self.norm(x)


def build_stage(stage: Stage) -> Callable[[Array], Array]:
    """The function of a stage: an ``mlx.nn.Module`` with weights still to be loaded, or `normalize`."""
    if isinstance(stage, Dense):
        return DenseLayer(stage)
    if isinstance(stage, LayerNorm):
        return NormLayer(stage)
    assert isinstance(stage, Normalize)
    return normalize


__all__ = ["build_stage", "normalize", "pool"]
