"""The feature flags of the plugin."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from mlxengine import Feature, Stage


def unavailable() -> str | None:
    """Why there can be no ranks here, if there is a reason."""
    if importlib.util.find_spec("mlx_lm") is None:
        return "mlx-lm is not installed"
    return "ranks are processes with POSIX sockets" if sys.platform == "win32" else None


RANKS: Feature[int | None] = Feature(
    name="shard.ranks",
    default=None,
    summary="Spread the model over so many processes of this machine, on CUDA each with a device.",
    stage=Stage.EXPERIMENTAL,
    applies_to=("llm",),
    probe=unavailable,
)
SPLIT = Feature(
    name="shard.split",
    default="tensor",
    summary="How: each layer's heads and widths (tensor), or its layers one behind the other (pipeline).",
    stage=Stage.EXPERIMENTAL,
    applies_to=("llm",),
    choices=("tensor", "pipeline"),
    probe=unavailable,
)
STEP_SECONDS = Feature(
    name="shard.step_seconds",
    default=120.0,
    summary="Ranks whose step takes longer are ended and started again; sooner where its length is known.",
    stage=Stage.EXPERIMENTAL,
    applies_to=("llm",),
    probe=unavailable,
)

FEATURES: tuple[Feature[Any], ...] = (RANKS, SPLIT, STEP_SECONDS)
