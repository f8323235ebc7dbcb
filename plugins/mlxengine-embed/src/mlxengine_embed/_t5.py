"""T5's encoder: norms before each half, biases by distance instead of positions, unscaled scores."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn

from ._parts import Array, Config, Encoder, Group, activation, additive, by_distance, renamed


class Attention(nn.Module):  # type: ignore[misc]
    """Self-attention; the first layer's table of biases serves all layers."""

    def __init__(self, config: Config, first: bool) -> None:
        super().__init__()
        size, self._heads = int(config["d_model"]), int(config["num_heads"])
        inner = self._heads * int(config["d_kv"])
        for name in "qkv":
            setattr(self, name, nn.Linear(size, inner, bias=False))
        self.o = nn.Linear(inner, size, bias=False)
        if first:
            buckets = int(config.get("relative_attention_num_buckets", 32))
            self.relative_attention_bias = nn.Embedding(buckets, self._heads)

    def __call__(self, hidden: Array, mask: Array) -> Array:
        rows, length, _ = hidden.shape
        q, k, v = (
            layer(hidden).reshape(rows, length, self._heads, -1).transpose(0, 2, 1, 3)
            for layer in (self.q, self.k, self.v)
        )
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask=mask)
        return self.o(out.transpose(0, 2, 1, 3).reshape(rows, length, -1))


class FeedForward(nn.Module):  # type: ignore[misc]
    """One projection in, or two of which one is a gate, and one out."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size, inner = int(config["d_model"]), int(config["d_ff"])
        gate, _, name = str(config.get("feed_forward_proj", "relu")).rpartition("-")
        # The class reads gated-gelu as the tanh approximation.
        self._act = activation("gelu_new" if gate and name == "gelu" else name)
        for part in ("wi_0", "wi_1") if gate else ("wi",):
            setattr(self, part, nn.Linear(size, inner, bias=False))
        self.wo = nn.Linear(inner, size, bias=False)

    def __call__(self, hidden: Array) -> Array:
        if "wi" in self:
            return self.wo(self._act(self.wi(hidden)))
        return self.wo(self._act(self.wi_0(hidden)) * self.wi_1(hidden))


class T5(nn.Module):  # type: ignore[misc]
    """The encoder's half of T5."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size, eps = int(config["d_model"]), float(config.get("layer_norm_epsilon", 1e-6))
        self.shared = nn.Embedding(int(config["vocab_size"]), size)
        each = config["model_type"] == "umt5"  # else the first layer's positions are everyone's
        self.block = [
            Group(
                layer=[
                    Group(
                        SelfAttention=Attention(config, each or not index),
                        layer_norm=nn.RMSNorm(size, eps=eps),
                    ),
                    Group(DenseReluDense=FeedForward(config), layer_norm=nn.RMSNorm(size, eps=eps)),
                ]
            )
            for index in range(int(config["num_layers"]))
        ]
        self.final_layer_norm = nn.RMSNorm(size, eps=eps)
        self._buckets = int(config.get("relative_attention_num_buckets", 32))
        self._reach = int(config.get("relative_attention_max_distance", 128))

    def __call__(self, ids: Array, valid: Array | None, types: Array | None) -> Array:  # noqa: ARG002
        hidden = self.shared(ids)
        padding = None if valid is None else additive(valid[:, None, None, :], hidden.dtype)
        mask = None
        for block in self.block:
            attention, forward = block.layer
            if "relative_attention_bias" in attention.SelfAttention:
                table = attention.SelfAttention.relative_attention_bias(mx.arange(self._buckets))
                mask = by_distance(table, ids.shape[1], self._buckets, self._reach).astype(hidden.dtype)
                mask = mask if padding is None else mask + padding
            hidden = hidden + attention.SelfAttention(attention.layer_norm(hidden), mask)
            hidden = hidden + forward.DenseReluDense(forward.layer_norm(hidden))
        return self.final_layer_norm(hidden)


def build(config: Config, library: str) -> Encoder:
    """The encoder of a T5's, mT5's or umT5's ``config.json``."""
    if config["model_type"] in ("mt5", "umt5"):
        config = {"feed_forward_proj": "gated-gelu", **config}
    module = T5(config)
    # The shared table may be stored under the encoder's name too.
    names = ((r"^embed_tokens\.", "encoder_table."),)
    return Encoder(
        module=module,
        forward=module,
        rename=renamed(names, r"encoder_table\.|decoder\.|lm_head\.|linear\.|dense\.", r"encoder\."),
        prepare=_with_table,
        hidden_size=int(config["d_model"]),
        positions=None,
        pad=int(config.get("pad_token_id") or 0),
        library=library,
    )


def _with_table(weights: Mapping[str, Array]) -> Mapping[str, Array]:
    if "shared.weight" not in weights and "encoder.embed_tokens.weight" in weights:
        return {**weights, "shared.weight": weights["encoder.embed_tokens.weight"]}
    return weights


__all__ = ["build"]
