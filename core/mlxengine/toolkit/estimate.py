"""How much memory a model that generates text needs, told from its card; needs no mlx."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..contract.configuration import ModelCard
from ..contract.hookspecs import MemoryEstimate, Workload
from ..text.workload import USUAL_CONTEXT as USUAL_CONTEXT
from ..text.workload import TextWorkload
from .kv import Keeps, group_size, kv_numbers, number

_PREFILL_CHUNK = 2048
_HALF = ("F16", "BF16", "float16", "bfloat16")
_LARGEST = 1 << 31
_CACHE_STEP = 256  # mlx-lm's caches grow by so many tokens


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that describes the language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


# Bits of a code in GGUF's blocks that stay packed; with each 32 go a scale and a bias.
_CODE_BITS = {"Q4_0": 4, "Q4_1": 4, "Q4_K": 4, "Q5_0": 5, "Q5_1": 5, "Q5_K": 5, "Q8_0": 8}
_UNPACKED = ("Q2_K", "Q3_K", "Q6_K")


def context_length(config: Mapping[str, Any]) -> int | None:
    """Longest context in tokens that a configuration names, or ``None``."""
    for part in (text_config(config), config):
        for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"):
            found = part.get(key)
            if isinstance(found, int) and not isinstance(found, bool) and 0 < found <= _LARGEST:
                return found
    return None


def loaded_weights(card: ModelCard, workload: Workload, *, dense_on: Sequence[str] = ("cpu",)) -> int:
    """Bytes that a checkpoint's weights take once they are loaded.

    On a CPU half-precision tensors are kept in fp32. Packed ones are unpacked, to fp32 or on a GPU to 16
    bits, on the back ends in ``dense_on`` where that takes at most half of the free memory
    (`mlxengine.toolkit.dtype`).
    """
    cpu, unpacks = workload.backend == "cpu", workload.backend in dense_on
    if card.gguf and card.tensors:
        return _from_blocks(card, workload, unpacks)
    if not (cpu or unpacks) or not card.tensors:
        return card.weight_bytes
    wider = 2 if cpu else 1
    packed = {item.name.removesuffix(".scales") for item in card.tensors if item.name.endswith(".scales")}
    settings = card.quantization or {}
    dense = other = kept = 0
    for item in card.tensors:
        layer, _, part = item.name.rpartition(".")
        if layer in packed and part in ("weight", "scales", "biases"):
            kept += item.nbytes * (wider if item.dtype in _HALF else 1)
            if part == "weight":
                dense += item.nbytes * 16 * wider // _bits(settings, layer)
        else:
            other += item.nbytes * (wider if item.dtype in _HALF else 1)
    fits = workload.free_memory is None or dense <= workload.free_memory // 2
    return other + (dense if fits and unpacks else kept)


def _from_blocks(card: ModelCard, workload: Workload, unpacks: bool) -> int:
    """Of a GGUF file: packed as `mlxengine.toolkit.gguf` does it, or dense."""
    cpu = workload.backend == "cpu"
    dense = packed = 0
    for item in card.tensors:
        numbers = math.prod(item.shape)
        dense += (4 if cpu else 2) * numbers
        if item.dtype in _CODE_BITS:
            wide = cpu or item.dtype.endswith("K")  # a scale and a bias of 32 bits, or of 16
            packed += numbers * (_CODE_BITS[item.dtype] + 1 + wide) // 8
        else:
            packed += 4 * numbers if cpu or item.dtype in _UNPACKED else item.nbytes
    fits = workload.free_memory is None or dense <= workload.free_memory // 2
    return dense if unpacks and fits else packed


def _bits(settings: Mapping[str, Any], layer: str) -> int:
    own = settings.get(layer)
    found = own.get("bits") if isinstance(own, Mapping) else settings.get("bits")
    return found if isinstance(found, int) and found > 0 else 4


def estimator(card: ModelCard, keeps: Keeps | None = None) -> Callable[[TextWorkload], MemoryEstimate]:
    """A pure function from a workload to the bytes that it needs.

    Args:
        card: the model's.
        keeps: what is known of the network that will be built.
    """
    known = keeps or Keeps()
    config = text_config(card.config) if card.config else from_gguf(card.gguf)
    group = group_size(config)  # each has a scale and a bias
    usual = min(USUAL_CONTEXT, context_length(config) or USUAL_CONTEXT)

    def estimate(workload: TextWorkload) -> MemoryEstimate:
        length = workload.context_length or usual
        full = 32.0 if workload.backend == "cpu" else 16.0
        bits = full if workload.kv_bits is None else workload.kv_bits + 2 * full / group
        held = kv_numbers(config, -(-length // _CACHE_STEP) * _CACHE_STEP, known)
        cache = (held.whole * bits + (held.total - held.whole) * full) / 8 * workload.batch
        vocabulary, hidden = number(config, "vocab_size"), number(config, "hidden_size", "n_embd")
        inner = number(config, "intermediate_size", "n_inner") or 4 * hidden
        logits = 3 * 4 * vocabulary * workload.batch
        # where products with packed numbers are missing (CUDA) a layer's are unpacked for its attention
        layers = number(config, "num_hidden_layers", "n_layer", "n_layers") or 1
        packs = workload.kv_bits is not None and workload.backend == "cuda"
        unpacked = round(held.whole * full / 8 * workload.batch / layers) if packs else 0
        prefill = 4 * min(length, _PREFILL_CHUNK) * (4 * hidden + 2 * inner)
        weights = loaded_weights(card, workload, dense_on=("cpu", "cuda"))
        return MemoryEstimate(
            weights=weights, cache=round(cache), workspace=logits + prefill + unpacked, cache_known=held.told
        )

    return estimate


def architectures(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of classes under ``architectures``, whatever stands there."""
    found = config.get("architectures") or ()
    if isinstance(found, str):
        return (found,)
    return tuple(str(item) for item in found) if isinstance(found, list | tuple) else ()


def from_gguf(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a GGUF file's metadata say of sizes, under the names of a ``config.json``."""
    name = metadata.get("general.architecture", "")
    keys = {
        "block_count": "num_hidden_layers",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "attention.sliding_window": "sliding_window",
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "context_length": "max_position_embeddings",
        "vocab_size": "vocab_size",
    }
    return {ours: metadata[f"{name}.{key}"] for key, ours in keys.items() if f"{name}.{key}" in metadata}


__all__ = [
    "USUAL_CONTEXT",
    "architectures",
    "context_length",
    "estimator",
    "from_gguf",
    "loaded_weights",
    "number",
    "text_config",
]
