"""What differs from BERT in names, settings and details, an architecture a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

from ._parts import Array, split
from ._tasks import NAMES as TASK_NAMES
from ._tasks import apart


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
        alibi: whether distances weigh on attention by a slope for each head.
        normed: whether queries, keys and the sum after attention are normalised once more.
        disentangled: whether attention weighs distances by themselves (DeBERTa).
        experts: whether some layers have several feed-forwards, of which a router chooses.
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
    alibi: bool = False
    normed: bool = False
    disentangled: bool = False
    experts: bool = False
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
_JINA = Variant(
    prefix=r"bert\.",
    names=(
        (r"\.mlp\.(?:wo|down_layer)\.", ".output.dense."),
        (r"\.(?:mlp\.layernorm|layer_norm_2)\.", ".output.LayerNorm."),
    ),
    positions="none",
    gated=True,
    alibi=True,
    biased=(True, False, True),
    prepare=split(r"mlp\.gated_layers", ("intermediate.gate", "intermediate.dense")),
)
_NOMIC = Variant(
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
)
_FLASH = Variant(
    prefix=r"roberta\.",
    names=(
        *TASK_NAMES,
        (r"^emb_ln\.", "embeddings.LayerNorm."),
        (r"^encoder\.layers\.", "layers."),
        (r"\.mixer\.out_proj\.", ".self_attn.o_proj."),
        (r"\.norm1\.", ".post_attention_layernorm."),
        (r"\.norm2\.", ".post_mlp_layernorm."),
        (r"\.mlp\.fc1\.", ".mlp.up_proj."),
        (r"\.mlp\.fc2\.", ".mlp.down_proj."),
        *_ROTARY_NAMES,
    ),
    defaults={"pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    positions="none",
    theta=20_000.0,
    prepare=apart,
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
    "deberta": Variant(
        prefix=r"deberta\.",
        names=(
            (r"^embeddings\.embed_proj\.", "embeddings.projection."),
            (r"^encoder\.rel_embeddings\.", "relative.rel_embeddings."),
            (r"\.pos_proj\.", ".pos_key_proj."),
            (r"\.pos_q_proj\.", ".pos_query_proj."),
        ),
        defaults={"type_vocab_size": 0, "layer_norm_eps": 1e-7},
        disentangled=True,
    ),
    "deberta-v2": Variant(
        prefix=r"deberta\.",
        names=(
            (r"^embeddings\.embed_proj\.", "embeddings.projection."),
            (r"^encoder\.(rel_embeddings|LayerNorm)\.", r"relative.\1."),
            (r"\.attention\.self\.(query|key|value)_proj\.", r".attention.self.\1."),
        ),
        defaults={"type_vocab_size": 0, "layer_norm_eps": 1e-7},
        disentangled=True,
    ),
    "nomic_bert": _NOMIC,
    "nomic_bert_moe": evolve(
        _NOMIC,
        names=(
            (r"\.mlp\.experts\.(?:mlp\.)?(w1|w2|bias)$", r".experts.\1"),
            (r"\.mlp\.router\.layer\.", ".experts.router."),
            (r"\.mlp\.fc1\.", ".mlp.up_proj."),
            *_NOMIC.names,
        ),
        settings={**_NOMIC.settings, "hidden_act": "activation_function"},
        theta=10_000.0,
        gated=False,
        experts=True,
        biased=(True, True, True),
    ),
    "gte": _GTE,
    "new": _GTE,
    "data2vec-text": evolve(_ROBERTA, prefix=r"data2vec_text\."),
    "jina_bert": _JINA,
    "jina_bert_normed": evolve(
        _JINA,
        normed=True,
        prepare=split(r"mlp\.up_gated_layer", ("intermediate.dense", "intermediate.gate")),
    ),
    "roformer": Variant(
        prefix=r"roformer\.",
        names=((r"^embeddings_project\.", "embeddings.projection."),),
        positions="none",
        theta=10_000.0,
        paired=True,
    ),
    "jina_embeddings_v3": _FLASH,
    "xlm_roberta_flash": evolve(_FLASH, positions="after padding", theta=None),
}
"""The architectures that are served so; what each of their settings may be, `_known.ENCODERS` says."""

__all__ = ["VARIANTS", "Variant"]
