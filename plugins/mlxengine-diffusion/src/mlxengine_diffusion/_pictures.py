"""Pictures that come in: paths, encoded bytes, PIL images and arrays to (height, width, 3) uint8."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxengine.errors import InvalidParameterError, UnsupportedInputError

if TYPE_CHECKING:
    from .backends._work import Pixels

# What PIL decodes itself: others are programs, or are given to one. MPO opens as JPEG.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_MOST_PIXELS = 40_000_000
_MOST_SEEN = 1024 * 1024
_HINT = "Give a path, the bytes of a picture file, a PIL image, or an array (height, width, 3) of uint8."
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # of 16 bits, as maps of depth are; PIL has a PGM's in "I"


def open_picture(source: Any, name: str = "init_image") -> Any:
    """A PIL image in RGB, turned upright; transparency lies on white.

    Raises:
        UnsupportedInputError: it is no picture.
    """
    import numpy as np
    from PIL import Image, ImageOps

    if hasattr(source, "source"):  # a message's ImagePart
        source = source.source
    if not isinstance(source, np.ndarray) and callable(getattr(source, "numpy", None)):
        source = source.numpy()
    try:
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or source.shape[2:] not in ((), (3,), (4,)) or source.ndim < 2:
                raise ValueError(f"an array of shape {source.shape} and dtype {source.dtype}")
            picture: Any = Image.fromarray(source)
        elif isinstance(source, str | Path):
            picture = Image.open(Path(source).expanduser(), formats=_FORMATS)
        elif isinstance(source, bytes | bytearray | memoryview):
            picture = Image.open(io.BytesIO(source), formats=_FORMATS)
        elif isinstance(source, Image.Image):
            picture = source
        else:
            raise ValueError(f"a {type(source).__name__}")
        width, height = picture.size
        if width * height > _MOST_PIXELS:
            raise ValueError(f"it has {width} × {height} pixels, at most {_MOST_PIXELS} may be")
        picture = ImageOps.exif_transpose(picture)
        if picture.mode in _DEEP:  # PIL would take all above 255 for white
            picture = Image.fromarray((np.array(picture) >> 8).clip(0, 255).astype(np.uint8))
        if "A" in picture.getbands() or "transparency" in picture.info:
            layer = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        return picture.convert("RGB")
    except Exception as error:  # a decoder raises whatever it likes on damaged data
        raise UnsupportedInputError(f"{name} cannot be read: {error}.", hint=_HINT) from error


def open_mask(source: Any, size: tuple[int, int]) -> Pixels:
    """A mask scaled to (width, height): 255 where its picture is light or transparent, else 0.

    Raises:
        UnsupportedInputError: it is no picture.
        InvalidParameterError: it is dark everywhere.
    """
    import numpy as np
    from PIL import Image

    if isinstance(source, np.ndarray) and (source.dtype == bool or source.dtype.kind == "f"):
        source = np.where(source >= 0.5, 255, 0).astype(np.uint8)
    picture = open_picture(source, name="mask")
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    found: Pixels = np.where(np.array(picture.convert("L")) >= 128, 255, 0).astype(np.uint8)
    if not found.any():
        raise InvalidParameterError(
            "The mask is dark everywhere: it keeps the whole picture.",
            hint="Make white what is to be made anew; an array of 0 and 1 has to be of bool or float.",
        )
    return found


def fitted_size(picture: Any, step: int, name: str = "init_image") -> tuple[int, int]:
    """A picture's own size, rounded down to what the model takes.

    Raises:
        InvalidParameterError: it is smaller than that.
    """
    width, height = (side // step * step for side in picture.size)
    if not width or not height:
        raise InvalidParameterError(
            f"{name} has {picture.size[0]} × {picture.size[1]} pixels, less than {step} × {step}.",
            hint="Give a size, and the picture is scaled to it.",
        )
    return width, height


def reference_pixels(source: Any, step: int, sizes: Sequence[tuple[int, int]]) -> Pixels:
    """A picture to look at, of one of the ``sizes``; without any, its own, to at most a million pixels.

    A size is chosen by the ratio of its sides, and the picture stretched to it. A picture's own is cut to
    whole steps, about its middle.

    Raises:
        UnsupportedInputError: it is no picture.
        InvalidParameterError: it is smaller than a step.
    """
    from PIL import Image

    picture = open_picture(source, name="references")
    width, height = picture.size
    if sizes:
        return pixels_of(
            picture, min(sizes, key=lambda size: (abs(width / height - size[0] / size[1]), size))
        )
    if width * height > _MOST_SEEN:
        scale = math.sqrt(_MOST_SEEN / (width * height))
        picture = picture.resize((int(width * scale), int(height * scale)), Image.Resampling.LANCZOS)
    width, height = fitted_size(picture, step, name="references")
    left, top = (picture.size[0] - width) // 2, (picture.size[1] - height) // 2
    return pixels_of(picture.crop((left, top, left + width, top + height)), (width, height))


def whole_pixels(source: Any) -> Pixels:
    """A picture to look at, as it is.

    Raises:
        UnsupportedInputError: it is no picture.
    """
    picture = open_picture(source, name="references")
    return pixels_of(picture, picture.size)


def area_size(size: tuple[int, int], area: int) -> tuple[int, int]:
    """A (width, height) of about so many pixels, both multiples of 32, in nearly the same ratio."""
    width = math.sqrt(area * size[0] / size[1])
    return max(32, round(width / 32) * 32), max(32, round(width * size[1] / size[0] / 32) * 32)


def pixels_of(picture: Any, size: tuple[int, int]) -> Pixels:
    """The picture scaled to (width, height)."""
    import numpy as np
    from PIL import Image

    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    found: Pixels = np.array(picture, dtype=np.uint8)
    return found


__all__ = [
    "area_size",
    "fitted_size",
    "open_mask",
    "open_picture",
    "pixels_of",
    "reference_pixels",
    "whole_pixels",
]
