"""What a video request leaves open, decided; what is wrong with it, said before anything is computed."""

from __future__ import annotations

import hashlib
import math
import re
import secrets
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from mlxengine import ModelCard
from mlxengine.errors import UnsupportedInputError

from .models import MODELS, VideoConfiguration
from .types import VideoRequest, refuse

if TYPE_CHECKING:
    import numpy as np

    from .wan import WanShape


@frozen(kw_only=True)
class Defaults:
    """What a request that leaves something open gets."""

    size: tuple[int, int]
    frames: int
    fps: float
    steps: int
    guidance: float


@frozen(kw_only=True, eq=False)
class Job:
    """A request with everything decided.

    Args:
        picture: the first frame, (height, width, 3), uint8; ``None`` without one.
        picture_sha256: of its pixels, for the recipe.
    """

    prompt: str
    negative: str | None
    size: tuple[int, int]
    frames: int
    fps: float
    steps: int
    guidance: float
    seed: int
    picture: np.ndarray[Any, Any] | None = field(default=None, repr=False)
    picture_sha256: str | None = None

    @property
    def rows(self) -> int:
        """What the denoiser is shown at once."""
        return 2 if self.guidance > 1 else 1


def defaults_for(card: ModelCard, shape: WanShape) -> Defaults:
    """The defaults of a model: the caller's configuration, else the registry's entry, else its own."""
    entry = card.configuration
    if not isinstance(entry, VideoConfiguration):
        known = MODELS.get(card.ref.repo_id or "")
        entry = known if known is not None else VideoConfiguration(id=card.id)
    return Defaults(
        size=shape.size if entry.video_size is None else entry.video_size,
        frames=shape.frames if entry.frames is None else entry.frames,
        fps=shape.fps if entry.fps is None else entry.fps,
        steps=shape.steps if entry.steps is None else entry.steps,
        guidance=shape.guidance if entry.guidance is None else entry.guidance,
    )


def reserved(text: str) -> tuple[tuple[int, int], int] | None:
    """What the flag ``video.reserve`` says, (width, height) and frames; ``None`` where it says nothing.

    Raises:
        InvalidParameterError: it cannot be read.
    """
    if not text:
        return None
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})x(\d{1,5})", text)
    if found is None or not all(map(int, found.groups())):
        raise refuse(f"video.reserve={text!r:.60} is no video.", "Write it as 832x480x81.")
    return (int(found[1]), int(found[2])), int(found[3])


def plan(request: VideoRequest, shape: WanShape, defaults: Defaults) -> Job:
    """Everything that a request leaves open, decided; everything that is wrong with it, raised.

    Raises:
        InvalidParameterError, UnsupportedInputError: it cannot be served.
    """
    guidance = defaults.guidance if request.guidance is None else request.guidance
    if request.negative is not None and guidance <= 1:
        raise refuse(f"A negative prompt has no effect at guidance {guidance:g}.", "Use a guidance above 1.")
    frames = defaults.frames if request.frames is None else request.frames
    source = _opened(request, shape)
    size = request.size
    if size is None:
        size = defaults.size if source is None else _fitted(source.size, defaults.size, shape.size_step)
    shape.latents((size[0], size[1]), frames)  # or an error that says what they have to be
    picture = None if source is None else _covering(source, (size[0], size[1]))
    return Job(
        prompt=request.prompt,
        negative=request.negative,
        size=(size[0], size[1]),
        frames=frames,
        fps=defaults.fps if request.fps is None else request.fps,
        steps=defaults.steps if request.steps is None else request.steps,
        guidance=float(guidance),
        seed=secrets.randbits(32) if request.seed is None else request.seed,
        picture=picture,
        picture_sha256=None if picture is None else hashlib.sha256(picture.tobytes()).hexdigest(),
    )


def _opened(request: VideoRequest, shape: WanShape) -> Any:
    """The picture to start from, as a PIL image; ``None`` without one."""
    if request.image is None:
        if shape.needs_picture:
            raise UnsupportedInputError(
                "This model makes video from a picture, and there is none.", hint="Give it one with image."
            )
        return None
    if not shape.takes_picture:
        raise UnsupportedInputError(
            "This model makes video from text only.",
            hint="Leave image out, or load one that takes pictures: Wan-AI/Wan2.2-TI2V-5B-Diffusers.",
        )
    from mlxengine import ImagePart
    from mlxengine.toolkit.pictures import opened

    image = request.image
    return opened(image.source if isinstance(image, ImagePart) else image)


def _fitted(own: tuple[int, int], usual: tuple[int, int], step: int) -> tuple[int, int]:
    """A size of about the usual area in nearly the ratio of a picture's sides."""
    area, ratio = usual[0] * usual[1], own[0] / own[1]
    width = max(step, round(math.sqrt(area * ratio) / step) * step)
    return width, max(step, round(width / ratio / step) * step)


def _covering(source: Any, size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """The picture scaled until it covers the size, and cut to it about its middle."""
    import numpy as np
    from PIL import Image, ImageOps

    cut = ImageOps.fit(source, size, Image.Resampling.LANCZOS)
    found: np.ndarray[Any, Any] = np.array(cut, dtype=np.uint8)
    return found


__all__ = ["Defaults", "Job", "defaults_for", "plan", "reserved"]
