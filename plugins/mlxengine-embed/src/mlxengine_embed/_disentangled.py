"""DeBERTa's attention: what two tokens are, and how far apart they stand, weigh separately.

He et al., "DeBERTa: Decoding-enhanced BERT with Disentangled Attention" (2021), section 3; the distances in
logarithmic buckets are DeBERTa v2's.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ._parts import Array, Config


def _span(config: Config) -> int:
    """How many distances there are on either side."""
    buckets = int(config.get("position_buckets") or -1)
    return buckets if buckets > 0 else _furthest(config)


def _furthest(config: Config) -> int:
    given = int(config.get("max_relative_positions") or -1)
    return given if given >= 1 else int(config["max_position_embeddings"])


class RelativePositions(nn.Module):  # type: ignore[misc]
    """The vectors of distances, and which one each pair of places has."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._span, self._furthest = _span(config), _furthest(config)
        self._buckets = int(config.get("position_buckets") or -1)
        size = int(config["hidden_size"])
        self.rel_embeddings = nn.Embedding(2 * self._span, size)
        if "layer_norm" in str(config.get("norm_rel_ebd", "none")):
            self.LayerNorm = nn.LayerNorm(size, eps=float(config["layer_norm_eps"]))

    def __call__(self, length: int) -> tuple[Array, Array]:
        """The vectors, (2 span, size), and which one each query has to each key, (length, length)."""
        table = self.rel_embeddings(mx.arange(2 * self._span))
        table = self.LayerNorm(table) if "LayerNorm" in self else table
        distance = np.arange(length)[:, None] - np.arange(length)[None, :]
        if self._buckets > 0:
            distance = _bucket(distance, self._buckets // 2, self._furthest)
        index = np.clip(distance + self._span, 0, 2 * self._span - 1)
        return table, mx.array(index.astype(np.int32))


def _bucket(distance: Any, middle: int, furthest: int) -> Any:
    """Distances up to ``middle`` as they are, larger ones on a log scale that ends at ``furthest``."""
    away = np.where(np.abs(distance) < middle, middle - 1, np.abs(distance)).astype(np.float32)
    scale = np.log(np.float32((furthest - 1) / middle))
    grown = np.ceil(np.log(away / np.float32(middle)) / scale * np.float32(middle - 1)) + middle
    return np.where(away <= middle, distance, grown * np.sign(distance)).astype(np.int64)


class Disentangled(nn.Module):  # type: ignore[misc]
    """Self-attention with scores from content to content, content to place, and place to content."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size = int(config["hidden_size"])
        self._heads = int(config["num_attention_heads"])
        first = config["model_type"] == "deberta"  # it keeps a head's three projections together
        if first:
            self.in_proj = nn.Linear(size, 3 * size, bias=False)
            self.q_bias, self.v_bias = mx.zeros((size,)), mx.zeros((size,))
        else:
            for name in ("query", "key", "value"):
                setattr(self, name, nn.Linear(size, size))
        kinds = config.get("pos_att_type") or ()
        kinds = kinds.split("|") if isinstance(kinds, str) else kinds
        relative = bool(config.get("relative_attention"))
        self._to_place = relative and "c2p" in kinds
        self._from_place = relative and "p2c" in kinds
        self._scale = (size // self._heads * (1 + ("c2p" in kinds) + ("p2c" in kinds))) ** -0.5
        self._shared = bool(config.get("share_att_key"))
        if self._to_place and not self._shared:
            self.pos_key_proj = nn.Linear(size, size, bias=not first)
        if self._from_place and not self._shared:
            self.pos_query_proj = nn.Linear(size, size)

    def __call__(self, hidden: Array, mask: Array | None, *relative: Array) -> Array:
        rows, length, _ = hidden.shape
        q, k, v = self._projected(hidden)
        scores = (q * self._scale) @ k.swapaxes(-1, -2)
        if relative:
            table, index = relative
            places = mx.broadcast_to(index[None, None], (rows, self._heads, length, length))
            if self._to_place:
                key = self._split((self.key if self._shared else self.pos_key_proj)(table)[None])
                found = (q * self._scale) @ key.swapaxes(-1, -2)
                scores = scores + mx.take_along_axis(found, places, axis=-1)
            if self._from_place:
                query = self._split((self.query if self._shared else self.pos_query_proj)(table)[None])
                found = (k * self._scale) @ query.swapaxes(-1, -2)
                # A key sees a query at the opposite distance.
                scores = scores + mx.take_along_axis(found, places.swapaxes(-1, -2), axis=-1).swapaxes(-1, -2)
        if mask is not None:
            scores = scores + mask
        out = mx.softmax(scores, axis=-1) @ v
        return out.transpose(0, 2, 1, 3).reshape(rows, length, -1)

    def _projected(self, hidden: Array) -> tuple[Array, Array, Array]:
        if "in_proj" not in self:
            q, k, v = (self._split(layer(hidden)) for layer in (self.query, self.key, self.value))
            return q, k, v
        joined = self.in_proj(hidden).reshape(*hidden.shape[:2], self._heads, 3, -1)
        q, k, v = joined.transpose(3, 0, 2, 1, 4)
        biases = (bias.reshape(self._heads, 1, -1) for bias in (self.q_bias, self.v_bias))
        return q + next(biases), k, v + next(biases)

    def _split(self, x: Array) -> Array:
        return x.reshape(x.shape[0], x.shape[1], self._heads, -1).transpose(0, 2, 1, 3)


__all__ = ["Disentangled", "RelativePositions"]
