"""Whether this plugin serves a model, told from its card alone."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import evolve
from mlxengine import Claim, Fit, MemoryEstimate, ModelCard, Source, TextWorkload
from mlxengine.errors import (
    IncompatibleWeightsError,
    LoadError,
    RemoteCodeRefusedError,
    UnsupportedArchitectureError,
)
from mlxengine.toolkit.counts import config_problem
from mlxengine.toolkit.estimate import architectures, estimator, number
from mlxengine.toolkit.media import has_encoders, media_part, takes_media
from mlxengine.toolkit.source import constant, keys

FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.jsonl")
_GENERATORS = (
    "ForConditionalGeneration",
    "ForCausalLM",
    "ForVision2Seq",
    "LMHeadModel",
    "ForImageTextToText",
)
# An architecture named for another task: it sees, and has no text to give.
_OTHER_TASK = re.compile(r"For(?!CausalLM|ConditionalGeneration|Vision2Seq|ImageTextToText)[A-Z]")

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
    if not isinstance(kind, str) or not _sees(card, kind) or "modules.json" in card.documents:
        return None
    found = library_name(kind)
    chats = _chats(config, kind, found)
    if not chats and found is None:
        return None
    blind = has_encoders(card) is False
    fit, reason = Fit.NATIVE, f"mlx-vlm's {found}"
    if found is None:
        fit, reason = Fit.PARTIAL, "it takes pictures, and mlx-vlm does not know it"
    elif blind:
        fit, reason = Fit.FALLBACK, f"mlx-vlm's {found}, for text alone: the weights hold no encoder"
    elif _encodes_first(config):
        fit, reason = Fit.PARTIAL, f"mlx-vlm's {found}, an encoder-decoder"
    elif not chats:
        fit, reason = Fit.FALLBACK, f"mlx-vlm's {found} does not answer in text"
    elif found in FAULTS:
        fit, reason = Fit.PARTIAL, f"mlx-vlm's {found}: {FAULTS[found]}"
    return Claim(
        kind="vlm",
        fit=fit,
        files=(*FILES, "*.py") if card.configuration.trust_remote_code else FILES,
        capabilities=_capabilities(card, blind),
        estimate=_estimator(card),
        problem=_problem(card, found, chats),
        reason=reason,
    )


def _sees(card: ModelCard, kind: str) -> bool:
    """Whether this plugin has anything to say about a model; one whose encoder was left out included."""
    if media_part(card.config, "vision_config", "audio_config") is not None or takes_media(card):
        return True
    # Families that have no such part, in a checkpoint whose names nobody knows.
    return (
        has_encoders(card) is None and "text_config" not in card.config and _has_encoder(library_name(kind))
    )


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


@functools.cache
def _has_encoder(name: str | None) -> bool:
    """Whether mlx-vlm's model of this name has a part for pictures or sound; one small file is read."""
    folder = _library()
    if folder is None or name is None:
        return False
    text = folder.joinpath("models", name, "__init__.py").read_text("utf-8", "replace")
    return re.search(r"VisionConfig|VisionModel|AudioConfig", text) is not None


@functools.cache
def _prompted() -> frozenset[str]:
    """The model types for which mlx-vlm knows how a prompt with media is written: those that chat."""
    folder = _library()
    found = () if folder is None else keys(folder / "prompt_utils.py", "MODEL_CONFIG")
    return frozenset(name.replace("-", "_") for name in found)


def _chats(config: Mapping[str, Any], kind: str, found: str | None) -> bool:
    names = architectures(config)
    if any(_OTHER_TASK.search(name) for name in names):
        return False
    known = kind.lower().replace("-", "_") in _prompted() or found in _prompted()
    return known or not names or any(name.endswith(_GENERATORS) for name in names)


def _encodes_first(config: Mapping[str, Any]) -> bool:
    """Whether an encoder reads all before the decoder writes, as in models for translation (Florence-2)."""
    parts = (config, config.get("text_config"), config.get("decoder"))
    return any(
        isinstance(part, Mapping) and (part.get("is_encoder_decoder") or part.get("encoder_attention_heads"))
        for part in parts
    )


def _capabilities(card: ModelCard, blind: bool) -> frozenset[str]:
    config = card.config
    found = {"text"}
    if not blind:
        hears = media_part(config, "audio_config") is not None
        if media_part(config, "vision_config") is not None or not hears:
            found.add("vision")
        if media_part(config, "video_token_id", "video_token_index") is not None:
            found.add("video")
        if hears:
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
        return evolve(base, workspace=base.workspace + encoder)

    return estimate


def _problem(card: ModelCard, found: str | None, chats: bool) -> LoadError | None:
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
            f"{name} has the model_type {config.get('model_type')!r}, which mlx-vlm does not implement.",
            hint="Update mlx-vlm, or choose another model: `mlxengine models --kind vlm`.",
        )
    if _encodes_first(config):
        return UnsupportedArchitectureError(
            f"{name} is an encoder-decoder (mlx-vlm's {found}), and this plugin runs decoders alone.",
            hint="Choose a model without one: `mlxengine models --kind vlm`; mlx-vlm itself runs this one.",
        )
    if not chats:
        return UnsupportedArchitectureError(
            f"{name} is mlx-vlm's {found} for another task than to answer in text, "
            f"by its architecture {', '.join(architectures(config))}.",
            hint="Choose a model that answers in text: `mlxengine models --kind vlm`.",
        )
    if card.files and not card.names(".safetensors"):
        return IncompatibleWeightsError(
            f"{name} has no safetensors file; found: {', '.join(card.names()[:8])}.",
            hint="Choose a repository with safetensors weights; pickled ones are never loaded.",
        )
    return None


__all__ = ["FAULTS", "FILES", "claim", "library_name"]
