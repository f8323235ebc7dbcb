"""What `load` returns for a model that makes video, and the video itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from attrs import field, frozen
from mlxengine import Array, AsyncModelHandle, Event, ModelHandle
from mlxengine.errors import InvalidParameterError
from mlxengine.readonly import freeze

from .types import FrameReady, VideoPlanned, VideoRequest
from .writing import CRF, VideoWriter, WrittenVideo, check_target, write_video

if TYPE_CHECKING:
    import numpy as np


@frozen(kw_only=True)
class Video:
    """A finished video in memory, and the recipe that makes it again.

    Args:
        frames: each of shape (height, width, 3), uint8.
        fps: frames a second.
        recipe: prompt, size, seed and the rest.
    """

    frames: tuple[Array, ...] = field(repr=lambda value: f"<{len(value)}>")
    fps: float
    recipe: Mapping[str, Any] = field(factory=dict, converter=freeze)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.frames[0].shape[1], self.frames[0].shape[0]

    @property
    def seconds(self) -> float:
        """How long it plays."""
        return len(self.frames) / self.fps

    def numpy(self) -> np.ndarray[Any, Any]:
        """The frames as one array (frames, height, width, 3) of uint8."""
        import numpy as np

        found: np.ndarray[Any, Any] = np.stack([frame.numpy() for frame in self.frames])
        return found

    def save(self, path: str | Path, *, crf: int = CRF) -> Path:
        """Write the video; see `VideoWriter` for what the name's ending says.

        A file that is there already stays until the new one is whole.

        Raises:
            InvalidParameterError: the path or ``crf`` cannot be.
            OSError: the file cannot be written.
        """
        with VideoWriter(path, size=self.size, fps=self.fps, recipe=self.recipe, crf=crf) as writer:
            for frame in self.frames:
                writer.add(frame)
        return writer.path


class VideoOptions(TypedDict, total=False):
    """What a call may say about a video; `VideoRequest` says what each means. Left out: the model's own."""

    negative: str | None
    size: tuple[int, int] | None
    frames: int | None
    fps: float | None
    steps: int | None
    guidance: float | None
    seed: int | None
    image: Any


def video_request(prompt: str, options: VideoOptions) -> VideoRequest:
    """A prompt and its options as a request.

    Raises:
        InvalidParameterError: an option is unknown, or a value cannot be.
    """
    for name in options:
        if name not in VideoOptions.__annotations__:
            known = ", ".join(VideoOptions.__annotations__)
            raise InvalidParameterError(f"Unknown parameter {name!r}.", hint=f"Known: {known}.")
    return VideoRequest(prompt=prompt, **options)


class VideoHandle(ModelHandle):
    """A loaded video model. `stream` a `VideoRequest` to see each step, and each frame as it is there."""

    def video(self, prompt: str, **options: Unpack[VideoOptions]) -> Video:
        """Make a video and keep it in memory.

        Raises:
            InvalidParameterError, UnsupportedInputError: a value is bad, or the model cannot do it.
            InsufficientMemoryError: there is no memory for so many frames of this size.
            MLXEngineError: what the request ended with.
        """
        return _video(self.run(video_request(prompt, options)).events)

    def write(
        self,
        path: str | Path,
        prompt: str,
        *,
        crf: int = CRF,
        report: Callable[[Event], None] = lambda _event: None,
        **options: Unpack[VideoOptions],
    ) -> WrittenVideo:
        """Make a video and write it as its frames come, so that they are never all in memory.

        Args:
            path, crf: as for `VideoWriter`.
            report: is shown each event, `Progress` among them.

        Raises:
            InvalidParameterError, UnsupportedInputError: a value is bad, or the model cannot do it.
            InsufficientMemoryError: there is no memory for so many frames of this size.
            MLXEngineError: what the request ended with.
            OSError: the file cannot be written; the request is cancelled, and nothing is left of it.
        """
        request = video_request(prompt, options)
        check_target(path)
        with self.stream(request) as stream:
            return write_video(stream, path, crf=crf, report=report)


class AsyncVideoHandle(AsyncModelHandle):
    """A loaded video model, for asyncio. `stream` a `VideoRequest` to have each frame as it is there."""

    async def video(self, prompt: str, **options: Unpack[VideoOptions]) -> Video:
        """See `VideoHandle.video`."""
        return _video((await self.run(video_request(prompt, options))).events)


def _video(events: Iterable[Event]) -> Video:
    frames: list[Array] = []
    planned: VideoPlanned | None = None
    for event in _known(events):
        if isinstance(event, VideoPlanned):
            planned = event
        else:
            frames.append(event.pixels)
    assert planned is not None
    return Video(frames=tuple(frames), fps=planned.fps, recipe=planned.recipe)


def _known(events: Iterable[Event]) -> Iterator[VideoPlanned | FrameReady]:
    return (event for event in events if isinstance(event, VideoPlanned | FrameReady))


__all__ = ["AsyncVideoHandle", "Video", "VideoHandle", "VideoOptions", "WrittenVideo", "video_request"]
