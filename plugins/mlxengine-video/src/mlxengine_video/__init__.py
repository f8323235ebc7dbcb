"""Models that make video: a kind of its own, brought by a plugin."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .handle import AsyncVideoHandle, Video, VideoHandle
    from .types import FrameReady, VideoPlanned, VideoReady, VideoRequest, VideoUsage, VideoWorkload
    from .writing import VideoWriter, WrittenVideo, read_recipe, write_video

_HOMES = {
    "AsyncVideoHandle": "handle",
    "FrameReady": "types",
    "Video": "handle",
    "VideoHandle": "handle",
    "VideoPlanned": "types",
    "VideoReady": "types",
    "VideoRequest": "types",
    "VideoUsage": "types",
    "VideoWorkload": "types",
    "VideoWriter": "writing",
    "WrittenVideo": "writing",
    "read_recipe": "writing",
    "write_video": "writing",
}

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


def __getattr__(name: str) -> Any:
    # Looking for plugins imports this package; what a request is made of can wait for the first one.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
