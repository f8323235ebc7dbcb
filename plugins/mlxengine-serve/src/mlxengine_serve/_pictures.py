"""What must be known of a picture before its model sees it: its size, and where it is transparent."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from ._refusals import Refusal

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # what Pillow decodes itself, without a program
_MOST_PIXELS = 40_000_000


def size_of(picture: bytes, where: str) -> tuple[int, int]:
    """(width, height) in pixels, turned upright; nothing is decoded.

    Raises:
        Refusal: 400, it is no picture.
    """
    opened = _opened(picture, where)
    width, height = opened.size
    return (height, width) if opened.getexif().get(0x0112, 1) >= 5 else (width, height)


def transparent(mask: bytes, where: str) -> bytes:
    """A mask that is transparent somewhere as one that is white there and black elsewhere, a PNG file.

    One that is transparent nowhere stays as it is.

    Raises:
        Refusal: 400, it is no picture.
    """
    from PIL import ImageOps

    opened = _opened(mask, where)
    try:
        if "A" not in opened.getbands() and "transparency" not in opened.info:
            return mask
        holes = ImageOps.invert(ImageOps.exif_transpose(opened).convert("RGBA").getchannel("A"))
        if not holes.getbbox():
            return mask
        file = BytesIO()
        holes.save(file, "PNG")
        return file.getvalue()
    except Exception as error:  # a decoder raises whatever it likes on damaged data
        raise _unreadable(where, error) from None


def _opened(picture: bytes, where: str) -> Any:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:  # the server does not bring it; plugins that make pictures do
        raise _unreadable(where, "Pillow is not installed here") from None
    try:
        opened = Image.open(BytesIO(picture), formats=_FORMATS)
    except UnidentifiedImageError:  # its own words name an object in memory
        raise _unreadable(where, f"it is no {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]} file") from None
    except Exception as error:
        raise _unreadable(where, error) from None
    if opened.size[0] * opened.size[1] > _MOST_PIXELS:
        raise _unreadable(where, f"it has more than {_MOST_PIXELS} pixels")
    return opened


def _unreadable(where: str, why: object) -> Refusal:
    return Refusal(400, f"{where} cannot be read as a picture: {why}.", param=where, code="invalid_image")


__all__ = ["size_of", "transparent"]
