"""BERT and what differs from it in a row of a table: names, positions, shared layers, gated feed-forwards.

The modules are named as BERT's checkpoints name them; a `Variant` says how another architecture's names and
settings become BERT's, and what it adds. All of them normalise after each of a layer's two halves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ._disentangled import Disentangled, RelativePositions
from ._parts import Array, Config, Encoder, Group, activation, additive, by_distance, renamed, rotary
from ._published import SEARCH_TASKS
from ._tasks import add_tasks
from ._variants import VARIANTS, Variant

_UNUSED = (
    r"pooler\.|linear\.|cls\.|lm_head\.|classifier\.|dense\.|predictions\.|pre_classifier\.|vocab_|"
    r"encoder\.embed_positions\.|mask_predictions\.|lm_predictions\.|(?:discriminator|generator)_predictions\.|generator_lm_head\."
)
_OLD_NORMS = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))


_DEFAULTS = {"layer_norm_eps": 1e-12, "type_vocab_size": 2, "pad_token_id": 0, "hidden_act": "gelu"}


class Embeddings(nn.Module):  # type: ignore[misc]
    """Word, position and type of a token in one vector."""

    def __init__(self, config: Config, variant: Variant) -> None:
        super().__init__()
        size = int(config.get("embedding_size") or config["hidden_size"])
        whole, types = int(config["hidden_size"]), int(config["type_vocab_size"])
        self.word_embeddings = nn.Embedding(int(config["vocab_size"]), size)
        if variant.positions != "none" and config.get("position_biased_input", True):
            self.position_embeddings = nn.Embedding(int(config["max_position_embeddings"]), size)
        if variant.types and types:
            self.token_type_embeddings = nn.Embedding(types, size)
        if config.get("use_task_id"):
            self.task_type_embeddings = nn.Embedding(int(config.get("task_type_vocab_size", 3)), size)
        # DeBERTa projects before it normalises, and has no bias there.
        self._first = variant.disentangled
        if size != whole or config["model_type"] == "albert":
            self.projection = nn.Linear(size, whole, bias=not self._first)
        self.LayerNorm = nn.LayerNorm(whole if self._first else size, eps=float(config["layer_norm_eps"]))
        self._padding = int(config["pad_token_id"]) if variant.positions == "after padding" else None

    def __call__(self, ids: Array, types: Array | None) -> Array:
        hidden = self.word_embeddings(ids)
        if "position_embeddings" in self:
            hidden = hidden + self.position_embeddings(self._places(ids))
        if "token_type_embeddings" in self:
            # Nearly all texts are alone: one row, broadcast, instead of a look-up.
            table = self.token_type_embeddings
            hidden = hidden + (table(types) if types is not None else table(mx.zeros((1,), dtype=mx.int32)))
        if "task_type_embeddings" in self:
            hidden = hidden + self.task_type_embeddings(mx.zeros((1,), dtype=mx.int32))
        if "projection" not in self:
            return self.LayerNorm(hidden)
        return (
            self.LayerNorm(self.projection(hidden))
            if self._first
            else self.projection(self.LayerNorm(hidden))
        )

    def _places(self, ids: Array) -> Array:
        if self._padding is None:
            return mx.arange(ids.shape[1])
        real = (ids != self._padding).astype(mx.int32)
        return mx.cumsum(real, axis=1) * real + self._padding


class SelfAttention(nn.Module):  # type: ignore[misc]
    """Attention of a text to itself; ``rope`` turns queries and keys by their places."""

    def __init__(self, config: Config, variant: Variant) -> None:
        super().__init__()
        size = int(config["hidden_size"])
        self.num_attention_heads = int(config["num_attention_heads"])
        self.attention_head_size = size // self.num_attention_heads
        for name in ("query", "key", "value"):
            setattr(self, name, nn.Linear(size, size, bias=variant.biased[0]))
        if variant.normed:
            eps = float(config["layer_norm_eps"])
            self.layer_norm_q, self.layer_norm_k = (nn.LayerNorm(size, eps=eps) for _ in "qk")
        theta = variant.theta
        self.rope = (
            None if theta is None else rotary(config, self.attention_head_size, theta, paired=variant.paired)
        )

    def __call__(self, hidden: Array, mask: Array | None) -> Array:
        rows, length, _ = hidden.shape
        q, k, v = self.query(hidden), self.key(hidden), self.value(hidden)
        if "layer_norm_q" in self:
            q, k = self.layer_norm_q(q), self.layer_norm_k(k)
        q, k, v = (
            x.reshape(rows, length, self.num_attention_heads, -1).transpose(0, 2, 1, 3) for x in (q, k, v)
        )
        if self.rope is not None:
            q, k = self.rope(q), self.rope(k)
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=self.attention_head_size**-0.5, mask=mask)
        return out.transpose(0, 2, 1, 3).reshape(rows, length, -1)


class Intermediate(nn.Module):  # type: ignore[misc]
    """The first half of the feed-forward."""

    def __init__(self, config: Config, variant: Variant) -> None:
        super().__init__()
        sizes = int(config["hidden_size"]), int(config["intermediate_size"])
        self.dense = nn.Linear(*sizes, bias=variant.biased[1])
        if variant.gated:
            self.gate = nn.Linear(*sizes, bias=variant.biased[1])
        self.act = activation(config["hidden_act"])

    def __call__(self, hidden: Array) -> Array:
        if "gate" in self:
            return self.act(self.gate(hidden)) * self.dense(hidden)
        return self.act(self.dense(hidden))


class Experts(nn.Module):  # type: ignore[misc]
    """A feed-forward of several, of which a router chooses a few for each token."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size, inner = int(config["hidden_size"]), int(config["intermediate_size"])
        self._count, self._chosen = int(config["num_experts"]), int(config["moe_top_k"])
        self.router = nn.Linear(size, self._count, bias=False)
        self.w1, self.w2 = (mx.zeros((self._count * inner, size)) for _ in range(2))
        self.bias = mx.zeros((size,))
        self.act = activation(config["hidden_act"])

    def __call__(self, hidden: Array) -> Array:
        flat = hidden.reshape(-1, 1, 1, hidden.shape[-1])
        shares = mx.softmax(self.router(flat)[:, 0, 0].astype(mx.float32), axis=-1)
        chosen = mx.argpartition(-shares, self._chosen - 1, axis=-1)[:, : self._chosen]
        first, last = (w.reshape(self._count, -1, hidden.shape[-1]) for w in (self.w1, self.w2))
        found = self.act(mx.gather_mm(flat, first.swapaxes(-1, -2), rhs_indices=chosen))
        found = mx.gather_mm(found, last, rhs_indices=chosen)[:, :, 0]
        shares = mx.take_along_axis(shares, chosen, axis=-1).astype(hidden.dtype)
        return (shares[:, None] @ found).reshape(hidden.shape) + self.bias


class Layer(nn.Module):  # type: ignore[misc]
    """Attention, then the feed-forward, each added to its input and normalised."""

    def __init__(self, config: Config, variant: Variant, index: int) -> None:
        super().__init__()
        size, inner = int(config["hidden_size"]), int(config["intermediate_size"])
        eps = float(config["layer_norm_eps"])
        own = Disentangled(config) if variant.disentangled else SelfAttention(config, variant)
        out = Group(
            dense=nn.Linear(size, size, bias=variant.biased[0]), LayerNorm=nn.LayerNorm(size, eps=eps)
        )
        self.attention = Group(self=own, output=out)
        if variant.normed:
            self.layer_norm_1 = nn.LayerNorm(size, eps=eps)
        norm = nn.LayerNorm(size, eps=eps)
        if variant.experts and index % int(config["moe_every_n_layers"]) == 1:
            self.experts, self.output = Experts(config), Group(LayerNorm=norm)
            return
        self.intermediate = Intermediate(config, variant)
        self.output = Group(dense=nn.Linear(inner, size, bias=variant.biased[2]), LayerNorm=norm)

    def __call__(self, hidden: Array, mask: Array | None, *relative: Array) -> Array:
        out = self.attention.output
        attended = out.LayerNorm(hidden + out.dense(self.attention.self(hidden, mask, *relative)))
        hidden = self.layer_norm_1(hidden + attended) if "layer_norm_1" in self else attended
        if "experts" in self:
            return self.output.LayerNorm(hidden + self.experts(hidden))
        return self.output.LayerNorm(hidden + self.output.dense(self.intermediate(hidden)))


class Bert(nn.Module):  # type: ignore[misc]
    """An encoder of this kind; ``encoder.layer`` holds each layer once, whether it is used once or often."""

    def __init__(self, config: Config, variant: Variant) -> None:
        super().__init__()
        self.embeddings = Embeddings(config, variant)
        layers, groups = int(config["num_hidden_layers"]), int(config.get("num_hidden_groups", 0))
        inner = int(config.get("inner_group_num", 1))
        self._order = list(range(layers))
        if config["model_type"] == "albert":
            groups = groups or 1
            group_of = [int(index / (layers / groups)) for index in range(layers)]
            self._order = [group * inner + place for group in group_of for place in range(inner)]
            layers = groups * inner
        self.encoder = Group(layer=[Layer(config, variant, index) for index in range(layers)])
        if variant.relative:
            self._buckets = int(config.get("relative_attention_num_buckets", 32))
            heads = int(config["num_attention_heads"])
            self.encoder.relative_attention_bias = nn.Embedding(self._buckets, heads)
        self._slopes = mx.array(_slopes(int(config["num_attention_heads"]))) if variant.alibi else None
        if config.get("relative_attention"):
            self.relative = RelativePositions(config)

        self._chosen = add_tasks(self, config) if config.get("lora_adaptations") else None

    def __call__(
        self, ids: Array, valid: Array | None, types: Array | None, task: int | None = None
    ) -> Array:
        if self._chosen is not None:
            self._chosen.index = task
        hidden = self.embeddings(ids, types)
        mask = None if valid is None else additive(valid[:, None, None, :], hidden.dtype)
        if "relative_attention_bias" in self.encoder:
            # Looked up, not taken as it is stored: a conversion may have quantized it.
            table = self.encoder.relative_attention_bias(mx.arange(self._buckets))
            bias = by_distance(table, ids.shape[1], self._buckets, 128).astype(hidden.dtype)
            mask = bias if mask is None else bias + mask
        if self._slopes is not None:
            places = mx.arange(ids.shape[1])
            far = mx.abs(places[:, None] - places[None, :])
            bias = (-self._slopes[:, None, None] * far)[None].astype(hidden.dtype)
            mask = bias if mask is None else bias + mask
        relative = self.relative(ids.shape[1]) if "relative" in self else ()
        for index in self._order:
            hidden = self.encoder.layer[index](hidden, mask, *relative)
        return hidden


def _slopes(heads: int) -> Any:
    """How much each head minds a distance (Press et al. 2022, section 3, for both sides): a geometric row
    that ends at 1/256, and where heads are no power of two every second one of the next power's after it.
    """
    whole = 1 << (heads.bit_length() - 1)
    row = 2.0 ** (-8 / whole * np.arange(1, whole + 1))
    between = 2.0 ** (-4 / whole * np.arange(1, 2 * whole, 2))
    return np.concatenate([row, between])[:heads].astype(np.float32)


def build(config: Config, library: str) -> Encoder:
    """The encoder of a ``config.json`` of one of `VARIANTS`."""
    kind = str(config["model_type"])
    variant = VARIANTS[kind]
    own = {**_DEFAULTS, **variant.defaults, **{k: v for k, v in config.items() if v is not None}}
    for name, called in variant.settings.items():
        if config.get(called) is not None:
            own[name] = config[called]
    module = Bert(own, variant)
    pad, table = int(own["pad_token_id"]), int(own.get("max_position_embeddings", 0))
    learned = "position_embeddings" in module.embeddings
    names = (*variant.names, *_OLD_NORMS)
    if kind == "albert":
        inner = int(own.get("inner_group_num", 1))
        names = (*names, *_flat(int(own.get("num_hidden_groups", 1)), inner))
    return Encoder(
        module=module,
        forward=module,
        rename=renamed(names, _UNUSED, variant.prefix),
        **({} if variant.prepare is None else {"prepare": variant.prepare}),
        hidden_size=int(own["hidden_size"]),
        positions=(table - pad - 1 if variant.positions == "after padding" else table) if learned else None,
        pad=pad,
        library=library,
        tasks=_tasks(own.get("lora_adaptations") or ()),
        types=variant.types and int(own["type_vocab_size"]) > 1,
    )


def _tasks(names: Sequence[str]) -> Mapping[str, int]:
    """The places of tasks, those of a search under the names that ours have, too."""
    found = {name: place for place, name in enumerate(names)}
    return found | {task: found[name] for task, name in SEARCH_TASKS.items() if name in found}


def _flat(groups: int, inner: int) -> list[tuple[str, str]]:
    """ALBERT's groups of layers as one list."""
    return [
        (
            rf"^encoder\.albert_layer_groups\.{group}\.albert_layers\.{place}\.",
            f"encoder.layer.{group * inner + place}.",
        )
        for group in range(groups)
        for place in range(inner)
    ]


__all__ = ["VARIANTS", "Bert", "build"]
