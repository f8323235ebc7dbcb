"""What differs between the checkpoints that transformers writes and those that mlx-vlm reads.

`normalise` makes the configuration of either generation of transformers one that mlx-vlm understands,
`fitted` gives each section what the family's own class takes, and `rename` does the same for the names of
tensors. All leave a checkpoint that needs nothing alone.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from mlxengine.toolkit.checkpoint import normalise_config

# mlx-vlm reads the text model of these from the top level of the configuration.
_FLAT_TEXT = frozenset({"paddleocr_vl", "qwen2_vl", "qwen2_5_vl"})
# The image features of these are scaled by the text model's width, read from the top level.
_SCALED = frozenset({"gemma3", "paligemma"})
# mlx-vlm keeps the inner module that transformers 5 dropped from the tensors' names.
_WRAPPED_VISION = frozenset(
    {"llava", "llava_next", "paligemma", "gemma3", "aya_vision", "mistral3", "llava_bunny", "internvl_chat"}
)
# The encoder of these goes by the family's name.
_PLAIN_VISION = ("qwen", "paddleocr_vl")
# The head of these is a module of its own, also where it is the embeddings.
_OWN_HEAD = frozenset({"paddleocr_vl"})
# mlx-vlm starts from experts as transformers 4 wrote them, with the axes of each the other way round.
_TURNED_EXPERTS = frozenset({"qwen3_vl_moe"})
_GATE_UP = ".experts.gate_up_proj"
SECTIONS = {"text_config": "TextConfig", "vision_config": "VisionConfig", "audio_config": "AudioConfig"}
_TOKENS = ("image_token", "video_token", "boi_token", "eoi_token", "audio_token")


def normalise(config: Mapping[str, Any]) -> dict[str, Any]:
    """A fresh ``config.json`` that mlx-vlm reads rightly, from one written by transformers 4 or 5."""
    plain = normalise_config(config)
    kind = str(plain.get("model_type", ""))
    text = plain.get("text_config")
    vision = plain.get("vision_config")
    if isinstance(vision, dict):
        vision = plain["vision_config"] = normalise_config(vision)
        if vision.get("model_type") == f"{kind}_vision" and kind.startswith(_PLAIN_VISION):
            vision["model_type"] = kind
        if kind == "llava" and vision.get("model_type") == "pixtral":  # two families of mlx-vlm
            kind = plain["model_type"] = "pixtral"
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


def fitted(module: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The same configuration with the fields that the classes of mlx-vlm's ``module`` ask for, and no others.

    What a class wants and transformers 5 leaves to its own classes' defaults is filled in. Where mlx-vlm
    hands a section to its class as it is, keys that the class does not know are taken out.
    """
    plain = dict(config)
    plain.setdefault("text_config", plain.pop("llm_config", {}))
    plain.setdefault("vision_config", {})
    plain.setdefault("audio_config", {})
    whole = _is_plain(module.ModelConfig)
    for section, name in SECTIONS.items():
        given, wanted = plain.get(section), getattr(module, name, None)
        if not isinstance(given, dict) or not dataclasses.is_dataclass(wanted):
            continue
        fields = {field.name: field for field in dataclasses.fields(wanted)}
        missing = {name: fields[name] for name in fields.keys() - given.keys()}
        found = {**given, **_defaults(given, missing)}
        if whole and _is_plain(wanted):
            found = {key: value for key, value in found.items() if key in fields}
        plain[section] = found
    return plain


def _is_plain(made: Any) -> bool:
    """Whether a configuration is built from its fields alone, by the method that all share."""
    owner = next((base for base in inspect.getmro(made) if "from_dict" in vars(base)), made)
    return owner.__name__ == "BaseModelConfig"


def _defaults(section: Mapping[str, Any], missing: Mapping[str, Any]) -> dict[str, Any]:
    """Values of fields that a section leaves out: transformers' where the class itself has none."""
    heads, hidden = section.get("num_attention_heads"), section.get("hidden_size")
    known: dict[str, Any] = {"use_qk_norm": False, "vision_feature_layer": -1}
    if isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        known["head_dim"] = hidden // heads
    nothing = dataclasses.MISSING
    found = {
        name: known[name]
        for name, field in missing.items()
        if name in known and field.default is field.default_factory is nothing
    }
    ends = missing.get("eos_token_id")  # some read it before the class is made
    if ends is not None and ends.default_factory is not nothing:
        found["eos_token_id"] = ends.default_factory()
    return found


def rename(kind: str, names: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors under the names that mlx-vlm's own converters start from."""
    if kind in _WRAPPED_VISION:
        return {_wrapped(name): value for name, value in names.items()}
    found = dict(names)
    if kind in _OWN_HEAD and "model.embed_tokens.weight" in names:
        found.setdefault("lm_head.weight", names["model.embed_tokens.weight"])
    for name in names:
        if name.endswith(_GATE_UP) and kind in _TURNED_EXPERTS:
            other = f"{name.removesuffix(_GATE_UP)}.experts.down_proj"
            # (experts, 2 × middle, hidden) beside (experts, hidden, middle)
            if other in names and names[name].shape[1] == 2 * names[other].shape[2]:
                found[name], found[other] = names[name].swapaxes(1, 2), names[other].swapaxes(1, 2)
    return found


def _wrapped(name: str) -> str:
    head, found, rest = name.partition("vision_tower.")
    inner = rest.partition(".")[0]
    if not found or inner not in ("embeddings", "encoder", "pre_layrnorm", "post_layernorm", "head"):
        return name
    return f"{head}vision_tower.vision_model.{rest}"


__all__ = ["SECTIONS", "fitted", "normalise", "rename"]
