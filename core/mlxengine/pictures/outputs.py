"""What models that make pictures give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from ..contract.events import Array, Event
from ..readonly import freeze


@frozen(kw_only=True)
class ImagePreview(Event):
    """A rough picture of what is being made, shape (height, width, 3), uint8."""

    step: int
    pixels: Array


@frozen(kw_only=True)
class ImageReady(Event):
    """A finished picture, shape (height, width, 3), uint8, and the recipe that makes it again."""

    pixels: Array
    recipe: Mapping[str, Any] = field(factory=dict, converter=freeze)


__all__ = ["ImagePreview", "ImageReady"]
