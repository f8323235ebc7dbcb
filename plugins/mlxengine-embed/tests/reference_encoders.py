"""Encoders whose reference code is in no library: in numpy, one text at a time, from what was published.

`jina_bert`: "Jina Embeddings 2" (Günther et al. 2023), sections 3.1 and 3.2, and "Train Short, Test Long"
(Press et al. 2022) for ALiBi; the order of the gate's halves and the norms of the form for code are those of
the repositories jina-embeddings-v2-base-en and -base-code. `nomic_moe`: "Training Sparse Mixture of Experts
Text Embedding Models" (Nussbaum and Duderstadt 2025), section 3, with the tensors of nomic-embed-text-v2-moe.
`m3`: "M3-Embedding" (Chen et al. 2024), section 3.2, without the tokens that FlagEmbedding leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, Array]


def _linear(tensors: Tensors, name: str, x: Array) -> Array:
    bias = tensors.get(f"{name}.bias")
    return x @ tensors[f"{name}.weight"].T + (0 if bias is None else bias)


def _norm(tensors: Tensors, name: str, x: Array, eps: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def _gelu(x: Array) -> Array:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _softmax(x: Array) -> Array:
    grown = np.exp(x - x.max(axis=-1, keepdims=True))
    return grown / grown.sum(axis=-1, keepdims=True)


def _attention(q: Array, k: Array, v: Array, heads: int, bias: Array | float) -> Array:
    q, k, v = (x.reshape(len(x), heads, -1).transpose(1, 0, 2) for x in (q, k, v))
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1]) + bias
    return (_softmax(scores) @ v).transpose(1, 0, 2).reshape(q.shape[1], -1)


def jina_bert(config: Mapping[str, Any], tensors: Tensors, ids: Array) -> Array:
    """Hidden vectors (tokens, size) of one text; heads have to be a power of two."""
    eps, heads = config["layer_norm_eps"], config["num_attention_heads"]
    hidden = tensors["embeddings.word_embeddings.weight"][ids]
    hidden = hidden + tensors["embeddings.token_type_embeddings.weight"][0]
    hidden = _norm(tensors, "embeddings.LayerNorm", hidden, eps)
    places = np.arange(len(ids))
    slopes = np.array([2.0 ** (-8 * (head + 1) / heads) for head in range(heads)])
    bias = -slopes[:, None, None] * np.abs(places[:, None] - places[None, :])
    act = _gelu if config["feed_forward_type"] == "geglu" else lambda x: np.maximum(x, 0)
    for layer in range(config["num_hidden_layers"]):
        base = f"encoder.layer.{layer}"
        own = f"{base}.attention.self"
        q, k, v = (_linear(tensors, f"{own}.{name}", hidden) for name in ("query", "key", "value"))
        for_code = f"{own}.layer_norm_q.weight" in tensors
        if for_code:
            q, k = (_norm(tensors, f"{own}.layer_norm_{n}", x, eps) for n, x in (("q", q), ("k", k)))
        out = _linear(tensors, f"{base}.attention.output.dense", _attention(q, k, v, heads, bias))
        attended = _norm(tensors, f"{base}.attention.output.LayerNorm", hidden + out, eps)
        if for_code:
            hidden = _norm(tensors, f"{base}.layer_norm_1", hidden + attended, eps)
            up, gate = np.split(_linear(tensors, f"{base}.mlp.up_gated_layer", hidden), 2, axis=-1)
            out = _linear(tensors, f"{base}.mlp.down_layer", up * act(gate))
            hidden = _norm(tensors, f"{base}.layer_norm_2", hidden + out, eps)
        else:
            gate, up = np.split(_linear(tensors, f"{base}.mlp.gated_layers", attended), 2, axis=-1)
            out = _linear(tensors, f"{base}.mlp.wo", act(gate) * up)
            hidden = _norm(tensors, f"{base}.mlp.layernorm", attended + out, eps)
    return hidden


def _turned(x: Array, heads: int, theta: float) -> Array:
    """Rotary positions, first half with second, of (tokens, size)."""
    x = x.reshape(len(x), heads, -1)
    half = x.shape[-1] // 2
    angles = np.arange(len(x))[:, None] * theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    first, second = x[..., :half], x[..., half:]
    turned = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.reshape(len(x), -1)


def nomic_moe(config: Mapping[str, Any], tensors: Tensors, ids: Array) -> Array:
    """Hidden vectors (tokens, size) of one text."""
    eps, heads = config["layer_norm_epsilon"], config["n_head"]
    hidden = tensors["embeddings.word_embeddings.weight"][ids]
    hidden = hidden + tensors["embeddings.token_type_embeddings.weight"][0]
    hidden = _norm(tensors, "emb_ln", hidden, eps)
    for layer in range(config["n_layer"]):
        base = f"encoder.layers.{layer}"
        q, k, v = np.split(_linear(tensors, f"{base}.attn.Wqkv", hidden), 3, axis=-1)
        q, k = (_turned(x, heads, config["rotary_emb_base"]) for x in (q, k))
        out = _linear(tensors, f"{base}.attn.out_proj", _attention(q, k, v, heads, 0.0))
        hidden = _norm(tensors, f"{base}.norm1", hidden + out, eps)
        if layer % config["moe_every_n_layers"] == 0:
            out = _linear(tensors, f"{base}.mlp.fc2", _gelu(_linear(tensors, f"{base}.mlp.fc1", hidden)))
        else:
            out = _experts(config, tensors, f"{base}.mlp", hidden)
        hidden = _norm(tensors, f"{base}.norm2", hidden + out, eps)
    return hidden


def _experts(config: Mapping[str, Any], tensors: Tensors, base: str, hidden: Array) -> Array:
    shares = _softmax(_linear(tensors, f"{base}.router.layer", hidden))
    first, last = (
        np.split(tensors[f"{base}.experts.mlp.{name}"], config["num_experts"]) for name in ("w1", "w2")
    )
    out = np.zeros_like(hidden)
    for token, share in enumerate(shares):
        for expert in np.argsort(-share)[: config["moe_top_k"]]:
            out[token] += share[expert] * (_gelu(hidden[token] @ first[expert].T) @ last[expert])
    return out + tensors[f"{base}.experts.bias"]


def m3(folder: Path, hidden: Sequence[Array], read: Sequence[Sequence[int]]) -> dict[str, Array]:
    """BGE-M3's sparse vectors, dense (texts, words), and those of tokens, one text after the other.

    Args:
        folder: with the layers' files.
        hidden: what the encoder gives, (tokens, size) a text.
        read: the tokens of each text.
    """
    from safetensors.numpy import load_file

    sparse, late = (load_file(folder / f"{name}_linear.safetensors") for name in ("sparse", "colbert"))
    weights = np.zeros((len(read), 204), dtype=np.float32)
    vectors = []
    for row, (tokens, ids) in enumerate(zip(hidden, read, strict=True)):
        for token, word in zip(tokens, ids, strict=True):
            weight = float(token @ sparse["weight"][0] + sparse["bias"][0])
            if word > 3:  # the special ones come first
                weights[row, word] = max(weights[row, word], weight)
        found = tokens[1:] @ late["weight"].T + late["bias"]
        vectors.append(found / np.linalg.norm(found, axis=1, keepdims=True))
    return {"bge-m3/sparse": weights, "bge-m3/tokens": np.concatenate(vectors)}
