"""Pictures as the caller has them, decoded within limits, or refused.

Whatever arrives is untrusted: every picture is opened with limits before a pixel is decoded, fully decoded
here (a truncated file fails now, not inside the model), and turned into upright 8-bit RGB. Importing this
needs numpy and Pillow.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from attrs import field, frozen
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UnsupportedInputError

# Our own limit decides, on the size in the header. For all at once: filters are not a thread's own.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

# What PIL decodes in pure raster form; SVG, PDF and PostScript are programs, not pictures.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "ICO", "AVIF", "JPEG2000")
WEB = ("http://", "https://")
_SPREAD = 200
"""Widest ratio of a picture's sides: the processors' own limit (Qwen-VL), applied to all alike."""


@frozen(kw_only=True)
class PictureLimits:
    """What is accepted. Pixels are counted after decoding; bytes before.

    Args:
        pixels: most pixels of one picture.
        size: most bytes of one encoded picture.
        url: fetches ``http(s)://`` sources; ``None`` refuses them.
        larger: what to do about a picture of too many pixels, for people.
        fetching: what to do about a URL that is not fetched.
    """

    pixels: int = 40_000_000
    size: int = 64 * 2**20
    url: Callable[[str, int], bytes] | None = None
    larger: str = field(default="Scale it down.", repr=False)
    fetching: str = field(default="Fetch it yourself and pass the bytes.", repr=False)


@frozen(kw_only=True)
class Picture:
    """One decoded picture: RGB pixels, and the hash of its content (size and pixels) that names it."""

    image: Any = field(repr=False)
    digest: str

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        width, height = self.image.size
        return int(width), int(height)


def picture(source: Any, limits: PictureLimits = PictureLimits()) -> Picture:
    """Decode a picture as `opened` does, and name it by its content.

    Raises:
        UnsupportedInputError: it is no picture, is damaged, or is larger than the limits.
    """
    rgb = opened(source, limits)
    digest = hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).hexdigest()
    return Picture(image=rgb, digest=digest)


def opened(source: Any, limits: PictureLimits = PictureLimits()) -> Image.Image:
    """Decode a picture: a path, a URL (where allowed), encoded bytes, a PIL image, or an array.

    An array is (height, width), (height, width, 1 | 3 | 4) of uint8, or of floats in [0, 1]. CMYK, palette,
    grey and 16-bit pictures become RGB; transparency is laid on white; EXIF rotation is applied; of an
    animation the first frame is taken.

    Raises:
        UnsupportedInputError: it is no picture, is damaged, or is larger than the limits.
    """
    if isinstance(source, Image.Image):
        found = _checked(source, limits)
    elif isinstance(source, np.ndarray) or hasattr(source, "__array_interface__"):
        found = _from_array(np.asarray(source), limits)
    else:
        found = _decode(encoded(source, limits, "picture"), limits)
    return _rgb(found)


def encoded(source: Any, limits: PictureLimits, what: str) -> bytes:
    """The bytes of a path, a URL (where allowed), a ``data:`` URL, a file that is open, or bytes.

    Args:
        source: where they are.
        limits: how many there may be.
        what: ``"picture"``, ``"sound"``, for messages.

    Raises:
        UnsupportedInputError: there are none, or too many.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    elif isinstance(source, str) and source.startswith(WEB):
        if limits.url is None:
            refuse(
                f"The {what} {source!r} is a URL, and fetching URLs is off.",
                limits.fetching,
            )
        data = limits.url(source, limits.size)
    elif isinstance(source, str) and source.startswith("data:"):
        data = _data_url(source)
    elif isinstance(source, str | Path):
        data = _read(Path(source).expanduser(), limits, what)
    elif hasattr(source, "read"):
        data = source.read(limits.size + 1)
    else:
        refuse(
            f"A {what} cannot be made of {type(source).__name__}.",
            "Give a path, bytes, a PIL image or a numpy array.",
        )
    if not data:
        refuse(f"The {what} is empty (0 bytes).", "Check where it comes from.")
    if len(data) > limits.size:
        refuse(f"The {what} has more than {limits.size} bytes.", "Make it smaller first.")
    return data


def _read(path: Path, limits: PictureLimits, what: str) -> bytes:
    try:
        if not path.is_file():
            refuse(f"There is no {what} file {str(path)!r}.", "Check the path.")
        if path.stat().st_size > limits.size:
            refuse(f"{str(path)!r} has more than {limits.size} bytes.", "Make it smaller first.")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise UnsupportedInputError(
            f"The {what} {str(path)!r} cannot be read: {error}.", hint="Check the path and its permissions."
        ) from error


def _data_url(source: str) -> bytes:
    import base64

    head, comma, body = source.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError("it is not base64")
        return base64.b64decode(body, validate=True)
    except ValueError as error:
        raise UnsupportedInputError(
            f"The data URL cannot be decoded: {error}.", hint="Write data:image/png;base64,…"
        ) from error


def _decode(data: bytes, limits: PictureLimits) -> Image.Image:
    head = data[:256].lstrip().lower()
    if head.startswith((b"<svg", b"<?xml", b"%pdf", b"%!ps")):
        refuse("The picture is a vector graphic (SVG, PDF or PostScript).", "Render it to PNG first.")
    try:
        found = _checked(Image.open(io.BytesIO(data), formats=_formats()), limits)
        found.load()
        return _checked(found, limits)  # what an icon holds may be larger than its directory says
    except UnsupportedInputError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large("The picture", limits) from error
    except UnidentifiedImageError as error:
        raise UnsupportedInputError(
            "The bytes are not a picture in a format that is known here.",
            hint="Give PNG, JPEG, WebP, GIF, BMP or TIFF.",
        ) from error
    except Exception as error:  # a decoder raises whatever it likes on damaged data
        raise UnsupportedInputError(
            f"The picture is damaged or truncated: {error}.", hint="Check where it comes from."
        ) from error


def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _checked(found: Image.Image, limits: PictureLimits) -> Image.Image:
    width, height = found.size
    if width < 1 or height < 1:
        refuse(f"The picture is {width} × {height} pixels.", "Give at least 1 × 1.")
    if width * height > limits.pixels:
        raise _too_large(f"The picture ({width} × {height})", limits)
    if max(width, height) > _SPREAD * min(width, height):
        refuse(f"The picture ({width} × {height}) is too narrow.", f"Keep the sides within {_SPREAD} to 1.")
    return found


def _too_large(what: str, limits: PictureLimits) -> UnsupportedInputError:
    return UnsupportedInputError(f"{what} has more than {limits.pixels} pixels.", hint=limits.larger)


def _from_array(array: np.ndarray[Any, Any], limits: PictureLimits) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or array.size == 0:
        refuse(
            f"An array of shape {array.shape} is not a picture.",
            "Give (height, width, 3): rows first, channels last.",
        )
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            refuse("A picture of floats must lie in [0, 1].", "Scale it, or give uint8.")
        array = (array * 255).round()
    elif array.dtype.kind == "b":
        array = array * np.uint8(255)
    elif array.dtype == np.uint16:
        array = array >> 8
    elif array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        refuse(f"An array of {array.dtype} outside 0 to 255 is not a picture.", "Give uint8.")
    return _checked(Image.fromarray(np.ascontiguousarray(array.astype(np.uint8))), limits)


def _rgb(found: Image.Image) -> Image.Image:
    """Upright 8-bit RGB. PIL clips 16-bit grey instead of scaling it, so that is done here."""
    try:
        upright = ImageOps.exif_transpose(found) or found
        if upright.mode.startswith("I;16"):
            return Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8)).convert("RGB")
        if upright.mode in ("I", "F"):
            values = np.asarray(upright, dtype=np.float64)
            top = 65535.0 if upright.mode == "I" and values.max() > 255 else 255.0
            return Image.fromarray(np.clip(values * (255 / top), 0, 255).astype(np.uint8)).convert("RGB")
        if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
            above = upright.convert("RGBA")
            white = Image.new("RGBA", above.size, "white")
            return Image.alpha_composite(white, above).convert("RGB")
        return upright.convert("RGB") if upright.mode != "RGB" else upright.copy()
    except UnsupportedInputError:
        raise
    except Exception as error:
        raise UnsupportedInputError(
            f"The picture cannot be turned into RGB: {error}.", hint="Save it as an RGB PNG first."
        ) from error


def refuse(message: str, hint: str) -> NoReturn:
    """Raise `UnsupportedInputError`."""
    raise UnsupportedInputError(message, hint=hint)


__all__ = ["WEB", "Picture", "PictureLimits", "encoded", "opened", "picture", "refuse"]
