"""What differs between the checkpoints that transformers writes and those that mlx-vlm reads.

`normalise` makes the configuration of either generation of transformers one that mlx-vlm understands;
`rename` does the same for the names of tensors. Both leave a checkpoint that needs nothing alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxengine.toolkit.checkpoint import normalise_config

# mlx-vlm reads the text model of these from the top level of the configuration.
_FLAT_TEXT = frozenset({"qwen2_vl", "qwen2_5_vl"})
# The image features of these are scaled by the text model's width, read from the top level.
_SCALED = frozenset({"gemma3", "paligemma"})
# mlx-vlm keeps the inner module that transformers 5 dropped from the tensors' names.
_WRAPPED_VISION = frozenset(
    {"llava", "llava_next", "paligemma", "gemma3", "aya_vision", "mistral3", "llava_bunny", "internvl_chat"}
)
_TOKENS = ("image_token", "video_token", "boi_token", "eoi_token", "audio_token")


def normalise(config: Mapping[str, Any]) -> dict[str, Any]:
    """A fresh ``config.json`` that mlx-vlm reads rightly, from one written by transformers 4 or 5."""
    plain = normalise_config(config)
    kind = str(plain.get("model_type", ""))
    text = plain.get("text_config")
    vision = plain.get("vision_config")
    if isinstance(vision, dict) and vision.get("model_type") == f"{kind}_vision" and kind.startswith("qwen"):
        vision["model_type"] = kind
    for name in _TOKENS:  # the two generations call the same thing by two names
        for one, other in ((f"{name}_id", f"{name}_index"), (f"{name}_index", f"{name}_id")):
            if one in plain:
                plain.setdefault(other, plain[one])
    if isinstance(text, dict):
        if kind in _FLAT_TEXT:
            for key, value in text.items():
                if key != "model_type":
                    plain.setdefault(key, value)
        if kind in _SCALED:
            plain["hidden_size"] = text.get("hidden_size", plain.get("hidden_size"))
            plain.setdefault("pad_token_id", text.get("pad_token_id", 0))
        if plain.get("tie_word_embeddings") is True:  # the outer flag governs in transformers 5
            text["tie_word_embeddings"] = True
        if "mm_tokens_per_image" in plain:
            text.setdefault("mm_tokens_per_image", plain["mm_tokens_per_image"])
        if text.get("model_type") == "lfm2":
            for name in ("block_dim", "conv_dim", "conv_dim_out"):
                text.setdefault(name, text.get("hidden_size"))
        if kind == "gemma3" and "rope_theta" in text:
            text.setdefault("rope_global_base_freq", text["rope_theta"])
    for section in ("text_config", "vision_config", "audio_config"):
        if section in plain and plain[section] is None:
            del plain[section]
    return plain


def rename(kind: str, names: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors under the names that mlx-vlm's own converters start from."""
    if kind not in _WRAPPED_VISION:
        return dict(names)
    return {_wrapped(name): value for name, value in names.items()}


def _wrapped(name: str) -> str:
    head, found, rest = name.partition("vision_tower.")
    inner = rest.partition(".")[0]
    if not found or inner not in ("embeddings", "encoder", "pre_layrnorm", "post_layernorm", "head"):
        return name
    return f"{head}vision_tower.vision_model.{rest}"


__all__ = ["normalise", "rename"]
