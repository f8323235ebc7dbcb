"""How the command line asks a video model, measures it, loads it with less, and what stands in for one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve
from mlxengine import (
    Answer,
    Array,
    Asking,
    Event,
    Feature,
    Finished,
    Lesser,
    Measuring,
    Mock,
    Option,
    Progress,
    Request,
    Wanted,
)
from mlxengine.contract.features import Level
from mlxengine.contract.kinds import pixels, positive
from mlxengine.errors import InvalidParameterError

from .features import KEEP_LOADED, RESERVE
from .handle import VideoHandle
from .types import FrameReady, VideoPlanned, VideoReady, VideoRequest, VideoUsage
from .writing import check_target, write_video

_SMALLER = (((832, 480), 81), ((832, 480), 33), ((416, 240), 33), ((208, 112), 9))


def degrade(wanted: Wanted) -> Iterator[Lesser]:
    """What was asked for, then parts that are read for their stage, then room for smaller videos.

    Parts first: to read them again takes seconds, and a video takes minutes. A request is held to the room
    that there is, whatever was made. Flags that anybody set are left alone.
    """
    staged = not wanted.features.get(KEEP_LOADED)
    asked = evolve(wanted.workload, staged=staged)
    yield Lesser(words="", workload=asked)
    words: list[str] = []
    features: dict[str, Any] = {}
    if not staged and _free(wanted, KEEP_LOADED):
        asked = evolve(asked, staged=True)
        words.append("parts that are read one after the other for each video")
        features[KEEP_LOADED.name] = False
        yield Lesser(words=words[0], workload=asked, features=dict(features))
    if _free(wanted, RESERVE):
        for (width, height), frames in _SMALLER:
            room = f"room for videos of {frames} frames of {width} × {height}"
            yield Lesser(
                words=" and ".join([*words, room]),
                workload=evolve(asked, size=(width, height), frames=frames),
                features={**features, RESERVE.name: f"{width}x{height}x{frames}"},
            )


def _free(wanted: Wanted, flag: Feature[Any]) -> bool:
    return wanted.features.explain(flag).source is Level.DEFAULT  # nobody said it


class _Asking(Asking):
    options = (
        Option(flag="--output", short="-o", type=Path, metavar="FILE", help="where the video goes"),
        Option(flag="--size", type=pixels, metavar="WxH", help="of the video"),
        Option(flag="--frames", type=positive, metavar="N", help="of the video"),
        Option(flag="--steps", type=int),
        Option(flag="--guidance", type=float),
        Option(flag="--negative", metavar="TEXT", help="what the video should not show"),
        Option(flag="--seed", type=int, help="makes the video repeatable"),
    )

    def request(self, words: Sequence[str], options: Mapping[str, Any]) -> Request:
        if options["output"] is None:
            raise InvalidParameterError("A video needs a file to go to.", hint="Add --output video.mp4.")
        check_target(options["output"])
        names = ("negative", "size", "frames", "steps", "guidance", "seed")
        return VideoRequest(prompt=" ".join(words), **{name: options[name] for name in names})

    def answer(self, events: Sequence[Event], options: Mapping[str, Any]) -> Answer:
        try:
            written = write_video(events, options["output"])
        except OSError as error:
            raise InvalidParameterError(f"{options['output']} cannot be written: {error}.") from error
        return Answer(
            value={"path": written.path, "recipe": written.recipe, "mock": events[-1].mock},
            text=str(written.path),
            stats=", ".join(f"{name}={value}" for name, value in written.recipe.items() if value is not None),
        )


class _Measuring(Measuring):
    options = (
        Option(flag="--steps", type=positive, default=4, metavar="N", help="of a video"),
        Option(flag="--size", type=pixels, metavar="WxH", help="of a video"),
        Option(flag="--frames", type=positive, metavar="N", help="of a video"),
    )

    def measure(self, handle: VideoHandle, options: Mapping[str, Any]) -> Mapping[str, float]:
        request = VideoRequest(
            prompt="a red circle",
            steps=options["steps"],
            size=options["size"],
            frames=options["frames"],
            seed=0,
        )
        start = time.perf_counter()
        denoised = start
        with handle.stream(request) as stream:
            for event in stream:
                if isinstance(event, Progress):
                    denoised = time.perf_counter()
        end = time.perf_counter()
        assert stream.finished is not None
        usage = stream.finished.usage
        frames = usage.frames if isinstance(usage, VideoUsage) else 0
        return {
            "video, s": end - start,
            "steps/s": options["steps"] / (denoised - start),
            "frames decoded/s": frames / (end - denoised),
            "peak memory, bytes": float(stream.finished.metrics.peak_memory_bytes or 0),
        }


class VideoMock(Mock):
    """A checkerboard in magenta and black that moves: nobody takes it for a video."""

    def generate(self, request: Request) -> Iterator[Event | None] | None:
        return _mock(request) if isinstance(request, VideoRequest) else None


def _mock(request: VideoRequest) -> Iterator[Event | None]:
    width, height = request.size or (64, 64)
    frames, steps, fps = request.frames or 5, request.steps or 2, request.fps or 8
    recipe = {"mock": True, "prompt": request.prompt, "seed": request.seed, "steps": steps}
    yield VideoPlanned(width=width, height=height, frames=frames, fps=fps, recipe=recipe, mock=True)
    for step in range(steps):
        yield Progress(stage="denoise", done=step + 1, total=steps, mock=True)
    for number in range(frames):
        cells = [bytes((255, 0, 255)) if (x + number) // 8 % 2 else bytes(3) for x in range(width + 8)]
        lines = b"".join(b"".join(cells[y // 8 % 2 * 8 :][:width]) for y in range(height))
        shown = Array(data=lines, shape=(height, width, 3), dtype="uint8")
        yield FrameReady(number=number, pixels=shown, mock=True)
    yield VideoReady(frames=frames, fps=fps, recipe=recipe, mock=True)
    yield Finished(usage=VideoUsage(steps=steps, frames=frames), mock=True)


RUN = _Asking()
BENCH = _Measuring()

__all__ = ["BENCH", "RUN", "VideoMock", "degrade"]
