"""Where frames go: into one file by FFmpeg's libraries, or into a folder of PNGs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxengine import Array, Picture
from mlxengine.errors import BackendUnavailableError, InvalidParameterError
from mlxengine.readonly import thaw

if TYPE_CHECKING:
    import numpy as np

RECIPE_KEY = "mlxengine"
"""The name of the recipe in the comment of an MP4."""
_BT709, _STUDIO = 1, 1  # FFmpeg's numbers for the colours of television, and for luma from 16 to 235


class Film:
    """One file by FFmpeg's libraries."""

    def __init__(
        self,
        path: Path,
        ending: str,
        size: tuple[int, int],
        fps: float,
        recipe: dict[str, Any],
        crf: int,
    ) -> None:
        av = ffmpeg()
        rate = Fraction(fps).limit_denominator(1001)
        mp4 = ending.lower() == ".mp4"
        if mp4 and (size[0] % 2 or size[1] % 2):
            raise InvalidParameterError(
                f"H.264 takes even sides, not {size[0]} × {size[1]}.",
                hint="Write an animated PNG, or a folder of PNGs.",
            )
        options = {"plays": "0"}
        if mp4:  # in milliseconds, as usual, the whole would not be as long as its frames
            options = {"movflags": "+faststart", "movie_timescale": str(1000 * rate.numerator)}
        self._box = av.open(str(path), "w", format="mp4" if mp4 else "apng", options=options)
        try:
            self._track = self._box.add_stream("libx264" if mp4 else "apng", rate=rate)
        except ValueError as error:  # a build of FFmpeg without it
            self.drop()
            raise BackendUnavailableError(
                f"This build of FFmpeg has no encoder for {ending} ({error}).",
                hint="Install PyAV from its wheels: pip uninstall av, then pip install av.",
            ) from error
        self._track.width, self._track.height = size
        self._track.time_base = self._track.codec_context.time_base = 1 / rate
        self._format = {"format": "rgb24"}
        if mp4:
            self._track.options = {"crf": str(crf)}
            context = self._track.codec_context
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _STUDIO
            self._format = {"format": "yuv420p", "dst_colorspace": "ITU709", "dst_color_range": "MPEG"}
            if recipe:
                self._box.metadata["comment"] = json.dumps({RECIPE_KEY: thaw(recipe)}, ensure_ascii=False)
                self._box.metadata["title"] = str(recipe.get("prompt", ""))
        self._track.pix_fmt = self._format["format"]
        self._step = 1 / rate
        self._make = av.VideoFrame.from_ndarray
        try:
            self._box.start_encoding()  # else the file is opened with the first frame, when all is computed
        except BaseException:
            self.drop()
            raise

    def add(self, number: int, pixels: np.ndarray[Any, Any]) -> None:
        frame = self._make(pixels, format="rgb24").reformat(**self._format)
        frame.pts, frame.time_base = number, self._step
        self._box.mux(self._track.encode(frame))

    def close(self) -> None:
        self._box.mux(self._track.encode(None))
        self._box.close()

    def drop(self) -> None:
        try:
            self._box.close()
        except (OSError, ValueError, ffmpeg().FFmpegError):  # the reason why it is dropped, again
            pass


class Folder:
    """A PNG of each frame, numbered from 0."""

    def __init__(
        self,
        path: Path,
        ending: str,  # noqa: ARG002
        size: tuple[int, int],  # noqa: ARG002
        fps: float,
        recipe: dict[str, Any],
        crf: int,  # noqa: ARG002
    ) -> None:
        self._path, self._recipe = path, {**recipe, "fps": fps} if recipe else {}
        path.mkdir()

    def add(self, number: int, pixels: np.ndarray[Any, Any]) -> None:
        picture = Picture(
            pixels=Array(data=pixels.tobytes(), shape=pixels.shape, dtype="uint8"), recipe=self._recipe
        )
        picture.save(self._path / f"{number:05d}.png")

    def close(self) -> None:
        """Every file is whole already."""

    drop = close


def ffmpeg() -> Any:
    """PyAV, imported when a video is read or written.

    Raises:
        BackendUnavailableError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise BackendUnavailableError(
            "Videos are read and written with PyAV, which is not installed.", hint="pip install av"
        ) from error
    return av


@contextmanager
def as_os_errors() -> Iterator[None]:
    """What FFmpeg's libraries raise becomes an OSError with the system's number."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if isinstance(error, ffmpeg().FFmpegError):
            raise OSError(getattr(error, "errno", 0), getattr(error, "strerror", str(error))) from error
        raise


__all__ = ["RECIPE_KEY", "Film", "Folder", "as_os_errors", "ffmpeg"]
