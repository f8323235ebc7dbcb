"""Sentence-transformers repositories with random weights, in the shapes of known encoders.

Speed and memory depend on the shape alone, and no hub is needed. Every one is mean-pooled and normalised,
with a tokenizer that knows the words of `texts_of`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from benchmarks.embeddings.cpu import WORDS

BERTS = {"minilm": (6, 384, 12), "bert-base": (12, 768, 12), "bert-large": (24, 1024, 16)}
SHAPES = (*BERTS, "modernbert-base")


class _Weights:
    def __init__(self, dtype: str) -> None:
        self.tensors: dict[str, np.ndarray] = {}
        self._random, self._dtype = np.random.default_rng(0), dtype

    def matrix(self, name: str, *shape: int) -> None:
        values = self._random.standard_normal(shape, dtype=np.float32) * np.float32(0.03)
        self.tensors[name] = values.astype(self._dtype)

    def linear(self, name: str, outputs: int, inputs: int) -> None:
        self.matrix(f"{name}.weight", outputs, inputs)
        self.matrix(f"{name}.bias", outputs)

    def norm(self, name: str, size: int, bias: bool = True) -> None:
        self.tensors[f"{name}.weight"] = np.ones(size, dtype=self._dtype)
        if bias:
            self.matrix(f"{name}.bias", size)


def write(folder: Path, shape: str, dtype: str) -> None:
    """Write a repository.

    Args:
        folder: an empty one.
        shape: one of `SHAPES`.
        dtype: of the weights, ``"float32"`` or ``"float16"``.
    """
    weights = _Weights(dtype)
    config = _bert(weights, *BERTS[shape]) if shape in BERTS else _modernbert(weights)
    save_file(weights.tensors, folder / "model.safetensors", {"format": "pt"})
    _documents(folder, config | {"dtype": dtype}, int(config["hidden_size"]))
    _tokenizer(folder)


def _bert(weights: _Weights, layers: int, size: int, heads: int, words: int = 30_522) -> dict[str, Any]:
    for name, rows in (("word", words), ("position", 512), ("token_type", 2)):
        weights.matrix(f"embeddings.{name}_embeddings.weight", rows, size)
    weights.norm("embeddings.LayerNorm", size)
    for layer in range(layers):
        base = f"encoder.layer.{layer}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value"):
            weights.linear(f"{base}.{name}", size, size)
        weights.linear(f"{base}.attention.output.dense", size, size)
        weights.norm(f"{base}.attention.output.LayerNorm", size)
        weights.linear(f"{base}.intermediate.dense", 4 * size, size)
        weights.linear(f"{base}.output.dense", size, 4 * size)
        weights.norm(f"{base}.output.LayerNorm", size)
    return {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": words,
        "hidden_size": size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * size,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }


def _modernbert(weights: _Weights, layers: int = 22, size: int = 768, inner: int = 1152) -> dict[str, Any]:
    words = 50_368
    weights.matrix("embeddings.tok_embeddings.weight", words, size)
    weights.norm("embeddings.norm", size, bias=False)
    for layer in range(layers):
        base = f"layers.{layer}"
        if layer:
            weights.norm(f"{base}.attn_norm", size, bias=False)
        weights.matrix(f"{base}.attn.Wqkv.weight", 3 * size, size)
        weights.matrix(f"{base}.attn.Wo.weight", size, size)
        weights.norm(f"{base}.mlp_norm", size, bias=False)
        weights.matrix(f"{base}.mlp.Wi.weight", 2 * inner, size)
        weights.matrix(f"{base}.mlp.Wo.weight", size, inner)
    weights.norm("final_norm", size, bias=False)
    return {
        "model_type": "modernbert",
        "architectures": ["ModernBertModel"],
        "vocab_size": words,
        "hidden_size": size,
        "num_hidden_layers": layers,
        "num_attention_heads": 12,
        "intermediate_size": inner,
        "max_position_embeddings": 8192,
        "hidden_activation": "gelu",
        "norm_eps": 1e-5,
        "norm_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "global_attn_every_n_layers": 3,
        "local_attention": 128,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
        "pad_token_id": 0,
        "cls_token_id": 1,
        "bos_token_id": 1,
        "sep_token_id": 2,
        "eos_token_id": 2,
    }


def _documents(folder: Path, config: dict[str, Any], size: int) -> None:
    kinds = ((0, "Transformer", ""), (1, "Pooling", "1_Pooling"), (2, "Normalize", "2_Normalize"))
    prefix = "sentence_transformers.models."
    modules = [{"idx": i, "name": str(i), "path": path, "type": prefix + name} for i, name, path in kinds]
    documents: dict[str, Any] = {
        "config.json": config,
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": size, "pooling_mode_mean_tokens": True},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 512,
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "unk_token": "[UNK]",
        },
    }
    for name, value in documents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value))


def _tokenizer(folder: Path) -> None:
    vocabulary = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *dict.fromkeys(WORDS)]
    numbered = {word: i for i, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(numbered, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=specials
    )
    tokenizer.add_special_tokens(vocabulary[:4])
    tokenizer.save(str(folder / "tokenizer.json"))
