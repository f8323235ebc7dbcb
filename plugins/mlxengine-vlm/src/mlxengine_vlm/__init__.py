"""Vision-language models for MLXEngine, on mlx-vlm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._media import MediaLimits as MediaLimits
    from ._media import Picture as Picture
    from ._media import picture as picture

__all__ = ["MediaLimits", "Picture", "picture"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import _media  # needs numpy and Pillow, which importing the plugin must not bring in

    return getattr(_media, name)
