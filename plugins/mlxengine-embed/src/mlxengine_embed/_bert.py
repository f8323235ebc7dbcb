"""BERT and what differs from it in a row of a table: names, positions, shared layers, gated feed-forwards.

The modules are named as BERT's checkpoints name them; a `Variant` says how another architecture's names and
settings become BERT's, and what it adds. All of them normalise after each of a layer's two halves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from attrs import evolve, field, frozen

from ._disentangled import Disentangled, RelativePositions
from ._parts import (
    Array,
    Config,
    Encoder,
    Group,
    activation,
    additive,
    by_distance,
    renamed,
    rotary,
    split,
)

_UNUSED = (
    r"pooler\.|cls\.|lm_head\.|classifier\.|dense\.|predictions\.|pre_classifier\.|vocab_|"
    r"encoder\.embed_positions\.|mask_predictions\.|lm_predictions\.|(?:discriminator|generator)_predictions\.|generator_lm_head\."
)
_OLD_NORMS = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))


@frozen(kw_only=True)
class Variant:
    """How an architecture differs from BERT.

    Args:
        prefix: what may stand before its tensors' names (a regular expression).
        names: its tensors' names and BERT's.
        settings: BERT's settings and what its configuration calls them.
        defaults: settings that its class has another default for than BERT's.
        positions: ``"counted"`` (from the first token), ``"after padding"`` (from the padding token's id + 1
            on, padding tokens not counted), or ``"none"``.
        types: whether it has token types at all.
        relative: whether the distance of two tokens adds a learned bias to their attention.
        theta: the default base of its rotary positions, ``None`` where it has none.
        paired: whether these turn neighbours, not the first half with the second.
        gated: whether the feed-forward has a gate.
        biased: whether projections and the feed-forward's (first, last) layer have biases.
        prepare: takes apart tensors that its checkpoints keep in one.
    """

    prefix: str = ""
    names: Sequence[tuple[str, str]] = ()
    settings: Mapping[str, str] = field(factory=dict)
    defaults: Mapping[str, Any] = field(factory=dict)
    positions: str = "counted"
    types: bool = True
    relative: bool = False
    theta: float | None = None
    paired: bool = False
    gated: bool = False
    biased: tuple[bool, bool, bool] = (True, True, True)
    prepare: Callable[[Mapping[str, Array]], Mapping[str, Array]] | None = None


# What differs in nothing but its names.
_ROBERTA = Variant(prefix=r"roberta\.", positions="after padding", defaults={"pad_token_id": 1})
_ROTARY_NAMES = (
    (r"^layers\.", "encoder.layer."),
    (r"\.self_attn\.q_proj\.", ".attention.self.query."),
    (r"\.self_attn\.k_proj\.", ".attention.self.key."),
    (r"\.self_attn\.v_proj\.", ".attention.self.value."),
    (r"\.self_attn\.o_proj\.", ".attention.output.dense."),
    (r"\.post_attention_layernorm\.", ".attention.output.LayerNorm."),
    (r"\.mlp\.up_proj\.", ".intermediate.dense."),
    (r"\.mlp\.gate_proj\.", ".intermediate.gate."),
    (r"\.mlp\.down_proj\.", ".output.dense."),
    (r"\.post_mlp_layernorm\.", ".output.LayerNorm."),
)
_GTE = Variant(
    prefix=r"(?:new|gte)\.",
    names=(
        (r"^encoder\.layer\.(\d+)\.attention\.o_proj\.", r"layers.\1.self_attn.o_proj."),
        (r"^encoder\.layer\.(\d+)\.attn_ln\.", r"layers.\1.post_attention_layernorm."),
        (r"^encoder\.layer\.(\d+)\.mlp_ln\.", r"layers.\1.post_mlp_layernorm."),
        (r"^encoder\.layer\.(\d+)\.", r"layers.\1."),
        *_ROTARY_NAMES,
    ),
    defaults={"pad_token_id": 0, "type_vocab_size": 1},
    positions="none",
    theta=160_000.0,
    gated=True,
    biased=(True, False, True),
    prepare=lambda weights: split(r"mlp\.up_gate_proj", ("mlp.up_proj", "mlp.gate_proj"))(
        split(r"attention\.qkv_proj", [f"self_attn.{name}_proj" for name in "qkv"])(weights)
    ),
)
VARIANTS: Mapping[str, Variant] = {
    "bert": Variant(prefix=r"bert\."),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "ernie": Variant(prefix=r"ernie\."),
    "electra": Variant(prefix=r"electra\.", names=((r"^embeddings_project\.", "embeddings.projection."),)),
    "distilbert": Variant(
        prefix=r"distilbert\.",
        names=(
            (r"^transformer\.layer\.", "encoder.layer."),
            (r"\.attention\.q_lin\.", ".attention.self.query."),
            (r"\.attention\.k_lin\.", ".attention.self.key."),
            (r"\.attention\.v_lin\.", ".attention.self.value."),
            (r"\.attention\.out_lin\.", ".attention.output.dense."),
            (r"\.sa_layer_norm\.", ".attention.output.LayerNorm."),
            (r"\.ffn\.lin1\.", ".intermediate.dense."),
            (r"\.ffn\.lin2\.", ".output.dense."),
            (r"\.output_layer_norm\.", ".output.LayerNorm."),
        ),
        settings={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
        },
        types=False,
    ),
    "mpnet": Variant(
        prefix=r"mpnet\.",
        names=(
            (r"\.attention\.attn\.q\.", ".attention.self.query."),
            (r"\.attention\.attn\.k\.", ".attention.self.key."),
            (r"\.attention\.attn\.v\.", ".attention.self.value."),
            (r"\.attention\.attn\.o\.", ".attention.output.dense."),
            (r"\.attention\.LayerNorm\.", ".attention.output.LayerNorm."),
        ),
        defaults={"pad_token_id": 1},
        positions="after padding",
        types=False,
        relative=True,
    ),
    "albert": Variant(
        prefix=r"albert\.",
        names=(
            (r"^encoder\.embedding_hidden_mapping_in\.", "embeddings.projection."),
            (
                r"\.albert_layers\.(\d+)\.attention\.(query|key|value)\.",
                r".albert_layers.\1.attention.self.\2.",
            ),
            (r"\.attention\.(dense|LayerNorm)\.", r".attention.output.\1."),
            (r"\.ffn\.", ".intermediate.dense."),
            (r"\.ffn_output\.", ".output.dense."),
            (r"\.full_layer_layer_norm\.", ".output.LayerNorm."),
        ),
        defaults={"embedding_size": 128, "hidden_act": "gelu_new"},
    ),
    "deberta-v2": Variant(
        prefix=r"deberta\.",
        names=(
            (r"^embeddings\.embed_proj\.", "embeddings.projection."),
            (r"^encoder\.(rel_embeddings|LayerNorm)\.", r"relative.\1."),
            (r"\.attention\.self\.(query|key|value)_proj\.", r".attention.self.\1."),
        ),
        defaults={"type_vocab_size": 0, "layer_norm_eps": 1e-7},
    ),
    "nomic_bert": Variant(
        prefix=r"(?:bert|nomic_bert)\.",
        names=(
            (r"^emb_ln\.", "embeddings.LayerNorm."),
            (r"^encoder\.layers\.", "layers."),
            (r"\.attn\.out_proj\.", ".self_attn.o_proj."),
            (r"\.norm1\.", ".post_attention_layernorm."),
            (r"\.norm2\.", ".post_mlp_layernorm."),
            (r"\.mlp\.fc11\.", ".mlp.up_proj."),
            (r"\.mlp\.fc12\.", ".mlp.gate_proj."),
            (r"\.mlp\.fc2\.", ".mlp.down_proj."),
            *_ROTARY_NAMES,
        ),
        settings={
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "intermediate_size": "n_inner",
            "layer_norm_eps": "layer_norm_epsilon",
            "max_position_embeddings": "n_positions",
            "rope_theta": "rotary_emb_base",
        },
        defaults={"hidden_act": "silu"},
        positions="none",
        theta=1000.0,
        gated=True,
        biased=(False, False, False),
        prepare=split(r"attn\.Wqkv", [f"self_attn.{name}_proj" for name in "qkv"]),
    ),
    "gte": _GTE,
    "new": _GTE,
    "data2vec-text": evolve(_ROBERTA, prefix=r"data2vec_text\."),
    "roformer": Variant(
        prefix=r"roformer\.",
        names=((r"^embeddings_project\.", "embeddings.projection."),),
        positions="none",
        theta=10_000.0,
        paired=True,
    ),
    "jina_embeddings_v3": Variant(
        prefix=r"roberta\.",
        names=((r"\.mlp\.fc1\.", ".mlp.up_proj."), (r"\.mlp\.fc2\.", ".mlp.down_proj."), *_ROTARY_NAMES),
        defaults={"pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
        positions="none",
        theta=20_000.0,
    ),
}
"""The architectures that are served so; what each of their settings may be, `_settings.ENCODERS` says."""
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
        self._first = config["model_type"] == "deberta-v2"
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
        theta = variant.theta
        self.rope = (
            None if theta is None else rotary(config, self.attention_head_size, theta, paired=variant.paired)
        )

    def __call__(self, hidden: Array, mask: Array | None) -> Array:
        rows, length, _ = hidden.shape
        q, k, v = (
            layer(hidden).reshape(rows, length, self.num_attention_heads, -1).transpose(0, 2, 1, 3)
            for layer in (self.query, self.key, self.value)
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


class Layer(nn.Module):  # type: ignore[misc]
    """Attention, then the feed-forward, each added to its input and normalised."""

    def __init__(self, config: Config, variant: Variant) -> None:
        super().__init__()
        size, inner = int(config["hidden_size"]), int(config["intermediate_size"])
        eps = float(config["layer_norm_eps"])
        own = Disentangled(config) if config["model_type"] == "deberta-v2" else SelfAttention(config, variant)
        out = Group(
            dense=nn.Linear(size, size, bias=variant.biased[0]), LayerNorm=nn.LayerNorm(size, eps=eps)
        )
        self.attention = Group(self=own, output=out)
        self.intermediate = Intermediate(config, variant)
        last = nn.Linear(inner, size, bias=variant.biased[2])
        self.output = Group(dense=last, LayerNorm=nn.LayerNorm(size, eps=eps))

    def __call__(self, hidden: Array, mask: Array | None, *relative: Array) -> Array:
        out = self.attention.output
        hidden = out.LayerNorm(hidden + out.dense(self.attention.self(hidden, mask, *relative)))
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
        self.encoder = Group(layer=[Layer(config, variant) for _ in range(layers)])
        if variant.relative:
            self._buckets = int(config.get("relative_attention_num_buckets", 32))
            heads = int(config["num_attention_heads"])
            self.encoder.relative_attention_bias = nn.Embedding(self._buckets, heads)
        if config.get("relative_attention"):
            self.relative = RelativePositions(config)

    def __call__(self, ids: Array, valid: Array | None, types: Array | None) -> Array:
        hidden = self.embeddings(ids, types)
        mask = None if valid is None else additive(valid[:, None, None, :], hidden.dtype)
        if "relative_attention_bias" in self.encoder:
            # Looked up, not taken as it is stored: a conversion may have quantized it.
            table = self.encoder.relative_attention_bias(mx.arange(self._buckets))
            bias = by_distance(table, ids.shape[1], self._buckets, 128).astype(hidden.dtype)
            mask = bias if mask is None else bias + mask
        relative = self.relative(ids.shape[1]) if "relative" in self else ()
        for index in self._order:
            hidden = self.encoder.layer[index](hidden, mask, *relative)
        return hidden


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
        types=variant.types and int(own["type_vocab_size"]) > 1,
    )


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
