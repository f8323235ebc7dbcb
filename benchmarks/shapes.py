"""Random-weight language models of real shapes: what speed and memory depend on, without the download."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from benchmarks import random_weights
from benchmarks.random_weights import Numbers

SPREAD = 0.02  # of weights
COMMON = {
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def llama(
    hidden: int, layers: int, heads: int, kv: int, inner: int, vocabulary: int = 32000
) -> dict[str, Any]:
    """A Llama configuration."""
    return {
        **COMMON,
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "head_dim": hidden // heads,
    }


def other(
    kind: str, hidden: int, layers: int, heads: int, kv: int, inner: int, **more: Any
) -> dict[str, Any]:
    """The same for another architecture."""
    return {**llama(hidden, layers, heads, kv, inner), "model_type": kind, **more}


SHAPES: dict[str, dict[str, Any]] = {
    "llama-2M": llama(128, 4, 4, 2, 512, 8000),
    "llama-20M": llama(256, 6, 4, 2, 1024),
    "llama-60M": llama(512, 10, 8, 8, 2048),
    "llama-160M": llama(768, 16, 12, 4, 3072),
    "llama-400M": llama(1024, 24, 16, 8, 4096),
    "qwen2-60M": other("qwen2", 512, 10, 8, 2, 2048),
    "qwen2-250M": other("qwen2", 896, 20, 14, 2, 4864),
    "qwen3-60M": other("qwen3", 512, 10, 8, 4, 2048, head_dim=64),
    "qwen3-300M": other("qwen3", 1024, 18, 16, 8, 3072, head_dim=128),
    "gemma3-100M": other(
        "gemma3_text",
        640,
        12,
        4,
        1,
        2048,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=512,
        sliding_window_pattern=6,
    ),
    "phi3-100M": other("phi3", 640, 12, 10, 10, 2560, tie_word_embeddings=False),
}
BIG: dict[str, dict[str, Any]] = {
    "llama-1B": llama(2048, 16, 32, 8, 8192, 128256),
    "llama-8B": {**llama(4096, 32, 32, 8, 14336, 128256), "tie_word_embeddings": False},
}


def write_checkpoint(
    folder: Path, config: dict[str, Any], dtype: str = "bfloat16", bits: int | None = None
) -> Path:
    """Write a checkpoint with random weights and a tokenizer that has a text for each id.

    ``bits`` packs what mlx-lm would, in groups of 64.
    """
    from mlx import nn
    from mlx.utils import tree_flatten

    folder.mkdir(parents=True)
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    network = module.Model(module.ModelArgs.from_dict(config))  # lazy: only its shapes are looked at
    if bits:
        nn.quantize(network, 64, bits)
        config = {**config, "quantization": {"group_size": 64, "bits": bits}}
        step = (
            SPREAD * 12**0.5 / 2**bits
        )  # numbers of all bits alike have a deviation of 2 ** bits / 12 ** 0.5
    tensors = {}
    for name, value in tree_flatten(network.parameters()):
        if str(value.dtype).endswith("uint32"):
            tensors[name] = Numbers(value.shape, "uint32")
        elif name.endswith(".scales"):
            tensors[name] = Numbers(value.shape, dtype, mean=step)
        elif name.endswith(".biases"):
            tensors[name] = Numbers(value.shape, dtype, mean=-step * (2**bits - 1) / 2)
        elif "norm" in name:
            tensors[name] = Numbers(value.shape, dtype, mean=1.0)
        else:
            tensors[name] = Numbers(value.shape, dtype, SPREAD)
    random_weights.write(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": dtype}))
    _write_tokenizer(folder, config["vocab_size"])
    return folder


def _write_tokenizer(folder: Path, size: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "</s>", *alphabet]
    # Every id has a text, so that random weights produce something to stream.
    tokens += [f"w{index}." for index in range(len(tokens), size)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
