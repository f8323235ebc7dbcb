"""The settings of configurations that are known, of each architecture and each stage; how they are held to a
repository's files, `_settings` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

from ._architectures import ACTIVATIONS


@frozen(kw_only=True)
class Known:
    """The settings of a configuration that are known.

    Args:
        read: those that are read, whatever their value.
        only: those that are honoured with these values alone.
        harmless: those that change no vector.
        code: the repository's own classes (as in ``auto_map``) that compute what is computed here.
    """

    read: frozenset[str] = field(default=frozenset())
    only: Mapping[str, Sequence[Any]] = field(factory=dict)
    harmless: frozenset[str] = field(default=frozenset())
    code: tuple[str, ...] = ()

    def refused(self, config: Mapping[str, Any]) -> Sequence[str]:
        """The settings that are neither honoured nor without effect."""
        return [key for key, value in config.items() if value is not None and not self._passes(key, value)]

    def _passes(self, key: str, value: Any) -> bool:
        if key in self.only and key not in self.read:
            return any(value == one for one in self.only[key])
        known = key in self.read or key in self.harmless
        empty = isinstance(value, Mapping | Sequence) and not value
        return known or empty or key.startswith("_") or "dropout" in key


def _keys(*names: str) -> frozenset[str]:
    return frozenset(" ".join(names).split())


# What the output of no architecture depends on: labels, generation, training, storage, how it is run.
HARMLESS = _keys(
    "model_type architectures auto_map torch_dtype dtype transformers_version quantization",
    "quantization_config",
    "initializer_range initializer_cutoff_factor initializer_factor gradient_checkpointing use_cache",
    "id2label label2id num_labels problem_type finetuning_task task_specific_params sentence_transformers",
    "sbert_ce_default_activation_function tie_word_embeddings tie_encoder_decoder tokenizer_class prefix",
    "model_max_length max_position_embeddings vocab_size bos_token_id eos_token_id pad_token_id cls_token_id",
    "sep_token_id mask_token_id unk_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id",
    "output_hidden_states output_attentions output_past return_dict use_return_dict torchscript use_bfloat16",
    "tf_legacy_loss chunk_size_feed_forward attn_implementation pretraining_tp directionality emb_pooler",
    "matryoshka_dimensions",
    "max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature",
    "top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size num_return_sequences",
    "encoder_no_repeat_ngram_size bad_words_ids output_scores return_dict_in_generate remove_invalid_values",
    "exponential_decay_length_penalty suppress_tokens begin_suppress_tokens cache_implementation",
    "pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type",
    "pooler_hidden_act pooler_hidden_size summary_activation summary_type summary_use_proj",
    "classifier_pooling classifier_bias classifier_activation decoder_bias sparse_prediction",
    "sparse_pred_ignore_index reference_compile deterministic_flash_attn repad_logits_with_grad",
    "unpad_inputs use_memory_efficient_attention final_logit_softcapping",
)
# Attention to both sides, at places counted from the start.
_ENCODER: Mapping[str, Sequence[Any]] = {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "is_causal": (False,),
}
_DECODER = {"is_encoder_decoder": (False,), "add_cross_attention": (False,), "is_causal": (True,)}
_SIZES = _keys("hidden_size intermediate_size num_hidden_layers num_attention_heads")
_ROTARY = _keys("rope_theta rope_scaling rope_parameters")
_POSITIONS = _keys("layer_norm_eps type_vocab_size")
_BERT = Known(read=_SIZES | _POSITIONS, only={**_ENCODER, "hidden_act": ACTIVATIONS})
_GTE = Known(
    read=_BERT.read | _ROTARY,
    only={
        **_BERT.only,
        "position_embedding_type": ("rope", "absolute"),
        "layer_norm_type": ("layer_norm",),
        "logn_attention_scale": (False,),
        "logn_attention_clip1": (False,),
    },
    harmless=_keys("pack_qkv head_dim"),
    code=("NewConfig", "NewModel", "GteConfig", "GteModel"),
)
_JINA = evolve(
    _BERT,
    only={**_BERT.only, "position_embedding_type": ("alibi",), "feed_forward_type": ("geglu", "reglu")},
    # How long the table of biases is at first; it grows.
    harmless=_keys("alibi_starting_size"),
    code=("JinaBertConfig", "JinaBertModel"),
)
_T5 = Known(
    read=_keys("d_model d_ff d_kv num_layers num_heads layer_norm_epsilon feed_forward_proj")
    | _keys("relative_attention_num_buckets relative_attention_max_distance"),
    only={"is_decoder": (False,), "is_causal": (False,)},
    # What the class makes of feed_forward_proj, and its decoder's.
    harmless=_keys("dense_act_fn is_gated_act num_decoder_layers is_encoder_decoder n_positions")
    | _keys("scale_decoder_outputs"),
)
_LLAMA = Known(
    read=_SIZES | _ROTARY | _keys("num_key_value_heads head_dim rms_norm_eps is_causal"),
    only={
        "hidden_act": ACTIVATIONS,
        "add_cross_attention": (False,),
        "is_encoder_decoder": (False,),
        "mlp_bias": (False,),
        "attention_bias": (False,),
        "sliding_window": (),
    },
)

_NOMIC = Known(
    read=_BERT.read
    | _ROTARY
    | _keys("n_embd n_layer n_head n_inner n_positions layer_norm_epsilon rotary_emb_base"),
    only={
        **_BERT.only,
        "activation_function": ("swiglu",),
        "rotary_emb_fraction": (1.0,),
        "rotary_emb_interleaved": (False,),
        "rotary_emb_scale_base": (),
        "rotary_scaling_factor": (),
        "prenorm": (False,),
        "use_rms_norm": (False,),
        "parallel_block": (False,),
        "qkv_proj_bias": (False,),
        "mlp_fc1_bias": (False,),
        "mlp_fc2_bias": (False,),
        "causal": (False,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
    },
    # How the repository's own code runs and trains; none changes what it computes.
    harmless=_keys("dense_seq_output fused_bias_fc fused_dropout_add_ln last_layer_subset")
    | _keys("pad_vocab_size_multiple reorder_and_upcast_attn use_flash_attn use_xentropy head_dim")
    | _keys("max_trained_positions add_pooling_layer summary_proj_to_labels parallel_block_tied_norm")
    | _keys("attn_pdrop embd_pdrop resid_pdrop"),
    code=("NomicBertConfig", "NomicBertModel"),
)

ENCODERS: Mapping[str, Known] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": evolve(_BERT, read=_BERT.read | _keys("embedding_size")),
    "ernie": evolve(_BERT, read=_BERT.read | _keys("use_task_id task_type_vocab_size")),
    "distilbert": Known(
        read=_keys("dim hidden_dim n_layers n_heads"),
        only={**_ENCODER, "activation": ACTIVATIONS},
        # The table is stored, whatever it was made of.
        harmless=_keys("sinusoidal_pos_embds"),
    ),
    "mpnet": evolve(_BERT, read=_BERT.read | _keys("relative_attention_num_buckets")),
    "albert": evolve(
        _BERT,
        read=_BERT.read | _keys("embedding_size num_hidden_groups inner_group_num"),
        # Training of its first release; the class reads none of them.
        harmless=_keys("down_scale_factor gap_size net_structure_type num_memory_blocks"),
    ),
    "deberta": evolve(
        _BERT,
        read=_BERT.read
        | _keys(
            "embedding_size relative_attention max_relative_positions pos_att_type position_biased_input"
        ),
        only={**_BERT.only, "talking_head": (False,), "legacy": (True, False)},
    ),
    "deberta-v2": evolve(
        _BERT,
        read=_BERT.read
        | _keys("embedding_size relative_attention position_buckets max_relative_positions norm_rel_ebd")
        | _keys("share_att_key pos_att_type position_biased_input"),
        only={**_BERT.only, "conv_kernel_size": (0,), "legacy": (True, False)},
        harmless=_keys("conv_act"),
    ),
    "nomic_bert": _NOMIC,
    "nomic_bert_moe": evolve(
        _NOMIC,
        read=_NOMIC.read | _keys("num_experts moe_top_k"),
        only={
            **_NOMIC.only,
            "activation_function": ACTIVATIONS,
            "qkv_proj_bias": (True,),
            "mlp_fc1_bias": (True,),
            "mlp_fc2_bias": (True,),
            "moe_every_n_layers": (2,),
            "moe_normalize_expert_weights": (False,),
            "expert_choice_router": (False,),
            "num_shared_experts": (0,),
            "ffn_div": (1,),
        },
        harmless=_NOMIC.harmless | _keys("moe_impl moe_resid_pdrop router_aux_loss_coef"),
    ),
    "gte": _GTE,
    "new": _GTE,
    "data2vec-text": _BERT,
    "roformer": evolve(
        _BERT,
        read=_BERT.read | _keys("embedding_size"),
        only={**_BERT.only, "rotary_value": (False,)},
    ),
    "jina_bert": _JINA,
    "jina_bert_normed": _JINA,
    "jina_embeddings_v3": evolve(
        _BERT,
        read=_BERT.read | _ROTARY | _keys("rotary_emb_base lora_adaptations lora_rank lora_alpha"),
        only={**_BERT.only, "position_embedding_type": ("absolute", "rotary")},
        # Its prompts stand in sentence-transformers' file, too; the rest is how its code trains and runs.
        harmless=_keys("task_instructions load_trained_adapters lora_dropout_p lora_main_params_trainable")
        | _keys("use_flash_attn use_reentrant"),
        code=("XLMRobertaFlashConfig", "XLMRobertaLoRA", "XLMRobertaModel"),
    ),
    "xlm_roberta_flash": evolve(
        _BERT,
        harmless=_keys("use_flash_attn"),
        code=("XLMRobertaFlashConfig", "XLMRobertaModel", "XLMRobertaForSequenceClassification"),
    ),
    "t5": _T5,
    "mt5": _T5,
    "umt5": _T5,
    "llama": evolve(_LLAMA, read=_LLAMA.read | _keys("attention_bias mlp_bias")),
    "eurobert": evolve(
        _LLAMA,
        read=_LLAMA.read | _keys("attention_bias mlp_bias"),
        code=("EuroBertConfig", "EuroBertModel"),
    ),
    "gemma": evolve(
        _LLAMA,
        only={
            **_LLAMA.only,
            "hidden_act": ("gelu", "gelu_pytorch_tanh"),
            "hidden_activation": ("gelu_pytorch_tanh",),
        },
    ),
    "llama_bidirec": evolve(
        _LLAMA,
        read=_LLAMA.read | _keys("attention_bias mlp_bias"),
        only={**_LLAMA.only, "is_causal": (False,)},
        # How its code pools and trains, which the repository's modules say or do not.
        harmless=_keys("pooling temperature"),
        code=("LlamaBidirectionalConfig", "LlamaBidirectionalModel"),
    ),
    "gemma2": evolve(
        _LLAMA,
        read=_LLAMA.read | _keys("query_pre_attn_scalar attn_logit_softcapping sliding_window layer_types"),
        only={
            **_LLAMA.only,
            "hidden_act": ("gelu", "gelu_pytorch_tanh"),
            "hidden_activation": ("gelu_pytorch_tanh",),
        },
    ),
    "mistral": evolve(_LLAMA, read=_LLAMA.read | _keys("sliding_window layer_types")),
    "qwen2": evolve(
        _LLAMA,
        read=_LLAMA.read | _keys("sliding_window use_sliding_window max_window_layers layer_types"),
    ),
    "qwen3": evolve(
        _LLAMA,
        read=_LLAMA.read
        | _keys("attention_bias sliding_window use_sliding_window max_window_layers layer_types"),
    ),
    "modernbert": Known(
        read=_SIZES
        | _ROTARY
        | _keys("norm_eps norm_bias attention_bias mlp_bias local_attention global_attn_every_n_layers")
        | _keys("global_rope_theta local_rope_theta layer_types"),
        only={**_ENCODER, "hidden_activation": ("gelu",)},
        # The class reads norm_eps; published files carry this name beside it.
        harmless=_keys("layer_norm_eps"),
    ),
    "gemma3_text": Known(
        read=_SIZES
        | _ROTARY
        | _keys("num_key_value_heads head_dim rms_norm_eps query_pre_attn_scalar layer_types")
        | _keys("sliding_window sliding_window_pattern rope_local_base_freq use_bidirectional_attention"),
        only={
            **_DECODER,
            "attention_bias": (False,),
            "hidden_activation": ("gelu_pytorch_tanh",),
            "hidden_act": ("gelu_pytorch_tanh",),
        },
    ),
}
"""Of each architecture's ``config.json``, what is honoured."""

_TOKENS = {"module_input_name": ("token_embeddings",), "module_output_name": ("token_embeddings",)}
_VECTOR = {"module_input_name": ("sentence_embedding",), "module_output_name": ("sentence_embedding",)}
_LENGTHS = _keys("query_length document_length query_expansion")
_OWN = Known(
    read=_keys("prompts default_prompt_name similarity_fn_name truncate_dim activation_fn"),
    only={"model_type": ("SentenceTransformer", "CrossEncoder")},
    harmless=_keys("__version__ keep_in_fp32_modules requirements"),
)
_TRANSFORMER = Known(
    read=_keys("max_seq_length do_lower_case processing_kwargs modality_config"),
    only={
        "transformer_task": (
            "feature-extraction",
            "sequence-classification",
            "text-generation",
            "fill-mask",
        ),
        "module_output_name": ("token_embeddings", "scores", "causal_logits"),
    },
    harmless=_keys("cache_dir backend"),
)
STAGES: Mapping[str, Known] = {
    "Pooling": Known(
        read=_keys("pooling_mode include_prompt pooling_mode_cls_token pooling_mode_max_tokens")
        | _keys("pooling_mode_mean_tokens pooling_mode_mean_sqrt_len_tokens")
        | _keys("pooling_mode_weightedmean_tokens pooling_mode_lasttoken"),
        harmless=_keys("word_embedding_dimension embedding_dimension"),
    ),
    "Dense": Known(
        read=_keys("in_features out_features bias activation_function use_residual"), only=_VECTOR
    ),
    "Normalize": Known(only=_VECTOR),
    "token Dense": Known(
        read=_keys("in_features out_features bias activation_function use_residual"), only=_TOKENS
    ),
    "token Normalize": Known(only=_TOKENS),
    "MultiVectorMask": Known(read=_keys("skiplist_words skiplist_tasks")),
    "LayerNorm": Known(read=_keys("dimension")),
    "Dropout": Known(),
    "Transformer": _TRANSFORMER,
    "token Transformer": evolve(_TRANSFORMER, read=_TRANSFORMER.read | _LENGTHS),
    "SpladePooling": Known(
        read=_keys("pooling_strategy activation_function"),
        harmless=_keys("embedding_dimension word_embedding_dimension chunk_size"),
    ),
    "SparseStaticEmbedding": Known(harmless=_keys("frozen")),
    "LogitScore": Known(
        read=_keys("true_token_id false_token_id"), only={"module_input_name": ("causal_logits",)}
    ),
    "SentenceTransformer": _OWN,
    "sparse SentenceTransformer": evolve(
        _OWN, read=_OWN.read | _keys("max_active_dims"), only={"model_type": ("SparseEncoder",)}
    ),
    "token SentenceTransformer": evolve(
        _OWN,
        read=_OWN.read
        | _LENGTHS
        | _keys("query_prefix document_prefix do_query_expansion skiplist_words")
        | _keys("attend_to_expansion_tokens attend_to_mask_tokens"),
        only={"model_type": ("MultiVectorEncoder", "ColBERT")},
    ),
}
"""Of the configurations of sentence-transformers' modules, and of its own, what is honoured."""
TEXT = Known(
    read=_keys("max_length"),
    only={"truncation": (True, "longest_first"), "padding": (True, False, "longest")},
    harmless=_keys("return_tensors logits_to_keep"),
)
MODALITY = {
    "method": ("forward",),
    "method_output_name": ("last_hidden_state", "logits"),
    "format": ("flat", "structured"),
}

__all__ = ["ENCODERS", "HARMLESS", "MODALITY", "STAGES", "TEXT", "Known"]
