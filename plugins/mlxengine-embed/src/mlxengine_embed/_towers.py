"""The two towers of CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023): texts and pictures to vectors.

Modules are named as transformers' checkpoints name their tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ._parts import Array, Config, Group, activation, additive, causal, renamed
from ._sight import Sight


class Layer(nn.Module):  # type: ignore[misc]
    """One layer of either tower: norms come first."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size, eps = config["hidden_size"], config["layer_norm_eps"]
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        self.self_attn = Group(**{name: nn.Linear(size, size) for name in names})
        self.layer_norm1 = nn.LayerNorm(size, eps=eps)
        self.mlp = FeedForward(config)
        self.layer_norm2 = nn.LayerNorm(size, eps=eps)
        self._heads = config["num_attention_heads"]

    def __call__(self, hidden: Array, mask: Array | None) -> Array:
        x, parts = self.layer_norm1(hidden), self.self_attn
        found = attention(parts.q_proj(x), parts.k_proj(x), parts.v_proj(x), self._heads, mask)
        hidden = hidden + parts.out_proj(found)
        return hidden + self.mlp(self.layer_norm2(hidden))


class FeedForward(nn.Module):  # type: ignore[misc]
    """Two dense layers."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size, inner, name = config["hidden_size"], config["intermediate_size"], config["hidden_act"]
        self.fc1, self.fc2 = nn.Linear(size, inner), nn.Linear(inner, size)
        self._act = nn.gelu_fast_approx if name == "quick_gelu" else activation(name)

    def __call__(self, x: Array) -> Array:
        return self.fc2(self._act(self.fc1(x)))


class Attended(nn.Module):  # type: ignore[misc]
    """SigLIP's pooling: one learned query looks at all patches."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size = config["hidden_size"]
        self.probe = mx.zeros((1, 1, size))
        self.attention = Group(in_proj=nn.Linear(size, 3 * size), out_proj=nn.Linear(size, size))
        self.layernorm = nn.LayerNorm(size, eps=config["layer_norm_eps"])
        self.mlp = FeedForward(config)
        self._heads = config["num_attention_heads"]

    def __call__(self, hidden: Array) -> Array:
        query = mx.split(self.attention.in_proj(self.probe), 3, axis=-1)[0]
        _, key, value = mx.split(self.attention.in_proj(hidden), 3, axis=-1)
        query = mx.broadcast_to(query, (hidden.shape[0], *query.shape[1:]))
        pooled = self.attention.out_proj(attention(query, key, value, self._heads, None))
        return (pooled + self.mlp(self.layernorm(pooled)))[:, 0]


def attention(q: Array, k: Array, v: Array, heads: int, mask: Array | None) -> Array:
    """softmax(q kᵀ / √size + mask) v of (rows, length, heads × size)."""
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3) for x in (q, k, v))
    found = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)
    return found.transpose(0, 2, 1, 3).reshape(found.shape[0], found.shape[2], -1)


def _layers(config: Config) -> Group:
    return Group(layers=[Layer(config) for _ in range(config["num_hidden_layers"])])


class Vision(nn.Module):  # type: ignore[misc]
    """The tower of pictures."""

    def __init__(self, config: Config, clip: bool) -> None:
        super().__init__()
        size, patch, eps = config["hidden_size"], config["patch_size"], config["layer_norm_eps"]
        places = (config["image_size"] // patch) ** 2 + clip
        self.embeddings = Group(
            patch_embedding=nn.Conv2d(3, size, patch, stride=patch, bias=not clip),
            position_embedding=nn.Embedding(places, size),
            **({"class_embedding": mx.zeros((size,))} if clip else {}),
        )
        if clip:
            self.pre_layrnorm = nn.LayerNorm(size, eps=eps)
        self.encoder = _layers(config)
        self.post_layernorm = nn.LayerNorm(size, eps=eps)
        if not clip and config.get("vision_use_head") is not False:
            self.head = Attended(config)

    def __call__(self, pixels: Array) -> Array:
        """Of pixels (rows, height, width, 3) one vector each."""
        hidden = self.patches(pixels)
        return self.head(hidden) if "head" in self else hidden[:, 0]

    def patches(self, pixels: Array) -> Array:
        """Of pixels (rows, height, width, 3) one vector a place, (rows, places, size)."""
        parts = self.embeddings
        hidden = parts.patch_embedding(pixels.astype(parts.position_embedding.weight.dtype)).flatten(1, 2)
        if "class_embedding" in parts:
            start = mx.broadcast_to(parts.class_embedding, (hidden.shape[0], 1, hidden.shape[2]))
            hidden = mx.concatenate([start, hidden], axis=1)
        hidden = hidden + parts.position_embedding.weight
        if "pre_layrnorm" in self:
            hidden = self.pre_layrnorm(hidden)
        for layer in self.encoder.layers:
            hidden = layer(hidden, None)
        return self.post_layernorm(hidden)


class Words(nn.Module):  # type: ignore[misc]
    """The tower of texts."""

    def __init__(self, config: Config, clip: bool, dimension: int) -> None:
        super().__init__()
        size = config["hidden_size"]
        self.embeddings = Group(
            token_embedding=nn.Embedding(config["vocab_size"], size),
            position_embedding=nn.Embedding(config["max_position_embeddings"], size),
        )
        self.encoder = _layers(config)
        self.final_layer_norm = nn.LayerNorm(size, eps=config["layer_norm_eps"])
        if not clip:
            self.head = nn.Linear(size, dimension)
        self._end = config["eos_token_id"]

    def __call__(self, ids: Array, valid: Array | None) -> Array:
        """Of token ids (rows, length) one vector each; ``valid`` hides SigLIP's padding where it is given."""
        length = ids.shape[1]
        hidden = self.embeddings.token_embedding(ids) + self.embeddings.position_embedding.weight[:length]
        if "head" in self:
            mask = None if valid is None else additive(valid[:, None, None, :], hidden.dtype)
        else:
            mask = additive(causal(length), hidden.dtype)
        for layer in self.encoder.layers:
            hidden = layer(hidden, mask)
        hidden = self.final_layer_norm(hidden)
        if "head" in self:
            return self.head(hidden[:, -1])
        # Checkpoints that say 2 mean the largest id; padding has the same one, so it is the first of them.
        ends = mx.argmax(ids if self._end == 2 else ids == self._end, axis=1)
        return hidden[mx.arange(ids.shape[0]), ends]


class Towers(nn.Module):  # type: ignore[misc]
    """Both towers."""

    def __init__(self, sight: Sight) -> None:
        super().__init__()
        clip = sight.kind == "clip"
        self.text_model = Words(sight.text, clip, sight.dimension)
        self.vision_model = Vision(sight.vision, clip)
        if clip:
            self.text_projection = nn.Linear(sight.text["hidden_size"], sight.dimension, bias=False)
            self.visual_projection = nn.Linear(sight.vision["hidden_size"], sight.dimension, bias=False)

    def texts(self, ids: Array, valid: Array | None) -> Array:
        """(rows, dimension) of token ids (rows, length)."""
        found = self.text_model(ids, valid)
        return self.text_projection(found) if "text_projection" in self else found

    def pictures(self, pixels: Array) -> Array:
        """(rows, dimension) of pixels (rows, height, width, 3)."""
        found = self.vision_model(pixels)
        return self.visual_projection(found) if "visual_projection" in self else found


rename = renamed(((r"in_proj_(weight|bias)$", r"in_proj.\1"),), r"logit_")
"""The module's name of a checkpoint's tensor."""


def prepare(weights: Mapping[str, Array]) -> Mapping[str, Any]:
    """The checkpoint's tensors with the patches' as mlx keeps it: channels last."""

    def turned(key: str, value: Array) -> Array:
        torchs = key.endswith("patch_embedding.weight") and value.ndim == 4 and value.shape[-1] != 3
        return value.transpose(0, 2, 3, 1) if torchs else value

    return {key: turned(key, value) for key, value in weights.items()}


__all__ = ["Towers", "prepare", "rename"]
