"""Quicker layers in the place of encoders' own: for a CPU, and others for a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ._bert import Bert
from ._bert import SelfAttention as Plain
from ._kernels import Kernels, LayerNorm, Linear, Rotation, turned

Array = Any
Rotations = dict[tuple[float, ...], Rotation]


def _quicker(layer: Any) -> Any:
    """The same layer as a `Linear`, unless it is quantized."""
    return Linear(layer) if isinstance(layer, nn.Linear) else layer


def _shared(rope: Any, kernels: Kernels, known: Rotations) -> Any:
    """What turns queries and keys as ``rope`` does, the same for all layers that turn them so."""
    if not isinstance(rope, nn.RoPE) or rope.traditional:
        return rope
    return known.setdefault((rope.dims, rope.base, rope.scale), Rotation(rope, kernels))


class SelfAttention(nn.Module):  # type: ignore[misc]
    """Attention of a text to itself with its three projections in one product.

    Args:
        weights: those of the projections to queries, keys and values, (outputs, inputs), in one or three.
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
        if self._kernels is None:
            joined = mx.addmm(self.bias, hidden, self.weight) if "bias" in self else hidden @ self.weight
        else:
            joined = hidden @ self.weight
            joined = joined + self.bias if "bias" in self else joined
        parts = joined.reshape(rows, length, 3 * self._heads, self._size).transpose(0, 2, 1, 3)
        q, k, v = mx.split(parts, 3, axis=1)
        if self._rope is not None:
            q, k = mx.split(self._rope(parts[:, : 2 * self._heads]), 2, axis=1)
        if self._kernels is None:
            out = mx.fast.scaled_dot_product_attention(q, k, v, scale=self._size**-0.5, mask=mask)
        else:
            out = self._kernels.attention(q, k, v, mask)
        return out.transpose(0, 2, 1, 3).reshape(rows, length, -1)


def _of_bert(plain: Plain, kernels: Kernels | None, known: Rotations) -> SelfAttention:
    layers = plain.query, plain.key, plain.value
    biases = [layer.bias for layer in layers if "bias" in layer]
    rope = plain.rope if kernels is None else _shared(plain.rope, kernels, known)
    return SelfAttention([layer.weight for layer in layers], biases, plain.attention_head_size, rope, kernels)


class ModernLayer(nn.Module):  # type: ignore[misc]
    """A layer of mlx-embeddings' ModernBERT.

    Args:
        plain: the library's layer.
        kernels: functions for the CPU; ``None`` for a GPU, where sums are taken along in products.
        known: the rotary positions of the layers before it.
    """

    def __init__(self, plain: Any, kernels: Kernels | None, known: Rotations) -> None:
        super().__init__()
        attention, mlp = plain.attn, plain.mlp
        rope = attention.rotary_emb if kernels is None else _shared(attention.rotary_emb, kernels, known)
        biases = [attention.Wqkv.bias] if "bias" in attention.Wqkv else []
        self.own = SelfAttention([attention.Wqkv.weight], biases, attention.head_dim, rope, kernels)
        self._near = attention.local_attention != (-1, -1)
        self._kernels = kernels
        if kernels is None:
            self.attn_norm, self.mlp_norm, self.Wo = plain.attn_norm, plain.mlp_norm, attention.Wo
            self.mlp_Wi, self.mlp_Wo = mlp.Wi, mlp.Wo
            self._gated = _gated
        else:
            first = isinstance(plain.attn_norm, nn.Identity)
            self.attn_norm = plain.attn_norm if first else LayerNorm(plain.attn_norm, kernels)
            self.mlp_norm = LayerNorm(plain.mlp_norm, kernels)
            self.Wo, self.mlp_Wi, self.mlp_Wo = (_quicker(part) for part in (attention.Wo, mlp.Wi, mlp.Wo))
            self._gated = lambda x, gate: kernels.gelu(x) * gate

    def __call__(
        self, hidden: Array, attention_mask: Array | None, sliding_window_mask: Array | None
    ) -> tuple[Array]:
        mask = sliding_window_mask if self._near else attention_mask
        hidden = self._added(hidden, self.own(self.attn_norm(hidden), mask), self.Wo)
        inner = self._gated(*mx.split(self.mlp_Wi(self.mlp_norm(hidden)), 2, axis=-1))
        return (self._added(hidden, inner, self.mlp_Wo),)

    def _added(self, hidden: Array, x: Array, layer: Any) -> Array:
        if self._kernels is None and "bias" not in layer:
            return mx.addmm(hidden, x, layer.weight.T)
        return hidden + layer(x)


@partial(mx.compile, shapeless=True)
def _gated(x: Array, gate: Array) -> Array:
    return nn.gelu(x) * gate


def _berts(encoder: Any) -> Iterator[Any]:
    """The layers of one of our own encoders whose attention can be replaced."""
    for layer in encoder.encoder.layer if isinstance(encoder, Bert) else ():
        own = layer.attention.self
        if isinstance(own, Plain) and isinstance(own.query, nn.Linear) and "layer_norm_q" not in own:
            yield layer


def _moderns(encoder: Any) -> Iterator[int]:
    """The places of mlx-embeddings' ModernBERT layers that can be replaced: those that are not quantized."""
    for place, layer in enumerate(getattr(encoder, "layers", ())):
        whole = hasattr(layer, "attn") and isinstance(getattr(layer.mlp, "act", None), nn.GELU)
        if whole and all(
            isinstance(part, nn.Linear)
            for part in (layer.attn.Wqkv, layer.attn.Wo, layer.mlp.Wi, layer.mlp.Wo)
        ):
            yield place


def use_gpu_blocks(encoder: Any) -> None:
    """Replace blocks of a loaded encoder's module by such as launch fewer kernels."""
    for layer in _berts(encoder):
        layer.attention.self = _of_bert(layer.attention.self, None, {})
    for place in _moderns(encoder):
        encoder.layers[place] = ModernLayer(encoder.layers[place], None, {})


def use_cpu_blocks(encoder: Any) -> str:
    """Replace the slow blocks of a loaded encoder's module; call it once its weights are in fp32.

    Returns:
        What was replaced, for people; empty if nothing was.
    """
    places = list(_moderns(encoder))
    if not (places or isinstance(encoder, Bert)):
        return ""
    known: Rotations = {}
    kernels = Kernels()
    if isinstance(encoder, Bert):
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
    for place in places:
        encoder.layers[place] = ModernLayer(encoder.layers[place], kernels, known)
    return "GELU and attention" + (", compiled" if kernels.compiled else "")


__all__ = ["use_cpu_blocks", "use_gpu_blocks"]
