"""Wan 2.1 and 2.2 in diffusers' layout, on the networks of mlx-video-with-audio.

`WanShape` and `read_shape` need no mlx; `Wan` and `Told` are fetched when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .shape import PIPELINES, WanShape, documents_of, read_shape

if TYPE_CHECKING:
    from .pipeline import Told as Told
    from .pipeline import Wan as Wan


def __getattr__(name: str) -> Any:
    if name in ("Told", "Wan"):
        from . import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["PIPELINES", "Told", "Wan", "WanShape", "documents_of", "read_shape"]
