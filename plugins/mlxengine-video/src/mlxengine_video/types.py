"""What can be asked of a model that makes video, what it says, and what its memory depends on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from mlxengine import Array, Event, Request, Usage, Workload
from mlxengine.errors import InvalidParameterError
from mlxengine.readonly import freeze

if TYPE_CHECKING:
    from mlxengine import Option

MOST_FRAMES = 1001
MOST_STEPS = 1000
LARGEST = 8192
MOST_FPS = 240


def refuse(message: str, hint: str | None = None) -> InvalidParameterError:
    """The error for a value that cannot be."""
    return InvalidParameterError(message, hint=hint)


def _whole(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise refuse(f"{name}={value!r:.60} must be an integer from {low} to {high}.")


def _number(name: str, value: object, low: float, high: float) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not low <= value <= high:  # type: ignore[operator]
        raise refuse(f"{name}={value!r:.60} must be a number from {low:g} to {high:g}.")


def _text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise refuse(f"{name}={value!r:.60} must be a text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise refuse(f"{name} holds half of a surrogate pair, which is no character.") from error


@frozen(kw_only=True)
class VideoRequest(Request):
    """Text (and a picture to start from) in, the frames of a video out. ``None`` is the model's own default.

    Args:
        prompt: what the video shows.
        negative: what it should not show.
        size: (width, height) in pixels.
        frames: how many; for Wan one more than a multiple of 4.
        fps: frames a second when it is played, above 0; what is in the frames does not depend on it.
        steps: denoising steps, at least 1.
        guidance: classifier-free guidance scale.
        seed: 0 is a seed.
        image: the first frame, scaled and cut to the size: whatever `ImagePart` takes.

    Raises:
        InvalidParameterError: a value that no model could serve.
    """

    prompt: str
    negative: str | None = None
    size: tuple[int, int] | None = None
    frames: int | None = None
    fps: float | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None
    image: Any = field(default=None, repr=lambda value: f"<{type(value).__name__}>")

    def __attrs_post_init__(self) -> None:
        _text("prompt", self.prompt)
        if not self.prompt.strip():
            raise refuse("The prompt is empty.", "Say what the video shows.")
        if self.negative is not None:
            _text("negative", self.negative)
        if self.size is not None:
            if not isinstance(self.size, tuple | list) or len(self.size) != 2:
                raise refuse(f"size={self.size!r:.60} must be (width, height) in pixels.")
            for name, value in zip(("width", "height"), self.size, strict=True):
                _whole(name, value, 1, LARGEST)
        if self.frames is not None:
            _whole("frames", self.frames, 1, MOST_FRAMES)
        if self.fps is not None:
            _number("fps", self.fps, 0.1, MOST_FPS)
        if self.steps is not None:
            _whole("steps", self.steps, 1, MOST_STEPS)
        if self.guidance is not None:
            _number("guidance", self.guidance, 0, 1000)
        if self.seed is not None:
            if self.seed == -1:  # elsewhere it stands for any
                raise refuse("seed=-1 is none.", "Leave it out, and every video gets another one.")
            _whole("seed", self.seed, 0, 2**64 - 1)


@frozen(kw_only=True)
class VideoPlanned(Event):
    """What is going to be made, before anything is computed.

    Args:
        width, height: in pixels.
        frames: how many `FrameReady` events will come.
        fps: frames a second.
        recipe: what makes the same video again.
    """

    width: int
    height: int
    frames: int
    fps: float
    recipe: Mapping[str, Any] = field(factory=dict, converter=freeze)


@frozen(kw_only=True)
class FrameReady(Event):
    """A finished frame, shape (height, width, 3), uint8; ``number`` counts from 0."""

    number: int
    pixels: Array


@frozen(kw_only=True)
class VideoReady(Event):
    """All frames have come; the recipe is that of `VideoPlanned`."""

    frames: int
    fps: float
    recipe: Mapping[str, Any] = field(factory=dict, converter=freeze)


@frozen(kw_only=True)
class VideoUsage(Usage):
    """What a request counts: denoising steps, and frames that were decoded."""

    steps: int = 0
    frames: int = 0


@frozen(kw_only=True)
class VideoWorkload(Workload):
    """What the estimate of a video model is for.

    Args:
        size: (width, height) in pixels (``None``: the model's own).
        frames: of one video (``None``: the model's own).
        staged: whether each part is in memory for its stage alone, so that the largest counts, not all.
    """

    size: tuple[int, int] | None = None
    frames: int | None = None
    staged: bool = False

    @classmethod
    def options(cls) -> Sequence[Option]:
        from mlxengine import Option
        from mlxengine.contract.kinds import pixels, positive

        return (
            *super().options(),
            Option(flag="--size", type=pixels, metavar="WxH", help="of a video, in pixels"),
            Option(flag="--frames", type=positive, metavar="N", help="of a video"),
        )


__all__ = [
    "FrameReady",
    "VideoPlanned",
    "VideoReady",
    "VideoRequest",
    "VideoUsage",
    "VideoWorkload",
]
