"""Encoders' layers with quicker ones in their place: for a CPU, and attention for a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ._bert import Bert
from ._bert import SelfAttention as Plain
from ._kernels import Kernels, LayerNorm, Linear, Rotation, turned

Array = Any


def _quicker(layer: Any) -> Any:
    """The same layer as a `Linear`, unless it is quantized."""
    return Linear(layer) if isinstance(layer, nn.Linear) else layer


def _shared(rope: Any, kernels: Kernels, known: dict[tuple[float, ...], Rotation]) -> Any:
    """What turns queries and keys as ``rope`` does, the same for all layers that turn them so."""
    if not isinstance(rope, nn.RoPE) or rope.traditional:
        return rope
    return known.setdefault((rope.dims, rope.base, rope.scale), Rotation(rope, kernels))


class SelfAttention(nn.Module):  # type: ignore[misc]
    """Attention of a text to itself with its three projections in one product.

    Args:
        weights: those of the projections to queries, keys and values, each (outputs, inputs), in one or in three.
        biases: theirs; empty where there are none.
        size: of a head.
        rope: turns queries and keys by their places; ``None`` for none.
        kernels: functions for the CPU; ``None`` for mlx's own fused attention (a GPU).
    """

    def __init__(
        self, weights: Sequence[Array], biases: Sequence[Array], size: int, rope: Any, kernels: Kernels | None
    ) -> None:
        super().__init__()
        self._size, self._rope, self._kernels = size, rope, kernels
        weight = mx.concatenate(list(weights))
        self._heads = weight.shape[0] // (3 * size)
        if kernels is None:
            self.weight = weight.T
        else:
            # Scaling the weights saves a pass over the queries; in half precision it would round them.
            scale = mx.where(mx.arange(weight.shape[0]) < self._heads * size, size**-0.5, 1.0)
            self.weight = turned(weight * scale[:, None])
            biases = [mx.concatenate(list(biases)) * scale] if biases else ()
        if biases:
            self.bias = mx.concatenate(list(biases))

    def __call__(self, hidden: Array, mask: Array | None = None) -> Array:
        rows, length, _size = hidden.shape
        joined = hidden @ self.weight
        if "bias" in self:
            joined = joined + self.bias
        parts = joined.reshape(rows, length, 3, self._heads, self._size).transpose(2, 0, 3, 1, 4)
        q, k, v = parts
        if isinstance(self._rope, Rotation):
            q, k = self._rope(parts[:2])
        elif self._rope is not None:
            q, k = self._rope(q), self._rope(k)
        if self._kernels is None:
            out = mx.fast.scaled_dot_product_attention(q, k, v, scale=self._size**-0.5, mask=mask)
        else:
            out = self._kernels.attention(q, k, v, mask)
        return out.transpose(0, 2, 1, 3).reshape(rows, length, -1)


def _of_bert(plain: Plain, kernels: Kernels | None, known: dict[tuple[float, ...], Rotation]) -> SelfAttention:
    layers = plain.query, plain.key, plain.value
    biases = [layer.bias for layer in layers if "bias" in layer]
    rope = plain.rope if kernels is None else _shared(plain.rope, kernels, known)
    return SelfAttention(
        [layer.weight for layer in layers], biases, plain.attention_head_size, rope, kernels
    )


class ModernAttention(nn.Module):  # type: ignore[misc]
    """`SelfAttention` in the place of that of mlx-embeddings' ModernBERT."""

    def __init__(self, plain: Any, kernels: Kernels, known: dict[tuple[float, ...], Rotation]) -> None:
        super().__init__()
        joined, rope = plain.Wqkv, _shared(plain.rotary_emb, kernels, known)
        biases = [joined.bias] if "bias" in joined else []
        self.own = SelfAttention([joined.weight], biases, plain.head_dim, rope, kernels)
        self.Wo = _quicker(plain.Wo)
        self._near = plain.local_attention != (-1, -1)

    def __call__(
        self, hidden: Array, attention_mask: Array | None, sliding_window_mask: Array | None, **_: Any
    ) -> tuple[Array]:
        return (self.Wo(self.own(hidden, sliding_window_mask if self._near else attention_mask)),)


def _berts(encoder: Any) -> Iterator[Any]:
    """The layers of one of our own encoders whose attention can be replaced."""
    for layer in encoder.encoder.layer if isinstance(encoder, Bert) else ():
        own = layer.attention.self
        if isinstance(own, Plain) and isinstance(own.query, nn.Linear) and "layer_norm_q" not in own:
            yield layer


def use_fused_attention(encoder: Any) -> None:
    """Give the attention of a loaded encoder's module one product for its three projections."""
    for layer in _berts(encoder):
        layer.attention.self = _of_bert(layer.attention.self, None, {})


def use_cpu_blocks(encoder: Any) -> str:
    """Replace the slow blocks of a loaded encoder's module; call it once its weights are in fp32.

    Returns:
        What was replaced, for people; empty if nothing was.
    """
    known: dict[tuple[float, ...], Rotation] = {}
    if isinstance(encoder, Bert):
        kernels = Kernels()
        for layer in encoder.encoder.layer:
            layer.attention.output.dense = _quicker(layer.attention.output.dense)
            for part in (layer.attention.output, layer.output):
                part.LayerNorm = LayerNorm(part.LayerNorm, kernels)
            if "intermediate" not in layer:
                layer.experts.act = kernels.gelu if layer.experts.act is nn.gelu else layer.experts.act
                continue
            inner = layer.intermediate
            inner.act = kernels.gelu if inner.act is nn.gelu else inner.act
            inner.dense = _quicker(inner.dense)
            if "gate" in inner:
                inner.gate = _quicker(inner.gate)
            layer.output.dense = _quicker(layer.output.dense)
        for layer in _berts(encoder):
            layer.attention.self = _of_bert(layer.attention.self, kernels, known)
    elif hasattr(encoder, "layers") and isinstance(getattr(encoder.layers[0].mlp, "act", None), nn.GELU):
        kernels = Kernels()
        for layer in encoder.layers:
            layer.mlp.act = kernels.gelu
            layer.mlp.Wi, layer.mlp.Wo = _quicker(layer.mlp.Wi), _quicker(layer.mlp.Wo)
            layer.mlp_norm = LayerNorm(layer.mlp_norm, kernels)
            if isinstance(layer.attn_norm, nn.LayerNorm):  # the first layer has none
                layer.attn_norm = LayerNorm(layer.attn_norm, kernels)
            if isinstance(layer.attn.Wqkv, nn.Linear):
                layer.attn = ModernAttention(layer.attn, kernels, known)
    else:
        return ""
    return "GELU and attention" + (", compiled" if kernels.compiled else "")


__all__ = ["use_cpu_blocks", "use_fused_attention"]
