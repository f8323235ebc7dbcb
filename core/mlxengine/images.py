"""Handles of image-generation models, and the picture that they make."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from .events import Array, ImageReady
from .model import AsyncModelHandle, ModelHandle
from .replies import Result
from .requests import ImageRequest

if TYPE_CHECKING:
    import numpy as np


@frozen(kw_only=True)
class Picture:
    """A finished picture: ``pixels`` of shape (height, width, 3), uint8, and its recipe."""

    pixels: Array
    recipe: Mapping[str, Any]

    def numpy(self) -> np.ndarray[Any, Any]:
        """The pixels as a read-only numpy array."""
        return self.pixels.numpy()

    def pil(self) -> Any:
        """The pixels as a PIL image."""
        from PIL import Image

        return Image.fromarray(self.numpy())

    def save(self, path: str | Path) -> Path:
        """Write the picture in the format that the name says."""
        self.pil().save(path)
        return Path(path)


class ImageHandle(ModelHandle):
    """A loaded image-generation model."""

    def image(self, prompt: str, *, steps: int | None = None, seed: int | None = None) -> Picture:
        """Make one picture."""
        return _picture(self.run(ImageRequest(prompt=prompt, steps=steps, seed=seed)))


class AsyncImageHandle(AsyncModelHandle):
    """The same for asyncio."""

    async def image(self, prompt: str, *, steps: int | None = None, seed: int | None = None) -> Picture:
        """Make one picture."""
        return _picture(await self.run(ImageRequest(prompt=prompt, steps=steps, seed=seed)))


def _picture(result: Result) -> Picture:
    ready = next(event for event in result.events if isinstance(event, ImageReady))
    return Picture(pixels=ready.pixels, recipe=ready.recipe)


__all__ = ["AsyncImageHandle", "ImageHandle", "Picture"]
