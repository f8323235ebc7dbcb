"""Models that make video: a kind of its own, brought by a plugin."""

from __future__ import annotations

from .handle import AsyncVideoHandle, Video, VideoHandle, WrittenVideo
from .types import FrameReady, VideoPlanned, VideoReady, VideoRequest, VideoUsage, VideoWorkload
from .writing import VideoWriter, read_recipe, write_video

__all__ = [
    "AsyncVideoHandle",
    "FrameReady",
    "Video",
    "VideoHandle",
    "VideoPlanned",
    "VideoReady",
    "VideoRequest",
    "VideoUsage",
    "VideoWorkload",
    "VideoWriter",
    "WrittenVideo",
    "read_recipe",
    "write_video",
]
