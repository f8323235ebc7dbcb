"""Media that requests of several kinds take."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen


@frozen
class ImagePart:
    """A picture: a path, encoded bytes, a PIL image, or an array (height, width, 3) of uint8.

    A URL (``http://…``) is fetched only where the caller allowed it.
    """

    source: Any = field(repr=lambda value: f"<{type(value).__name__}>")


__all__ = ["ImagePart"]
