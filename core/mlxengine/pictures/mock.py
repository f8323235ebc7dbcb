"""What the mock back end draws."""

from __future__ import annotations

from collections.abc import Iterator

from ..contract.events import Array, Event, Finished, Progress
from ..contract.kinds import Mock
from ..contract.requests import Request
from .outputs import ImageReady
from .requests import ImageRequest


class PictureMock(Mock):
    """A checkerboard in magenta and black: nobody takes it for a picture."""

    def generate(self, request: Request) -> Iterator[Event | None] | None:
        return _image(request) if isinstance(request, ImageRequest) else None


def _image(request: ImageRequest) -> Iterator[Event | None]:
    width, height = request.size or (64, 64)
    steps = request.steps or 2
    for number in range(request.n):
        for step in range(steps):
            yield Progress(stage="denoise", done=step + 1, total=steps, index=number, mock=True)
        row = [bytes((255, 0, 255)) if x // 8 % 2 else bytes(3) for x in range(width + 8)]
        lines = (b"".join(row[y // 8 % 2 * 8 :][:width]) for y in range(height))
        pixels = Array(data=b"".join(lines), shape=(height, width, 3), dtype="uint8")
        recipe = {"mock": True, "prompt": request.prompt, "seed": request.seed, "steps": steps}
        yield ImageReady(pixels=pixels, recipe=recipe, index=number, mock=True)
    yield Finished(mock=True)


__all__ = ["PictureMock"]
