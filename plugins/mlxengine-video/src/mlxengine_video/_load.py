"""Loading: the networks are built lazily here, and evaluated on the scheduler's thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from typing import Any

from mlxengine import LoadContext, Loaded, ModelCard, ModelState
from mlxengine.errors import InsufficientMemoryError

from ._generate import Making, VideoModel
from ._layout import Layout, layout
from ._memory import Shape, estimate
from ._plan import Defaults, Job, defaults_for, plan, reserved
from .features import DTYPE, KEEP_LOADED, RESERVE
from .types import VideoRequest


def load(card: ModelCard, context: LoadContext) -> Loaded:
    """Build a model.

    Raises:
        UnsupportedArchitectureError, IncompatibleWeightsError, BackendUnavailableError: it cannot be.
    """
    # Before anything imports mlx: its products are many times slower without.
    from mlxengine.toolkit import blas
    from mlxengine.toolkit.loading import building

    blas.load()
    # As the library does when it is imported: a tokenizer alone is used, and needs no PyTorch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    with building(card.id):
        from .wan import Wan

        asked = str(context.features.get(DTYPE))
        keep = context.features.get(KEEP_LOADED)
        wan = Wan.load(context.path, dtype=None if asked == "auto" else asked, keep=keep)
        found = layout(card)
        defaults = defaults_for(card, wan.shape)
    library = f"mlx-video-with-audio {version('mlx-video-with-audio')}"
    model = VideoModel(
        wan=wan,
        card=card,
        defaults=defaults,
        library=library,
        room=Room(found, defaults, context).take,
    )
    return Loaded(
        model=model,
        warm=wan.warm(),
        warm_up=partial(_warm_up, model),
        close=model.close,
        state=lambda: ModelState(requests=sum(model.beyond)),
        capabilities=frozenset({"image_to_video"} if wan.shape.takes_picture else ()),
        info={
            "library": library,
            "size": defaults.size,
            "frames": defaults.frames,
            "fps": defaults.fps,
            "steps": defaults.steps,
            "guidance": defaults.guidance,
        },
    )


def _warm_up(model: VideoModel) -> Iterator[None]:
    """A step of the smallest video that has every stage: what the device builds does not go by the size."""
    import numpy as np

    wan = model.wan
    assert wan is not None
    side, frames = 2 * wan.shape.size_step, 1 + wan.shape.time_stride
    picture: Any = np.zeros((side, side, 3), np.uint8) if wan.shape.needs_picture else None
    request = VideoRequest(prompt="a", size=(side, side), frames=frames, steps=1, seed=0, image=picture)
    for _ in Making(model, plan(request, wan.shape, model.defaults), 0):
        yield None


class Room:
    """What videos may take beside the weights, by the engine's account."""

    def __init__(self, found: Layout, defaults: Defaults, context: LoadContext) -> None:
        self._layout, self._context = found, context
        size, frames = reserved(str(context.features.get(RESERVE))) or (defaults.size, defaults.frames)
        self._reserved = self._taken(size, frames, 2, pictured=False)

    def _taken(self, size: tuple[int, int], frames: int, rows: int, *, pictured: bool) -> int:
        shape = Shape(
            size=size,
            frames=frames,
            rows=rows,
            pictured=pictured,
            on_cpu=self._context.device.backend == "cpu",
            staged=not self._context.features.get(KEEP_LOADED),
            dtype=str(self._context.features.get(DTYPE)),
        )
        return estimate(self._layout, shape).workspace

    def take(self, job: Job) -> int:
        """Bytes that a video takes beyond what was reserved for usual ones.

        Raises:
            InsufficientMemoryError: they are not there.
        """
        taken = partial(self._taken, job.size, rows=job.rows, pictured=job.picture is not None)
        wanted = taken(job.frames)
        free = self._context.cache_room()
        if free is None or wanted <= (there := self._reserved + max(0, free)):
            return max(0, wanted - self._reserved)
        shorter = range(job.frames, 0, -self._layout.shape.time_stride)
        fits = next((n for n in shorter if taken(n) <= there), None)
        width, height = job.size
        raise InsufficientMemoryError(
            f"A video of {job.frames} frames of {width} × {height} takes about {wanted / 1e9:.1f} GB "
            f"beside the weights, and {there / 1e9:.1f} GB are there.",
            hint="Ask for a smaller size, or close other models."
            if fits is None
            else f"{fits} frames of this size fit; or ask for a smaller size, or close other models.",
        )


__all__ = ["load"]
