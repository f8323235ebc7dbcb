"""Frames into a file as they come: MP4 (H.264), an animated PNG, or a folder of PNGs.

Memory stays bounded: the encoder holds a few dozen frames, whatever the video's length. What is written lies
beside its target under a hidden name until it is whole, so a file that was there stays if anything fails.
Importing this imports no library.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from attrs import field, frozen
from mlxengine import Array, Event
from mlxengine.errors import InvalidParameterError, ModelNotFoundError
from mlxengine.readonly import freeze

from ._film import RECIPE_KEY, Film, Folder, as_os_errors, ffmpeg
from .types import FrameReady, VideoPlanned

if TYPE_CHECKING:
    import numpy as np

CRF = 18
"""Constant rate factor of H.264 where nobody says another: hardly to be told from the frames."""
_MOST_CRF = 51
_ENDINGS = (".mp4", ".png", ".apng")


@frozen(kw_only=True)
class WrittenVideo:
    """A video that lies in a file, and the recipe that makes it again."""

    path: Path
    width: int
    height: int
    frames: int
    fps: float
    recipe: Mapping[str, Any] = field(factory=dict, converter=freeze)


class VideoWriter:
    """Writes one video. A context manager: leaving it without an exception makes the file appear.

    Args:
        path: ``.mp4``; ``.png`` or ``.apng`` for an animated PNG; or a name without ending, or a folder that
            is there and empty, for a PNG of each frame.
        size: (width, height) in pixels; both even for MP4.
        fps: frames a second, exactly.
        recipe: kept in the file: MP4's comment, and each PNG of a folder. An animated PNG lacks it.
        crf: quality of MP4, 0 (lossless) to 51 (worst).

    Raises:
        InvalidParameterError: the path or a value cannot be.
        BackendUnavailableError: PyAV is not installed.
        OSError: there is no room, or no permission.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        size: tuple[int, int],
        fps: float,
        recipe: Mapping[str, Any] | None = None,
        crf: int = CRF,
    ) -> None:
        self.path = check_target(path)
        if not isinstance(crf, int) or isinstance(crf, bool) or not 0 <= crf <= _MOST_CRF:
            raise InvalidParameterError(f"crf={crf!r:.60} must be an integer from 0 to {_MOST_CRF}.")
        self._size = size
        self._real = self.path.resolve()  # through links, as any writer
        self._temporary = self._real.with_name(f".{self._real.name[:40]}-{os.getpid()}-{time.monotonic_ns()}")
        self._count = 0
        kind = Folder if self._real.suffix == "" else Film
        self._open: Folder | Film | None = None
        try:
            with as_os_errors():
                self._open = kind(self._temporary, self._real.suffix, size, fps, dict(recipe or {}), crf)
        except BaseException:
            self.abort()
            raise

    def add(self, frame: np.ndarray[Any, Any] | Array) -> None:
        """Take the next frame, shape (height, width, 3), uint8.

        Raises:
            InvalidParameterError: it has another shape or type.
            OSError: it cannot be written.
        """
        import numpy as np

        pixels = np.asarray(frame.numpy() if isinstance(frame, Array) else frame)
        if pixels.dtype != np.uint8 or pixels.shape != (self._size[1], self._size[0], 3):
            raise InvalidParameterError(
                f"A frame of shape {pixels.shape} and {pixels.dtype} does not go into this video.",
                hint=f"Give ({self._size[1]}, {self._size[0]}, 3) of uint8.",
            )
        assert self._open is not None
        with as_os_errors():
            self._open.add(self._count, np.ascontiguousarray(pixels))
        self._count += 1

    def commit(self) -> Path:
        """Finish the file and put it in its place.

        Raises:
            InvalidParameterError: there is no frame in it.
            OSError: it cannot be written.
        """
        try:
            if not self._count:
                raise InvalidParameterError("A video without frames cannot be written.")
            assert self._open is not None
            with as_os_errors():
                self._open.close()
                _synced(self._temporary)
                if self._real.is_dir():
                    self._real.rmdir()  # it is empty, or this raises
                self._temporary.replace(self._real)
        except BaseException:
            self.abort()
            raise
        return self.path

    def abort(self) -> None:
        """Give up: nothing stays of what was written. Harmless afterwards, and after `commit`."""
        if self._open is not None:
            self._open.drop()
        if self._temporary.is_dir():
            shutil.rmtree(self._temporary, ignore_errors=True)
        else:
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.abort()


def write_video(
    events: Iterable[Event],
    path: str | Path,
    *,
    crf: int = CRF,
    report: Callable[[Event], None] = lambda _event: None,
) -> WrittenVideo:
    """Write the frames of a running request as they come.

    Args:
        events: of a `VideoRequest`, as `VideoHandle.stream` gives them.
        path, crf: as for `VideoWriter`.
        report: is shown each event before it is written.

    Raises:
        InvalidParameterError: the path or ``crf`` cannot be; or there are no frames.
        MLXEngineError: what the request ended with.
        OSError: the file cannot be written; nothing is left of it.
    """
    check_target(path)
    writer: VideoWriter | None = None
    planned: VideoPlanned | None = None
    try:
        for event in events:
            report(event)
            if isinstance(event, VideoPlanned):
                planned = event
                size = event.width, event.height
                writer = VideoWriter(path, size=size, fps=event.fps, recipe=event.recipe, crf=crf)
            elif isinstance(event, FrameReady) and writer is not None:
                writer.add(event.pixels)
        if writer is None or planned is None:
            raise InvalidParameterError("These events hold no video.")
        target = writer.commit()
    except BaseException:
        if writer is not None:
            writer.abort()
        raise
    return WrittenVideo(
        path=target,
        width=planned.width,
        height=planned.height,
        frames=planned.frames,
        fps=planned.fps,
        recipe=planned.recipe,
    )


def check_target(path: str | Path) -> Path:
    """The path of a video, if one can be written there.

    Raises:
        InvalidParameterError: its ending is unknown, its folder is not there, or something else is.
        BackendUnavailableError: it would be one file, and PyAV is not installed.
    """
    target = Path(path).expanduser()
    try:
        target.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # what that means is said below
    except (OSError, ValueError) as error:  # too long for a name, or with a zero in it
        reason = getattr(error, "strerror", None) or error
        raise InvalidParameterError(
            f"{target.name[:60]!r} … cannot be written: {reason}.", hint="Give it another name."
        ) from error
    if target.suffix and target.suffix.lower() not in _ENDINGS:
        raise InvalidParameterError(
            f"{target.name!r} does not end like a video that can be written.",
            hint="Write for example video.mp4, video.png (animated), or a folder's name for PNGs.",
        )
    if not os.access(target.parent, os.W_OK) or not target.parent.is_dir():
        raise InvalidParameterError(f"{target} cannot be written.", hint="Name a file in an existing folder.")
    if target.is_dir() and (target.suffix or any(target.iterdir())):
        raise InvalidParameterError(
            f"{target} is a folder that is not empty." if not target.suffix else f"{target} is a folder.",
            hint="Name another one.",
        )
    if target.exists() and not (target.is_dir() or target.is_file()):
        raise InvalidParameterError(f"{target} is no file: a video cannot be written to a pipe or a device.")
    if target.is_file() and not target.suffix:
        raise InvalidParameterError(f"{target} is a file, not a folder.", hint="Name one, or write a .mp4.")
    if target.suffix:
        ffmpeg()  # else it were missed when the model is fetched and loaded
    return target


def read_recipe(path: str | Path) -> Mapping[str, Any]:
    """The recipe that an MP4 of ours holds.

    Raises:
        ModelNotFoundError: there is no such file.
        InvalidParameterError: it is no video, or holds no recipe.
        BackendUnavailableError: PyAV is not installed.
    """
    source = Path(path).expanduser()
    av = ffmpeg()
    if not source.is_file():
        raise ModelNotFoundError(f"There is no file {source}.")
    try:
        with av.open(str(source)) as box:
            comment = box.metadata.get("comment", "null")
    except (OSError, ValueError, av.FFmpegError) as error:
        raise InvalidParameterError(f"{source.name} cannot be read as a video: {error}.") from error
    try:
        found = json.loads(comment)
    except (ValueError, RecursionError):  # a comment of others
        found = None
    recipe = found.get(RECIPE_KEY) if isinstance(found, dict) else None
    if not isinstance(recipe, dict):
        raise InvalidParameterError(
            f"{source.name} holds no recipe.", hint="An MP4 that MLXEngine wrote holds one."
        )
    frozen_recipe: Mapping[str, Any] = freeze(recipe)
    return frozen_recipe


def _synced(path: Path) -> None:
    """Make what was written survive a power cut."""
    for item in [*path.iterdir()] if path.is_dir() else [path]:
        with item.open("rb") as handle:
            os.fsync(handle.fileno())


__all__ = ["CRF", "VideoWriter", "WrittenVideo", "check_target", "read_recipe", "write_video"]
