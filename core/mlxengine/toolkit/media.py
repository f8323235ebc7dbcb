"""Whether a checkpoint takes pictures or sound, told from its card; needs no mlx.

The weights tell it: a conversion for a language library keeps the configuration of encoders that it left
out, and many families name theirs otherwise than ``vision_config``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..contract.configuration import ModelCard

# Words in the names of an encoder's tensors, over the families that mlx-lm, mlx-vlm and transformers have.
_ENCODER = re.compile(r"vision|visual|image|img|audio|speech|sound|vpm|patch|sam_model", re.IGNORECASE)
_PARTS = (
    "vision_config",
    "audio_config",
    "vit_config",
    "vision_tower_config",
    "mm_vision_tower",
    "img_processor",
    "audio_processor",
)
_NESTED = ("thinker_config", "config")


def media_part(config: Mapping[str, Any], *names: str) -> Any:
    """What a configuration says under the first of the names that says anything, also one level down."""
    found = (section[name] for section in _sections(config) for name in names if section.get(name))
    return next(found, None)


def _sections(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    inner = (config.get(name) for name in _NESTED)
    return [config, *(section for section in inner if isinstance(section, Mapping))]


def has_encoders(card: ModelCard) -> bool | None:
    """Whether the weights hold an encoder of pictures or sound; ``None`` where no header was read."""
    if not card.tensors:
        return None
    return any(_ENCODER.search(item.name) for item in card.tensors)


def describes_media(config: Mapping[str, Any]) -> bool:
    """Whether a configuration has a part for pictures or sound, be it empty, under any name in use."""
    return any(section.get(name) is not None for section in _sections(config) for name in _PARTS)


def takes_media(card: ModelCard) -> bool:
    """Whether it is a model for pictures or sound: by its weights, else by its configuration."""
    found = has_encoders(card)
    return describes_media(card.config) if found is None else found


__all__ = ["describes_media", "has_encoders", "media_part", "takes_media"]
