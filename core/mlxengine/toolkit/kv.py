"""How many numbers a model's key-value caches hold, told from its configuration; needs no mlx."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from .counts import MOST_LAYERS

_LARGEST = 1 << 31
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "num_attention_groups", "kv_n_heads")
_HIDDEN = ("hidden_size", "n_embd", "d_model", "hidden_dim", "model_dim")
_WINDOW = ("sliding_window", "sliding_window_size", "window_size")
_SHARED = ("num_kv_shared_layers", "num_kv_reuse_layers")  # last layers that look into others' caches
_GROWTH = 256  # tokens that a window is longer while it turns


@frozen(kw_only=True)
class Keeps:
    """What a network keeps of each token, where a configuration can be read in two ways.

    Args:
        windows: layers that are called sliding keep a window only, not everything behind a mask.
        latent: latent attention keeps its compressed vectors, not the keys and values of each head.
        alone: it keeps nothing else, states of fixed size or an index for example.
    """

    windows: bool = True
    latent: bool = True
    alone: bool = True


@frozen(kw_only=True)
class KVNumbers:
    """Numbers that the cache of each layer holds, and whether the configuration tells them all.

    ``whole`` are those of layers that keep every token, and so can be packed.
    """

    layers: tuple[int, ...]
    whole: int
    told: bool

    @property
    def total(self) -> int:
        """Numbers of all layers together."""
        return sum(self.layers)


def kv_numbers(config: Mapping[str, Any], length: int, keeps: Keeps) -> KVNumbers:
    """What caches for so many tokens hold.

    Args:
        config: the part of a configuration that describes the language model.
        length: tokens.
        keeps: what is known of the network.
    """
    count = max(0, min(number(config, *_LAYERS), MOST_LAYERS) - number(config, *_SHARED))
    kinds, told = _kinds(config, count, keeps)
    window = number(config, *_WINDOW)
    found = []
    for layer, kind in enumerate(kinds):
        each = _each(config, layer, kind, keeps)
        held = length
        if kind == "sliding" and window:
            held = min(length + _GROWTH, window)
        told = told and each is not None and (kind != "sliding" or window > 0)
        found.append(0 if kind == "other" else (each or 0) * held)
    whole = sum(size for size, kind in zip(found, kinds, strict=True) if kind == "full")
    return KVNumbers(layers=tuple(found), whole=whole, told=told and count > 0)


def group_size(config: Mapping[str, Any]) -> int:
    """How many numbers of a head share a scale and a bias when they are packed: 64, or else 32."""
    heads = number(config, *_HEADS)
    dimension = number(config, "head_dim") or (number(config, *_HIDDEN) // heads if heads else 0)
    return 32 if dimension % 64 else 64


def _kinds(config: Mapping[str, Any], count: int, keeps: Keeps) -> tuple[list[str], bool]:
    """Of each layer ``full``, ``sliding`` or ``other``, and whether that was said."""
    given = config.get("layer_types")
    if isinstance(given, list | tuple) and given:
        kinds = [_kind(item) for item in given][:count]
        kinds += ["full"] * (count - len(kinds))
    elif isinstance(given := config.get("hybrid_layer_pattern"), list | tuple):
        kinds = ["sliding" if item else "full" for item in given][:count]
        kinds += ["full"] * (count - len(kinds))
    elif period := number(config, "sliding_window_pattern"):
        kinds = ["full" if at % period == period - 1 else "sliding" for at in range(count)]
    else:
        silent = keeps.windows and any("window" in key and config[key] for key in config)
        return ["full"] * count, keeps.alone and not silent
    if not keeps.windows:
        kinds = ["full" if kind == "sliding" else kind for kind in kinds]
    return kinds, keeps.alone and "other" not in kinds


def _kind(name: Any) -> str:
    text = str(name)
    if "sliding" in text:
        return "sliding"
    return "other" if text.startswith(("linear", "conv", "mamba", "recurrent")) else "full"


def _each(config: Mapping[str, Any], layer: int, kind: str, keeps: Keeps) -> int | None:
    """Numbers that a layer keeps of a token; ``None`` where the configuration does not say."""
    heads = number(config, *_HEADS) or _of_layer(config.get("num_query_heads"), layer)
    hidden = number(config, *_HIDDEN)
    rope = number(config, "qk_rope_head_dim")
    if latent := number(config, "kv_lora_rank"):
        if keeps.latent:
            return latent + rope if rope else None
        keys = number(config, "qk_nope_head_dim") + rope
        values = number(config, "v_head_dim") or (hidden // heads if heads else 0)
        return heads * (keys + values) if rope and values else None
    whole = kind == "full" and number(config, "global_head_dim")
    dimension = whole or number(config, "head_dim") or (hidden // heads if heads else 0)
    groups = _groups(config, layer, heads, kind)
    if not dimension or groups is None:
        return None
    return groups * (dimension + (number(config, "v_head_dim") or dimension))


def _groups(config: Mapping[str, Any], layer: int, heads: int, kind: str) -> int | None:
    """Heads of keys and values."""
    blocks = config.get("block_configs")
    if isinstance(blocks, list | tuple) and layer < len(blocks):
        inner = blocks[layer].get("attention") if isinstance(blocks[layer], Mapping) else None
        size = number(inner, "n_heads_in_group") if isinstance(inner, Mapping) else 0
        return heads // size if size else 0
    if kind == "full" and (own := number(config, "num_global_key_value_heads")):
        return own
    inner = config.get("attn_config")
    for part in (config, inner if isinstance(inner, Mapping) else {}):
        if found := number(part, *_KV_HEADS):
            return found
    if found := _of_layer(config.get("num_kv_heads"), layer):
        return found
    if config.get("multi_query") is True:
        return 1
    return (heads // (number(config, "n_shared_head") or 1)) or None


def _of_layer(given: Any, layer: int) -> int:
    one_each = isinstance(given, Sequence) and not isinstance(given, str) and layer < len(given)
    return number({"": given[layer]}, "") if one_each else 0


def number(config: Mapping[str, Any], *keys: str) -> int:
    """The first of the keys that holds a whole number, 0 without one; never more than any model has."""
    for key in keys:
        found = config.get(key)
        if isinstance(found, int) and not isinstance(found, bool):
            return max(0, min(found, _LARGEST))
    return 0


__all__ = ["KVNumbers", "Keeps", "group_size", "kv_numbers", "number"]
