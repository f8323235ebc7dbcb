"""The registry's entries of video models, each with its defaults, and where each fact was read.

The facts stand in ``models.json``. How the file is read: `mlxengine.registry.read_entries`.
"""

from __future__ import annotations

from pathlib import Path

from attrs import frozen
from mlxengine import ModelConfiguration
from mlxengine.registry import read_entries


@frozen(kw_only=True)
class VideoConfiguration(ModelConfiguration):
    """A video model and what a request that leaves something open gets. ``None``: the model's own.

    Args:
        video_size: (width, height) in pixels.
        frames: of a video.
        fps: frames a second.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
    """

    video_size: tuple[int, int] | None = None
    frames: int | None = None
    fps: float | None = None
    steps: int | None = None
    guidance: float | None = None


MODELS = read_entries(Path(__file__).with_name("models.json"), VideoConfiguration)

__all__ = ["MODELS", "VideoConfiguration"]
