"""A video request into events: one denoising step a turn, then the frames as they are decoded."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from attrs import define, field
from mlxengine import Array, Event, Finished, ModelCard, Progress, RunContext

from ._plan import Defaults, Job, plan
from .features import IMAGE_TO_VIDEO, TEXT_TO_VIDEO
from .types import FrameReady, VideoPlanned, VideoReady, VideoRequest, VideoUsage

if TYPE_CHECKING:
    from .wan import Wan


def always(_job: Job) -> int:
    """There is memory for everything."""
    return 0


@define(kw_only=True, eq=False)
class VideoModel:
    """What the plugin's ``load_model`` returns to itself.

    Args:
        room: bytes that a video takes beyond what is set aside; raises where they are not there.
        beyond: these, of each video that is being made.
    """

    wan: Wan | None
    card: ModelCard
    defaults: Defaults
    library: str
    room: Callable[[Job], int] = always
    beyond: list[int] = field(factory=list)

    def close(self) -> None:
        """Let go of the weights."""
        self.wan = None


def generate(model: VideoModel, request: VideoRequest, context: RunContext) -> Iterator[Event | None]:
    """Check the request and return the iterator that serves it.

    Raises:
        InvalidParameterError, UnsupportedInputError, FeatureUnavailableError: it cannot be served.
        InsufficientMemoryError: there is no memory for it.
    """
    assert model.wan is not None
    context.features.require(TEXT_TO_VIDEO)
    if request.image is not None:
        context.features.require(IMAGE_TO_VIDEO)
    job = plan(request, model.wan.shape, model.defaults)
    return Making(model, job, model.room(job))


class Making(Iterator[Event | None]):
    """One video; ``usage`` says how far it came, also where it is cancelled."""

    def __init__(self, model: VideoModel, job: Job, beyond: int) -> None:
        self._steps = self._frames = 0
        self._events = self._run(model, job, beyond)

    def __next__(self) -> Event | None:
        return next(self._events)

    def close(self) -> None:
        """Cancel: what was computed is let go of."""
        self._events.close()

    @property
    def usage(self) -> VideoUsage:
        """What was used so far."""
        return VideoUsage(steps=self._steps, frames=self._frames)

    def _run(self, model: VideoModel, job: Job, beyond: int) -> Generator[Event | None, None, None]:
        model.beyond.append(beyond)
        try:
            yield from self._made(model, job)
        finally:
            model.beyond.remove(beyond)

    def _made(self, model: VideoModel, job: Job) -> Generator[Event | None, None, None]:
        wan, made_by = model.wan, recipe(model, job)
        assert wan is not None
        width, height = job.size
        yield VideoPlanned(width=width, height=height, frames=job.frames, fps=job.fps, recipe=made_by)
        told = wan.prompts(job.prompt, job.negative)
        yield None
        latents: Any = None
        for found in wan.denoise(
            told,
            size=job.size,
            frames=job.frames,
            steps=job.steps,
            guidance=job.guidance,
            seed=job.seed,
            picture=job.picture,
        ):
            latents = found
            self._steps += 1
            yield Progress(stage="denoise", done=self._steps, total=job.steps)
        del told
        for frame in wan.decode(latents):
            pixels = Array(data=frame.tobytes(), shape=frame.shape, dtype="uint8")
            self._frames += 1
            yield FrameReady(number=self._frames - 1, pixels=pixels)
        yield VideoReady(frames=self._frames, fps=job.fps, recipe=made_by)
        yield Finished(usage=self.usage)


def recipe(model: VideoModel, job: Job) -> dict[str, Any]:
    """What makes the same video again: plain values, for JSON."""
    card = model.card
    found = {
        "prompt": job.prompt,
        "width": job.size[0],
        "height": job.size[1],
        "frames": job.frames,
        "fps": job.fps,
        "steps": job.steps,
        "guidance": job.guidance,
        "seed": job.seed,
        "model": card.id,
        "library": model.library,
        "plugin": f"mlxengine-video {version('mlxengine-video')}",
    }
    if card.ref.repo_id:
        found["commit"] = card.commit
    if job.negative is not None:
        found["negative"] = job.negative
    if job.picture_sha256 is not None:
        found["image_sha256"] = job.picture_sha256
    return found


__all__ = ["Making", "VideoModel", "generate", "recipe"]
