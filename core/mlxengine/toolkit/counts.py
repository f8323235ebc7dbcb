"""Are a configuration's counts and sizes believable? Asked before anything is built from them; needs no mlx.

A configuration is a text of whoever published the model. Libraries build one module a layer and one table a
size, whatever it says. What it says is compared with sane limits, and with the headers of the weights, which
were checked against the files' own sizes: a dimension that is really there is covered by numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..contract.configuration import TensorInfo
from ..errors import IncompatibleWeightsError

MOST_LAYERS = 4096
_LARGEST = 1 << 31
# Modules that are built one by one: a number of any of these means as many tensors, or a shared few.
_LAYERS = (
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "n_layers",
    "encoder_layers",
    "decoder_layers",
    "num_encoder_layers",
    "num_decoder_layers",
    "depth",
    "depths",
    "layers_per_block",
    "num_single_layers",
    "num_refiner_layers",
    "num_nextn_predict_layers",
    "transformer_layers_per_block",
)
_PARTS = ("num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts")
# Sides of tensors.
_SIDES = (
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "attention_head_dim",
    "num_attention_groups",
    "head_dim",
    "n_embd",
    "n_head",
    "n_heads",
    "n_inner",
    "d_model",
    "d_ff",
    "dim",
    "ffn_dim",
    "embed_dim",
    "kv_lora_rank",
    "q_lora_rank",
    "cross_attention_dim",
    "block_out_channels",
    "in_channels",
    "out_channels",
    "latent_channels",
    "joint_attention_dim",
    "pooled_projection_dim",
    "projection_dim",
)
# Other numbers that something is as large as.
_NUMBERS = (
    "max_position_embeddings",
    "num_channels",
    "patch_size",
    "image_size",
    "sample_size",
    "type_vocab_size",
    "sliding_window",
    "num_experts_per_tok",
    "sampling_rate",
    "num_mel_bins",
    "num_class_embeds",
    "norm_num_groups",
)
_FRACTIONS = (
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "norm_eps",
    "rope_theta",
    "partial_rotary_factor",
    "initializer_range",
    "attention_dropout",
    "scaling_factor",
    "query_pre_attn_scalar",
    "final_logit_softcapping",
    "attn_logit_softcapping",
)
_LISTS = ("layer_types", "layers_block_type", "no_rope_layers", "mlp_only_layers")
_SECTIONS = (
    "text_config",
    "vision_config",
    "audio_config",
    "rope_scaling",
    "rope_parameters",
    "quantization",
    "quantization_config",
)
_TEXTS = ("model_type", "hidden_act", "hidden_activation", "dtype", "torch_dtype")
_MOST_DEPTH = 32


def config_problem(
    name: str, config: Mapping[str, Any], tensors: Iterable[TensorInfo]
) -> IncompatibleWeightsError | None:
    """Why nothing should be built from a configuration, or ``None``.

    Args:
        name: the model's, for the error.
        config: a ``config.json``, with whatever configurations it holds inside.
        tensors: those of the weights that it describes; none, where nobody knows them.
    """
    found = tuple(tensors)
    # A packed tensor holds up to 32 numbers in one; a tensor is never longer than it is large.
    largest = 32 * max((math.prod(item.shape) for item in found), default=_LARGEST)
    count = len(found) or MOST_LAYERS
    for path, value in _fields(config):
        wrong = _wrong(path.rpartition(".")[2], value, count, largest)
        if wrong is not None:
            return IncompatibleWeightsError(
                f"The configuration of {name} says {path}={_short(value)}: {wrong}.",
                hint="The repository is damaged, or was made to do damage; choose another.",
            )
    return None


def _fields(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    if depth > _MOST_DEPTH:
        return
    for key, item in value.items():
        where = f"{path}.{key}" if path else str(key)
        yield where, item
        if isinstance(item, Mapping):
            yield from _fields(item, where, depth + 1)


def _wrong(name: str, value: Any, tensors: int, largest: int) -> str | None:
    if value is None or (isinstance(value, bool) and name not in (*_LAYERS, *_SIDES, "architectures")):
        return None
    if name in _SECTIONS:
        return None if isinstance(value, Mapping) else "that is no object"
    if name in _LISTS:
        return None if isinstance(value, list | tuple) else "that is no list"
    if name in _TEXTS:
        return None if isinstance(value, str) else "that is no text"
    if name == "architectures":
        texts = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        return None if texts else "that is no list of names"
    if name in _FRACTIONS:
        numbers = value if isinstance(value, list | tuple) else (value,)  # some families have one a layer
        good = all(isinstance(item, int | float) and abs(item) < _LARGEST**2 for item in numbers)
        return None if good else "that is no finite number"
    if name in _LAYERS:
        return _no_count(value, min(MOST_LAYERS, tensors), "the weights have fewer tensors")
    if name in _PARTS:
        return _no_count(value, 1 << 16, "that is more than any model has")
    if name in _SIDES:
        return _no_count(value, largest, "no tensor of the weights is that large")
    return _no_count(value, _LARGEST, "that is more than any model has") if name in _NUMBERS else None


def _no_count(value: Any, most: int, why: str) -> str | None:
    """What is wrong with a count, or with one of several, as some families have one a layer or stage."""
    if isinstance(value, list | tuple):
        found = (_no_count(item, most, why) for item in value)
        return next((item for item in found if item is not None), None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        return None if isinstance(value, float) and value.is_integer() and 0 <= value <= most else "no count"
    if value < 0:
        return None if value == -1 else "that is negative"
    return why if value > most else None


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python writes
        return f"<{type(value).__name__}>"
    return text if len(text) <= 60 else f"{text[:57]}…"


__all__ = ["MOST_LAYERS", "config_problem"]
