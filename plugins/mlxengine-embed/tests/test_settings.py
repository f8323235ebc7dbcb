"""Every setting of a repository that changes its vectors is honoured, or refused by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlxengine import ModelCard, ModelConfiguration, ModelRef, Source
from mlxengine.errors import MLXEngineError, RemoteCodeRefusedError, UnsupportedArchitectureError
from mlxengine_embed import EmbedConfiguration
from mlxengine_embed._claim import claim

ST = "sentence_transformers.models."
POOLING = "1_Pooling/config.json"
OWN = "config_sentence_transformers.json"
SIZES = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "classifier_dropout": None}
BERT = {
    **SIZES,
    **DROPOUT,
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_act": "gelu",
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "vocab_size": 30522,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "position_embedding_type": "absolute",
    "use_cache": True,
}
# The keys, and values of the same kind, of configurations as their authors publish them; sizes are small.
MINILM = {**BERT, "_name_or_path": "nreimers/MiniLM-L6-H384-uncased", "gradient_checkpointing": False}
MINILM |= {"transformers_version": "4.8.2"}
BGE = {
    **BERT,
    "_name_or_path": "somebody/base",
    "id2label": {"0": "LABEL_0"},
    "torch_dtype": "float32",
}
BGE |= {"label2id": {"LABEL_0": 0}, "classifier_dropout": None, "_attn_implementation_autoset": True}
E5 = {**BERT, "_name_or_path": "tmp/", "tokenizer_class": "XLMRobertaTokenizer", "output_past": True}
E5_LARGE = {**BERT, "model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"], "type_vocab_size": 1}
E5_LARGE |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "output_past": True}
MODERN = {
    **SIZES,
    "model_type": "modernbert",
    "architectures": ["ModernBertModel"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 50281,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "cls_token_id": 50281,
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "eos_token_id": 50282,
    "norm_bias": False,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "gradient_checkpointing": False,
    "hidden_activation": "gelu",
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "mlp_bias": False,
    "max_position_embeddings": 8192,
    "mlp_dropout": 0.0,
    "norm_eps": 1e-05,
    "pad_token_id": 50283,
    "position_embedding_type": "absolute",
    "reference_compile": True,
    "repad_logits_with_grad": False,
    "sep_token_id": 50282,
    "sparse_pred_ignore_index": -100,
    "sparse_prediction": False,
    "torch_dtype": "float32",
    "transformers_version": "4.47.0.dev0",
    "vocab_size": 50368,
}
QWEN = {
    **SIZES,
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "head_dim": 4,
    "hidden_act": "silu",
    "vocab_size": 151669,
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.3",
    "use_cache": True,
    "use_sliding_window": False,
}
GEMMA = {
    **SIZES,
    "_sliding_window_pattern": 6,
    "architectures": ["Gemma3TextModel"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "dtype": "float32",
    "eos_token_id": 1,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "initializer_range": 0.02,
    "hidden_activation": "gelu_pytorch_tanh",
    "layer_types": ["sliding_attention", "sliding_attention"],
    "max_position_embeddings": 2048,
    "model_type": "gemma3_text",
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000.0,
    "vocab_size": 262144,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 512,
    "transformers_version": "4.57.0",
    "use_bidirectional_attention": True,
    "use_cache": True,
}
QWEN_MODULE = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
SIX = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "unpad_inputs": None,
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "processing_kwargs": {"text": {"max_length": 256}},
}
# fmt: off
MPNET = {
    **SIZES, **DROPOUT, "model_type": "mpnet", "architectures": ["MPNetForMaskedLM"], "bos_token_id": 0,
    "eos_token_id": 2, "hidden_act": "gelu", "initializer_range": 0.02, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514, "pad_token_id": 1, "relative_attention_num_buckets": 32,
    "transformers_version": "4.8.2", "vocab_size": 30527,
}
DISTIL = {
    "_name_or_path": "old_models/x/0_Transformer", "activation": "gelu", "architectures": ["DistilBertModel"],
    "attention_dropout": 0.1, "dim": 8, "dropout": 0.1, "hidden_dim": 16, "initializer_range": 0.02,
    "max_position_embeddings": 512, "model_type": "distilbert", "n_heads": 2, "n_layers": 2,
    "pad_token_id": 0, "qa_dropout": 0.1, "seq_classif_dropout": 0.2, "sinusoidal_pos_embds": False,
    "transformers_version": "4.7.0", "vocab_size": 30522,
}
NOMIC = {
    "activation_function": "swiglu", "architectures": ["NomicBertModel"], "attn_pdrop": 0.0,
    "auto_map": {
        "AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig",
        "AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel",
        "AutoModelForMaskedLM": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertForPreTraining",
    },
    "bos_token_id": None, "causal": False, "dense_seq_output": True, "embd_pdrop": 0.0, "eos_token_id": None,
    "fused_bias_fc": True, "fused_dropout_add_ln": True, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-12, "max_trained_positions": 2048, "mlp_fc1_bias": False, "mlp_fc2_bias": False,
    "model_type": "nomic_bert", "n_embd": 8, "n_head": 2, "n_inner": 16, "n_layer": 2, "n_positions": 8192,
    "pad_vocab_size_multiple": 64, "parallel_block": False, "parallel_block_tied_norm": False,
    "prenorm": False, "qkv_proj_bias": False, "reorder_and_upcast_attn": False, "resid_pdrop": 0.0,
    "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None, "rotary_scaling_factor": None, "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True, "summary_activation": None, "summary_first_dropout": 0.0,
    "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True,
    "torch_dtype": "float32", "type_vocab_size": 2, "use_cache": True, "use_flash_attn": True,
    "use_rms_norm": False, "use_xentropy": True, "vocab_size": 30528,
}
GTE = {
    **SIZES, "model_type": "new", "architectures": ["NewModel"], "attention_probs_dropout_prob": 0.0,
    "auto_map": {
        "AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig",
        "AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel",
        "AutoModelForSequenceClassification": "Alibaba-NLP/new-impl--modeling.NewForSequenceClassification",
    },
    "classifier_dropout": None, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "initializer_range": 0.02,
    "layer_norm_eps": 1e-12, "layer_norm_type": "layer_norm", "logn_attention_clip1": False,
    "logn_attention_scale": False, "max_position_embeddings": 8192, "pack_qkv": True, "pad_token_id": 0,
    "position_embedding_type": "rope", "rope_scaling": None, "rope_theta": 160000, "torch_dtype": "float32",
    "type_vocab_size": 0, "unpad_inputs": False, "use_memory_efficient_attention": False, "vocab_size": 30528,
}
MISTRAL = {
    **SIZES, "_name_or_path": "mistralai/Mistral-7B-v0.1", "architectures": ["MistralModel"],
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "initializer_range": 0.02,
    "max_position_embeddings": 32768, "model_type": "mistral", "num_key_value_heads": 2,
    "pad_token_id": 2, "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False, "use_cache": False,
    "vocab_size": 32000,
}
T5 = {
    "architectures": ["T5EncoderModel"], "d_ff": 16, "d_kv": 4, "d_model": 8, "decoder_start_token_id": 0,
    "dense_act_fn": "relu", "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "relu",
    "initializer_factor": 1.0, "is_encoder_decoder": True, "is_gated_act": False, "layer_norm_epsilon": 1e-06,
    "model_type": "t5", "n_positions": 512, "num_decoder_layers": 2, "num_heads": 2, "num_layers": 2,
    "output_past": True, "pad_token_id": 0, "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32, "task_specific_params": {"summarization": {"num_beams": 4}},
    "use_cache": True, "vocab_size": 32128,
}
DEBERTA = {
    **SIZES, **DROPOUT, "model_type": "deberta-v2", "architectures": ["DebertaV2Model"], "hidden_act": "gelu",
    "initializer_range": 0.02, "layer_norm_eps": 1e-07, "legacy": True, "max_position_embeddings": 512,
    "max_relative_positions": -1, "norm_rel_ebd": "layer_norm", "pad_token_id": 0, "pooler_dropout": 0,
    "pooler_hidden_act": "gelu", "pooler_hidden_size": 8, "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False, "position_buckets": 256, "relative_attention": True,
    "share_att_key": True, "type_vocab_size": 0, "vocab_size": 128100,
}
ALBERT = {
    **SIZES, "model_type": "albert", "architectures": ["AlbertModel"], "attention_probs_dropout_prob": 0,
    "bos_token_id": 2, "classifier_dropout_prob": 0.1, "down_scale_factor": 1, "embedding_size": 4,
    "eos_token_id": 3, "gap_size": 0, "hidden_act": "gelu_new", "hidden_dropout_prob": 0,
    "inner_group_num": 1, "initializer_range": 0.02, "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512, "net_structure_type": 0, "num_hidden_groups": 1, "num_memory_blocks": 0,
    "pad_token_id": 0, "position_embedding_type": "absolute", "type_vocab_size": 2, "vocab_size": 30000,
}
# fmt: on
JINA = "jinaai/{}-implementation--{}"
JINA2 = {**BERT, "position_embedding_type": "alibi", "feed_forward_type": "geglu", "emb_pooler": "mean"}
JINA2 |= {"architectures": ["JinaBertForMaskedLM"], "attn_implementation": None, "model_max_length": 8192}
JINA2["auto_map"] = {
    "AutoConfig": JINA.format("jina-bert", "configuration_bert.JinaBertConfig"),
    "AutoModel": JINA.format("jina-bert", "modeling_bert.JinaBertModel"),
    "AutoModelForMaskedLM": JINA.format("jina-bert", "modeling_bert.JinaBertForMaskedLM"),
}
JINA3 = {**E5_LARGE, "position_embedding_type": "rotary", "rotary_emb_base": 20000.0, "lora_rank": 4}
JINA3 |= {"lora_adaptations": ["retrieval.query", "text-matching"], "lora_alpha": 1, "lora_dropout_p": 0.0}
JINA3 |= {"lora_main_params_trainable": False, "load_trained_adapters": True, "use_flash_attn": True}
JINA3 |= {
    "matryoshka_dimensions": [32, 1024],
    "task_instructions": {"text-matching": ""},
    "truncate_dim": None,
}
JINA3 |= {"emb_pooler": "mean", "use_reentrant": False, "layer_norm_eps": 1e-05}
JINA3["auto_map"] = {
    "AutoConfig": JINA.format("xlm-roberta-flash", "configuration_xlm_roberta.XLMRobertaFlashConfig"),
    "AutoModel": JINA.format("xlm-roberta-flash", "modeling_lora.XLMRobertaLoRA"),
}
JINA3_MODULES = [
    {"idx": 0, "path": "", "type": "custom_st.Transformer", "kwargs": ["task"]},
    {"idx": 1, "path": "1_Pooling", "type": ST + "Pooling"},
]
NOMIC_MOE = {**NOMIC, "activation_function": "gelu", "qkv_proj_bias": True, "mlp_fc1_bias": True}
NOMIC_MOE |= {"mlp_fc2_bias": True, "num_experts": 8, "moe_top_k": 2, "moe_every_n_layers": 2, "ffn_div": 1}
NOMIC_MOE |= {"expert_choice_router": False, "moe_impl": "megablocks", "moe_resid_pdrop": 0.0}
NOMIC_MOE |= {"moe_normalize_expert_weights": False, "num_shared_experts": 0, "router_aux_loss_coef": 0.1}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA = {**SIZES, "head_dim": 4, "hidden_act": "silu", "num_key_value_heads": 1, "rms_norm_eps": 1e-05}
LLAMA |= {"max_position_embeddings": 131072, "rope_theta": 500000.0, "vocab_size": 128256, "use_cache": True}
NEMOTRON = {**LLAMA, "model_type": "llama_bidirec", "architectures": ["LlamaBidirectionalModel"]}
NEMOTRON |= {"pooling": "avg", "temperature": 0.02, "attention_bias": False, "mlp_bias": False}
NEMOTRON |= {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8192}}
NEMOTRON["auto_map"] = {"AutoModel": "llama_bidirectional_model.LlamaBidirectionalModel"}
GEMMA2 = {**LLAMA, "model_type": "gemma2", "architectures": ["Gemma2Model"], "attn_logit_softcapping": 50.0}
GEMMA2 |= {"final_logit_softcapping": 30.0, "query_pre_attn_scalar": 224, "sliding_window": 4096}
GEMMA2 |= {
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "cache_implementation": "hybrid",
}
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "MiniLM": (MINILM, {OWN: {"__version__": {"sentence_transformers": "2.0.0", "pytorch": "1.8.1"}}}),
    "bge": (BGE, {"sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": True}}),
    "gte": ({**BERT, "torch_dtype": "float16", "_name_or_path": "base"}, {}),
    "e5": (E5, {POOLING: {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True}}),
    "multilingual-e5": (E5_LARGE, {}),
    "bge-m3": ({**E5_LARGE, "max_position_embeddings": 8194}, {}),
    "ModernBERT": (MODERN, {}),
    "Qwen3-Embedding": (QWEN, {OWN: {"prompts": {"query": "q"}, "similarity_fn_name": "cosine"}}),
    "EmbeddingGemma": (GEMMA, {OWN: {"model_type": "SentenceTransformer", "default_prompt_name": None}}),
    "jina-embeddings-v2-base-en": (JINA2, {}),
    "jina-embeddings-v3": (JINA3, {"modules.json": JINA3_MODULES}),
    "nomic-embed-text-v2-moe": (NOMIC_MOE, {}),
    "llama-embed-nemotron-8b": (NEMOTRON, {}),
    "bge-multilingual-gemma2": (GEMMA2, {}),
    "saved by version 6": (
        MINILM,
        {"sentence_bert_config.json": SIX, "2_Normalize/config.json": QWEN_MODULE},
    ),
}
FLAGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def card(config: Any, documents: Any, configuration: ModelConfiguration | None = None) -> ModelCard:
    listed = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [{"idx": i, "type": ST + name, "path": path} for i, (name, path) in enumerate(listed)]
    pooling = {"word_embedding_dimension": 8, **{f"pooling_mode_{f}": f == "mean_tokens" for f in FLAGS}}
    return ModelCard(
        ref=ModelRef(path=Path("/model")),
        configuration=configuration or ModelConfiguration(id="/model"),
        source=Source.FOLDER,
        commit="0" * 40,
        path=Path("/model"),
        documents={"config.json": config, "modules.json": modules, POOLING: pooling, **documents},
    )


def problem(
    config: Any, documents: Any, configuration: ModelConfiguration | None = None
) -> MLXEngineError | None:
    found = claim(card(config, documents, configuration))
    assert found is not None
    return found.problem


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_published_repositories_carry_is_not_refused(name: str) -> None:
    assert problem(*PUBLISHED[name]) is None


@pytest.mark.parametrize(
    ("config", "setting"),
    [
        ({**QWEN, "attention_sink": 2}, "attention_sink=2"),
        ({**QWEN, "layer_types": ["full_attention", "linear_attention"]}, "layer_types="),
        ({**QWEN, "layer_types": ["full_attention"]}, "layer_types="),
        ({**QWEN, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_parameters=.*yarn"),
        ({**QWEN, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "rope_param"),
        ({**QWEN, "hidden_act": "mish"}, "hidden_act='mish'"),
        ({**NOMIC, "rotary_emb_interleaved": True}, "rotary_emb_interleaved=True"),
        ({**NOMIC, "rotary_scaling_factor": 2.0}, "rotary_scaling_factor=2.0"),
        ({**NOMIC, "prenorm": True}, "prenorm=True"),
        ({**GTE, "rope_scaling": {"factor": 2.0, "type": "ntk", "mixed_b": 0.5}}, "rope_parameters=.*ntk"),
        (
            {**GTE, "model_type": "gte", "rope_scaling": {"factor": 2.0, "type": "ntk"}},
            "rope_parameters=.*ntk",
        ),
        ({**GTE, "layer_norm_type": "rms_norm"}, "layer_norm_type='rms_norm'"),
        ({**JINA2, "feed_forward_type": "original"}, "feed_forward_type='original'"),
        ({**NOMIC_MOE, "moe_every_n_layers": 3}, "moe_every_n_layers=3"),
        ({**NOMIC_MOE, "moe_normalize_expert_weights": True}, "moe_normalize_expert_weights=True"),
        ({**NEMOTRON, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_parameters=.*yarn"),
        ({**BERT, "rope_scaling": LLAMA3}, "rope_scaling="),
        ({**DEBERTA, "conv_kernel_size": 3}, "conv_kernel_size=3"),
        ({**BERT, "is_decoder": True}, "is_decoder=True"),
        ({**BERT, "position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({**BERT, "pruned_heads": {"0": [1]}}, "pruned_heads="),
        ({**BERT, "logit_temperature": 0.5}, "logit_temperature=0.5"),
        ({**MODERN, "layer_types": ["full_attention", "full_attention"]}, "layer_types="),
        ({**GEMMA, "layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
        ({**GEMMA, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ({**GEMMA, "hidden_activation": "gelu"}, "hidden_activation='gelu'"),
    ],
)
def test_a_setting_of_an_encoder_that_is_not_honoured_is_refused_by_name(config: Any, setting: str) -> None:
    found = problem(config, {})
    assert isinstance(found, UnsupportedArchitectureError)
    with pytest.raises(UnsupportedArchitectureError, match=setting):
        raise found


@pytest.mark.parametrize(
    ("path", "config", "setting"),
    [
        (POOLING, {"pooling_mode": "mean", "attend_to": "all"}, "attend_to='all'"),
        (
            POOLING,
            {"pooling_mode_mean_tokens": True, "pooling_mode_attention": True},
            "pooling_mode_attention",
        ),
        (POOLING, {"pooling_mode": "mean", "temperature": 2}, "temperature=2"),
        ("2_Normalize/config.json", {"module_output_name": "other"}, "module_output_name='other'"),
        (OWN, {"score_scaling": 3}, "score_scaling=3"),
        (OWN, {"model_type": "SparseEncoder"}, "model_type='SparseEncoder'"),
        ("sentence_bert_config.json", {"model_args": {"is_causal": False}}, "model_args="),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task='fill-mask'"),
        ("sentence_bert_config.json", {"query_length": 32}, "query_length=32"),
        (
            "sentence_bert_config.json",
            {"processing_kwargs": {"text": {"add_special_tokens": False}}},
            "add_special_tokens=False",
        ),
        (
            "sentence_bert_config.json",
            {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}},
            "method_output_name='pooler_output'",
        ),
    ],
)
def test_a_setting_of_a_module_that_is_not_honoured_is_refused_by_name(
    path: str, config: Any, setting: str
) -> None:
    found = problem(BERT, {path: config})
    assert isinstance(found, UnsupportedArchitectureError)
    with pytest.raises(UnsupportedArchitectureError, match=setting):
        raise found


def test_a_dense_module_that_writes_elsewhere_is_refused() -> None:
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense")]
    listed = [{"idx": i, "type": ST + name, "path": path} for i, (name, path) in enumerate(modules)]
    dense = {"in_features": 8, "out_features": 4, "module_output_name": "small_embedding"}
    found = problem(BERT, {"modules.json": listed, "2_Dense/config.json": dense})
    assert isinstance(found, UnsupportedArchitectureError)
    assert "module_output_name='small_embedding'" in str(found)


@pytest.mark.parametrize("mapped", ["AutoModel", "AutoConfig"])
def test_a_repositorys_own_code_for_a_known_architecture_is_refused(mapped: str) -> None:
    found = problem({**QWEN, "auto_map": {mapped: "modeling_qwen.Mine"}}, {})
    assert isinstance(found, RemoteCodeRefusedError)
    assert "modeling_qwen.Mine" in str(found)
    # Code for another task has no part in the vectors.
    assert problem({**QWEN, "auto_map": {"AutoModelForCausalLM": "modeling_qwen.Mine"}}, {}) is None


def test_a_module_of_the_repositorys_own_is_refused() -> None:
    listed = [
        {"idx": 0, "type": "custom_st.Transformer", "path": ""},
        {"idx": 1, "type": ST + "Pooling", "path": "1_Pooling"},
    ]
    found = problem(BERT, {"modules.json": listed})
    assert isinstance(found, RemoteCodeRefusedError)
    assert "custom_st.Transformer" in str(found)


def test_the_caller_may_say_that_a_setting_changes_nothing() -> None:
    config = {**BERT, "note_to_myself": "hello", "auto_map": {"AutoModel": "modeling.Same"}}
    settings = ("note_to_myself", "auto_map")
    assert problem(config, {}, EmbedConfiguration(id="/model", harmless_settings=settings)) is None
    assert problem(config, {}, EmbedConfiguration(id="/model", harmless_settings=settings[:1])) is not None
