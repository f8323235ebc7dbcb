"""Whether this plugin serves a model, told from its card alone."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxengine import Claim, Fit, MemoryEstimate, ModelCard, Source, TextWorkload
from mlxengine.errors import (
    IncompatibleWeightsError,
    LoadError,
    RemoteCodeRefusedError,
    UnsupportedArchitectureError,
)
from mlxengine.toolkit.counts import config_problem
from mlxengine.toolkit.estimate import architectures, estimator, number
from mlxengine.toolkit.source import constant

FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.jsonl")
_GENERATORS = (
    "ForConditionalGeneration",
    "ForCausalLM",
    "ForVision2Seq",
    "LMHeadModel",
    "ForImageTextToText",
)
# These see, but have no vision_config.
_SEEING = frozenset(
    {
        "bunny-llama",
        "deepseek_vl_v2",
        "llava-qwen2",
        "llava_qwen2",
        "minicpmo",
        "molmo",
        "moondream1",
        "moondream2",
        "moondream3",
        "multi_modality",
        "phi3_v",
        "phi4mm",
    }
)

FAULTS = {
    "glm4v": "its encoder interpolates positions linearly, transformers cubically",
    "glm4v_moe": "its encoder interpolates positions linearly, transformers cubically",
    "granite_vision": "its pictures have other embeddings than the prompt has places; they are refused",
    "idefics2": "its encoder counts the positions of patches otherwise than transformers",
    "llava_bunny": "it sees the first of several pictures alone",
    "llava_next": "its pictures have other embeddings than the prompt has places; they are refused",
    "paligemma": "it takes one picture in a prompt",
}
"""What is wrong in mlx-vlm's families that answer otherwise, as docs/reference/vision-families.md has it."""


def claim(card: ModelCard) -> Claim | None:
    """The plugin's offer for a model, or ``None`` for what takes no pictures or sound."""
    config = card.config
    if card.source is Source.GGUF or not config or "model_index.json" in card.documents:
        return None
    kind = config.get("model_type")
    if not isinstance(kind, str) or not sees(config) or not _generates(config) or _embeds(card):
        return None
    found = library_name(kind)
    fault = FAULTS.get(found or "")
    return Claim(
        kind="vlm",
        fit=Fit.NATIVE if found and fault is None else Fit.PARTIAL,
        files=(*FILES, "*.py") if card.configuration.trust_remote_code else FILES,
        capabilities=_capabilities(card),
        estimate=_estimator(card),
        problem=_problem(card, found),
        reason=(f"mlx-vlm's {found}" + (f": {fault}" if fault else ""))
        if found
        else "it takes pictures, and mlx-vlm does not know it",
    )


def sees(config: Mapping[str, Any]) -> bool:
    """Whether a configuration describes a model that takes pictures or sound."""
    parts = ("vision_config", "audio_config", "vision_tower_config", "mm_vision_tower")
    return config.get("model_type") in _SEEING or any(config.get(part) for part in parts)


def library_name(kind: str) -> str | None:
    """mlx-vlm's name for a model type, or ``None``; mlx-vlm is not imported."""
    name = _remapping().get(kind.lower(), kind.lower())
    folder = _library()
    found = folder is not None and folder.joinpath("models", name, "__init__.py").is_file()
    return name if found else None


@functools.cache
def _library() -> Path | None:
    spec = importlib.util.find_spec("mlx_vlm")
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) if places else None


@functools.cache
def _remapping() -> dict[str, str]:
    """mlx-vlm's own table of aliases."""
    folder = _library()
    found = None if folder is None else constant(folder / "utils.py", "MODEL_REMAPPING")
    return found or {}


def _generates(config: Mapping[str, Any]) -> bool:
    names = architectures(config)
    return not names or any(name.endswith(_GENERATORS) for name in names)


def _embeds(card: ModelCard) -> bool:
    return "modules.json" in card.documents


def _capabilities(card: ModelCard) -> frozenset[str]:
    config = card.config
    found = {"text"}
    if config.get("vision_config") or config.get("model_type") in _SEEING or config.get("mm_vision_tower"):
        found.add("vision")
    if config.get("video_token_id") is not None or config.get("video_token_index") is not None:
        found.add("video")
    if config.get("audio_config"):
        found.add("audio")
    settings = [card.documents.get(name) for name in ("tokenizer_config.json", "processor_config.json")]
    inline = any(isinstance(item, Mapping) and item.get("chat_template") for item in settings)
    if inline or any(name in card.names() for name in ("chat_template.jinja", "chat_template.json")):
        found.add("chat")
    return frozenset(found)


def _estimator(card: ModelCard) -> Any:
    text = estimator(card)
    vision = card.config.get("vision_config")
    vision = vision if isinstance(vision, Mapping) else {}
    width, side = number(vision, "hidden_size"), number(vision, "patch_size") or 14

    def estimate(workload: TextWorkload) -> MemoryEstimate:
        base = text(workload)
        across, down = workload.size or (1024, 1024)
        patches = (across // side) * (down // side)
        # Activations of one encoder layer in fp32, about eight widths a patch; pictures go one by one.
        encoder = 4 * 8 * patches * width
        return MemoryEstimate(weights=base.weights, cache=base.cache, workspace=base.workspace + encoder)

    return estimate


def _problem(card: ModelCard, found: str | None) -> LoadError | None:
    config, name = card.config, card.id
    if (problem := config_problem(name, config, card.tensors)) is not None:
        return problem
    if config.get("model_file"):
        return RemoteCodeRefusedError(
            f"{name} wants to run its own code ({config['model_file']}).",
            hint="This plugin never runs a model's own Python file; use a conversion that needs none.",
        )
    if found is None:
        return UnsupportedArchitectureError(
            f"{name} has the architecture {config.get('model_type')!r}, which mlx-vlm does not implement.",
            hint="Update mlx-vlm, or choose another model: `mlxengine models --kind vlm`.",
        )
    if card.files and not card.names(".safetensors"):
        return IncompatibleWeightsError(
            f"{name} has no safetensors file; found: {', '.join(card.names()[:8])}.",
            hint="Choose a repository with safetensors weights; pickled ones are never loaded.",
        )
    return None


__all__ = ["FAULTS", "FILES", "claim", "library_name", "sees"]
