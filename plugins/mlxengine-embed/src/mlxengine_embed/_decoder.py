"""Language models that make vectors or scores: llama's layers, read causally or both ways as configured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from attrs import evolve
from mlxengine.errors import UnsupportedArchitectureError

from ._parts import Array, Config, Encoder, Group, activation, additive, causal, renamed, rotary

_HEADS = {"qwen3": 128, "gemma": 256, "gemma2": 256}
"""Sizes of a head where a configuration leaves them out and they are no share of the hidden size."""
_GEMMAS = ("gemma", "gemma2")
_BOTH_WAYS = ("eurobert", "llama_bidirec")
"""Architectures that are encoders whatever their configuration says."""


class Attention(nn.Module):  # type: ignore[misc]
    """Grouped-query attention with rotary positions, and norms of queries and keys where there are some."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        kind, size = config["model_type"], int(config["hidden_size"])
        self._heads = int(config["num_attention_heads"])
        self._groups = int(config.get("num_key_value_heads") or self._heads)
        self._size = int(config.get("head_dim") or _HEADS.get(kind, size // self._heads))
        outer = bool(config.get("attention_bias", False))
        bias = outer or kind == "qwen2"
        self.q_proj = nn.Linear(size, self._heads * self._size, bias=bias)
        self.k_proj = nn.Linear(size, self._groups * self._size, bias=bias)
        self.v_proj = nn.Linear(size, self._groups * self._size, bias=bias)
        self.o_proj = nn.Linear(self._heads * self._size, size, bias=outer)
        if kind == "qwen3":
            eps = float(config.get("rms_norm_eps", 1e-6))
            self.q_norm = nn.RMSNorm(self._size, eps=eps)
            self.k_norm = nn.RMSNorm(self._size, eps=eps)
        self._scale, self._cap = self._size**-0.5, None
        if kind == "gemma2":
            self._scale = float(config.get("query_pre_attn_scalar", 256)) ** -0.5
            self._cap = float(config.get("attn_logit_softcapping") or 0) or None
        self.rope = rotary(config, self._size, 10_000.0)

    def __call__(self, hidden: Array, mask: Array | None) -> Array:
        rows, length, _ = hidden.shape
        q = self.q_proj(hidden).reshape(rows, length, self._heads, self._size)
        k = self.k_proj(hidden).reshape(rows, length, self._groups, self._size)
        v = self.v_proj(hidden).reshape(rows, length, self._groups, self._size)
        if "q_norm" in self:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        q, k = self.rope(q), self.rope(k)
        if self._cap is None:
            out = mx.fast.scaled_dot_product_attention(q, k, v, scale=self._scale, mask=mask)
        else:
            k, v = (mx.repeat(x, self._heads // self._groups, axis=1) for x in (k, v))
            scores = mx.tanh((q * (self._scale / self._cap)) @ k.swapaxes(-1, -2)) * self._cap
            out = mx.softmax(scores if mask is None else scores + mask, axis=-1) @ v
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(rows, length, -1))


class FeedForward(nn.Module):  # type: ignore[misc]
    """The gated feed-forward."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size, inner = int(config["hidden_size"]), int(config["intermediate_size"])
        bias = bool(config.get("mlp_bias", False))
        self.gate_proj = nn.Linear(size, inner, bias=bias)
        self.up_proj = nn.Linear(size, inner, bias=bias)
        self.down_proj = nn.Linear(inner, size, bias=bias)
        # Gemma's first configurations say "gelu" and mean its approximation.
        gemma = config["model_type"] in _GEMMAS
        told = "gelu_pytorch_tanh" if gemma else config.get("hidden_act", "silu")
        self.act = activation(told)

    def __call__(self, hidden: Array) -> Array:
        return self.down_proj(self.act(self.gate_proj(hidden)) * self.up_proj(hidden))


class Decoder(nn.Module):  # type: ignore[misc]
    """The layers up to the last norm, without a head."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size = int(config["hidden_size"])
        eps = float(config.get("rms_norm_eps", 1e-5 if config["model_type"] == "eurobert" else 1e-6))
        self.embed_tokens = nn.Embedding(int(config["vocab_size"]), size)
        self._scale = size**0.5 if config["model_type"] in _GEMMAS else None
        norms = ["input_layernorm", "post_attention_layernorm"]
        if config["model_type"] == "gemma2":
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        self.layers = [
            Group(
                self_attn=Attention(config),
                mlp=FeedForward(config),
                **{name: nn.RMSNorm(size, eps=eps) for name in norms},
            )
            for _ in range(int(config["num_hidden_layers"]))
        ]
        self.norm = nn.RMSNorm(size, eps=eps)
        self._windows = _windows(config, len(self.layers))
        self._causal = config["model_type"] not in _BOTH_WAYS and config.get("is_causal") is not False
        if not self._causal and any(self._windows):
            raise UnsupportedArchitectureError("A sliding window that is read both ways is not supported.")

    def __call__(self, ids: Array, valid: Array | None, types: Array | None) -> Array:  # noqa: ARG002
        hidden, length = self.embed_tokens(ids), ids.shape[1]
        if self._scale is not None:
            hidden = hidden * mx.array(self._scale, hidden.dtype)
        masks = {window: self._mask(length, window, valid, hidden.dtype) for window in set(self._windows)}
        for layer, window in zip(self.layers, self._windows, strict=True):
            attended = layer.self_attn(layer.input_layernorm(hidden), masks[window])
            if "pre_feedforward_layernorm" in layer:
                hidden = hidden + layer.post_attention_layernorm(attended)
                forward = layer.mlp(layer.pre_feedforward_layernorm(hidden))
                hidden = hidden + layer.post_feedforward_layernorm(forward)
                continue
            hidden = hidden + attended
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return self.norm(hidden)

    def _mask(self, length: int, window: int | None, valid: Array | None, dtype: Any) -> Array | None:
        if not self._causal:
            return None if valid is None else additive(valid[:, None, None, :], dtype)
        # Padding is on the right, so the causal mask alone keeps every real token from seeing it.
        allowed = causal(length)
        if window is not None and window < length:
            places = mx.arange(length)
            allowed = allowed & (places[:, None] - places[None, :] < window)
        return additive(allowed, dtype)


def _windows(config: Config, layers: int) -> Sequence[int | None]:
    """How many tokens back each layer sees, itself included; ``None`` for all."""
    window, kinds = config.get("sliding_window"), config.get("layer_types")
    kind = config["model_type"]
    if kind in ("qwen2", "qwen3") and not config.get("use_sliding_window"):
        window = None
    if kind not in ("qwen2", "qwen3", "mistral", "gemma2") or not window:
        return [None] * layers
    if kinds:
        sliding = [item == "sliding_attention" for item in kinds]
    elif kind == "gemma2":
        sliding = [index % 2 == 0 for index in range(layers)]
    else:
        first = int(config.get("max_window_layers", 28)) if kind != "mistral" else 0
        sliding = [index >= first for index in range(layers)]
    return [int(window) if one else None for one in sliding]


def build(config: Config, library: str) -> Encoder:
    """The encoder of a ``config.json`` of llama, mistral, qwen2, qwen3, gemma, gemma2 or eurobert."""
    module = Decoder(config)
    encoder = Encoder(
        module=module,
        forward=module,
        rename=renamed((), r"lm_head\.|score\.|classifier\.|dense\.", r"model\."),
        hidden_size=int(config["hidden_size"]),
        positions=None,
        pad=int(config.get("pad_token_id") or 0),
        library=library,
    )
    return evolve(encoder, prepare=_around_one) if config["model_type"] in _GEMMAS else encoder


def _around_one(weights: Mapping[str, Array]) -> Mapping[str, Array]:
    """Gemma's norms, which are stored as what they differ from one by."""
    return {key: value + 1 if key.endswith("norm.weight") else value for key, value in weights.items()}


__all__ = ["build"]
