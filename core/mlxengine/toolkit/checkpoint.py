"""One place that reads the configurations that transformers 4 and 5 write.

transformers 5 nests everything about rotary positions under ``rope_parameters``; most models of mlx-lm,
mlx-vlm and mlx-embeddings read the flat keys of transformers 4 only, and silently fall back to a base of
10,000. `normalise_config` writes the flat keys beside the nested ones, so that either reader is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..readonly import thaw

_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"
# The flat names under which model families keep the base of their sliding-window layers.
_LOCAL_BASES = ("rope_local_base_freq", "local_rope_theta", "rope_local_theta", "swa_rope_theta")


def normalise_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A plain, fresh copy of a ``config.json`` with the flat keys that models on mlx read.

    From ``rope_parameters`` come ``rope_theta``, ``rope_scaling`` (only where something is scaled),
    ``partial_rotary_factor`` and ``original_max_position_embeddings``; where it holds one entry per
    layer type, the full-attention entry gives these and the sliding one ``rope_local_base_freq`` and its
    synonyms. ``rope_parameters`` wins over a flat key, as it does in transformers. From ``layer_types``
    come ``sliding_window_pattern`` and ``full_attention_interval`` where the layers repeat regularly, from
    ``per_layer_config`` the ``global_head_dim`` of full-attention layers. The configuration of an inner
    text model (``text_config`` …) is treated likewise; whether its embeddings are tied is the outer flag's to
    say, where there is one. Unknown keys pass unchanged.
    """
    plain: dict[str, Any] = thaw(config)
    for key in _NESTED:
        if isinstance(plain.get(key), dict):
            plain[key] = normalise_config(plain[key])
            _tie(plain[key], plain)
    _hoist_rope(plain)
    _fill(plain)
    _derive_layer_period(plain)
    if plain.get("torch_dtype") is None and isinstance(plain.get("dtype"), str):
        plain["torch_dtype"] = plain["dtype"]
    return plain


def _tie(inner: dict[str, Any], outer: Mapping[str, Any]) -> None:
    """Whether embeddings are tied: transformers 5 goes by the outer flag, and leaves the inner stale."""
    tied = outer.get("tie_word_embeddings")
    if tied is True or (tied is False and str(outer.get("transformers_version")).startswith("5.")):
        inner["tie_word_embeddings"] = tied
    elif tied is False:
        inner.setdefault("tie_word_embeddings", False)


def _fill(config: dict[str, Any]) -> None:
    """What transformers 5 renamed or left out for single families, and their readers on mlx ask for."""
    kind = str(config.get("model_type"))
    if kind.startswith("qwen") and "num_local_experts" in config:
        config.setdefault("num_experts", config["num_local_experts"])
    if kind.startswith("qwen3_vl_moe"):
        config.setdefault("norm_topk_prob", True)
    if kind.startswith("llama4"):
        config.setdefault("rope_scaling", None)


def _hoist_rope(config: dict[str, Any]) -> None:
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, dict) or not parameters:
        return
    by_layer = {key: value for key, value in parameters.items() if isinstance(value, dict)}
    local = by_layer.get(_SLIDING)
    main = by_layer.get(_FULL) or next(iter(by_layer.values()), None) or parameters
    if local and local.get("rope_theta") is not None:
        for name in _LOCAL_BASES:
            config[name] = local["rope_theta"]
    base, share = main.get("rope_theta"), main.get("partial_rotary_factor")
    if base is not None:
        config["rope_theta"] = base
        if by_layer:
            config["global_rope_theta"] = base
    if share is not None:
        config["partial_rotary_factor"] = share
    if config.get("model_type") == "gpt_neox":
        config.setdefault("rotary_emb_base", base if base is not None else 10_000)
        config.setdefault("rotary_pct", share if share is not None else 0.25)
    if (original := main.get("original_max_position_embeddings")) is not None:
        config.setdefault("original_max_position_embeddings", original)
    kind = main.get("rope_type") or main.get("type") or "default"
    if kind != "default" or "mrope_section" in main:
        scaling = {key: value for key, value in main.items() if key != "rope_theta"}
        config["rope_scaling"] = {**scaling, "type": kind, "rope_type": kind}


def _derive_layer_period(config: dict[str, Any]) -> None:
    kinds = config.get("layer_types")
    if not isinstance(kinds, list) or _FULL not in kinds:
        return
    first, others = kinds.index(_FULL), {str(kind) for kind in kinds} - {_FULL}
    if isinstance(config.get("per_layer_config"), dict):
        _derive_global_heads(config, first)
    ends = all((kind == _FULL) == ((i + 1) % (first + 1) == 0) for i, kind in enumerate(kinds))
    if others == {_LINEAR} and ends:
        config.setdefault("full_attention_interval", first + 1)
    if others != {_SLIDING}:
        return
    if first and ends:
        config.setdefault("sliding_window_pattern", first + 1)
    period = kinds.index(_FULL, 1) if first == 0 and _FULL in kinds[1:] else len(kinds)
    if first == 0 and all((kind == _FULL) == (i % period == 0) for i, kind in enumerate(kinds)):
        config.setdefault("global_attn_every_n_layers", period)


def _derive_global_heads(config: dict[str, Any], layer: int) -> None:
    """The heads of full-attention layers, which transformers 5 writes where they differ, by layer."""
    own: Any = next(
        (value for key, value in config["per_layer_config"].items() if key.isdigit() and int(key) == layer),
        {},
    )
    for name, flat in (
        ("head_dim", "global_head_dim"),
        ("num_key_value_heads", "num_global_key_value_heads"),
    ):
        found = own.get(name, config.get(name)) if isinstance(own, dict) else None
        if found is not None:
            config.setdefault(flat, found)


__all__ = ["normalise_config"]
