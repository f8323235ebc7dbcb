"""Which encoder architectures can be served, and what serves each. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping

_BERT, _DECODER, _T5 = (f"mlxengine_embed.{name}" for name in ("_bert", "_decoder", "_t5"))
LIBRARIES: Mapping[str, str] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "distilbert": _BERT,
    "mpnet": _BERT,
    "electra": _BERT,
    "albert": _BERT,
    "ernie": _BERT,
    "deberta": _BERT,
    "deberta-v2": _BERT,
    "nomic_bert": _BERT,
    "nomic_bert_moe": _BERT,
    "gte": _BERT,
    "new": _BERT,
    "data2vec-text": _BERT,
    "roformer": _BERT,
    "jina_bert": _BERT,
    "jina_bert_normed": _BERT,
    "jina_embeddings_v3": _BERT,
    "xlm_roberta_flash": _BERT,
    "modernbert": "mlx_embeddings.models.modernbert",
    "eurobert": _DECODER,
    "t5": _T5,
    "mt5": _T5,
    "umt5": _T5,
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "mistral": _DECODER,
    "llama": _DECODER,
    "llama_bidirec": _DECODER,
    "gemma": _DECODER,
    "gemma2": _DECODER,
    "gemma3_text": "mlx_embeddings.models.gemma3_text",
}
"""The module that serves an architecture; the parity tests hold every row to the reference."""

OTHERWISE = ("qwen2", "qwen3", "mistral", "llama", "gemma", "gemma2", "gemma3_text", "t5", "mt5", "umt5")
"""Those of `LIBRARIES` that also make language models: without further signs, a model of these is one."""
ENCODERS = tuple(name for name in LIBRARIES if name not in OTHERWISE)

_POOLER, _CLASSIFIER, _LAST = "pooler", "classifier", "last token"
HEADS: Mapping[str, str] = {
    "bert": _POOLER,
    "ernie": _POOLER,
    "nomic_bert": _POOLER,
    "gte": _POOLER,
    "new": _POOLER,
    "deberta": _POOLER,
    "deberta-v2": _POOLER,
    "albert": "bare pooler",
    "roberta": _CLASSIFIER,
    "xlm-roberta": _CLASSIFIER,
    "xlm_roberta_flash": _CLASSIFIER,
    "camembert": _CLASSIFIER,
    "electra": _CLASSIFIER,
    "mpnet": _CLASSIFIER,
    "distilbert": "pre_classifier",
    "modernbert": "prediction head",
    "eurobert": "dense",
    "qwen2": _LAST,
    "qwen3": _LAST,
    "mistral": _LAST,
    "llama": _LAST,
}
"""What a cross-encoder of an architecture has after its encoder, by what `_rerank.Head` calls it."""

MASKED_HEADS: Mapping[str, str] = {
    "bert": "cls",
    "distilbert": "vocab",
    "roberta": "lm_head",
    "xlm-roberta": "lm_head",
    "camembert": "lm_head",
    "mpnet": "lm_head",
    "modernbert": "head",
}
"""What a masked language model of an architecture calls its head, by what `_splade` calls it."""

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish")
"""The activations that our own encoders know, as configurations name them."""

__all__ = ["ACTIVATIONS", "ENCODERS", "HEADS", "LIBRARIES", "MASKED_HEADS", "OTHERWISE"]
