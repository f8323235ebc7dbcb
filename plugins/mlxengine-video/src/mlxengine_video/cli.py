"""The verb ``mlxengine video``: make a video from a prompt, or read how one was made."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import evolve
from mlxengine import Event, FitVerdict, InferenceEngine, Progress
from mlxengine.cli.verbs import Output, ProgressLine, add_model, engine, load_named
from mlxengine.contract.kinds import pixels
from mlxengine.errors import InvalidParameterError
from mlxengine.readonly import thaw

from ._layout import layout
from ._plan import defaults_for, plan
from .handle import VideoHandle
from .types import FrameReady, VideoPlanned, VideoRequest, VideoWorkload
from .writing import CRF, WrittenVideo, check_target, read_recipe, write_video

_TOLD = ("negative", "frames", "fps", "steps", "guidance", "seed")


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of ``mlxengine video``."""
    add_model(parser)
    parser.add_argument("prompt", nargs="?", help="what the video shows")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        help="file to write: .mp4, .png (animated), or a folder's name for a PNG of each frame",
    )
    parser.add_argument("--image", type=Path, help="a picture to start from")
    parser.add_argument("--negative", help="what the video should not show")
    parser.add_argument("--size", help="pixels, as 832x480")
    parser.add_argument("--frames", type=int, metavar="N", help="how many: 4 n + 1")
    parser.add_argument("--fps", type=float, metavar="X", help="frames a second")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps")
    parser.add_argument("--guidance", type=float, metavar="X", help="how strictly to follow the prompt")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed makes the same video")
    parser.add_argument(
        "--crf", type=int, default=CRF, metavar="N", help=f"quality of MP4: 0 is lossless, 51 worst; {CRF}"
    )
    parser.add_argument(
        "--recipe", type=Path, metavar="FILE", help="print how a video was made; with --out make it again"
    )


def run(options: argparse.Namespace, out: Output) -> int:
    """Make the video, or print a recipe."""
    recipe = read_recipe(options.recipe) if options.recipe else {}
    if options.recipe and options.out is None:
        found = thaw(recipe)
        out.emit(found, lambda: out.line(json.dumps(found, ensure_ascii=False, indent=2)))
        return 0
    model, request = _asked(options, recipe)
    target = check_target(options.out or _named(request.prompt))
    with engine(options, out) as loader:
        _look(loader, model, request, out)
        # Not as a context manager: to close it after Ctrl-C would wait for the step that runs.
        handle = load_named(model, loader, options, out, VideoHandle)
        try:
            with ProgressLine(out) as line, handle.stream(request) as stream:
                made = write_video(stream, target, crf=options.crf, report=Told(line, out))
        except OSError as error:
            raise InvalidParameterError(
                f"{target} cannot be written: {error.strerror or error}.",
                hint="Name a file where there is room; what was there is still there.",
            ) from error
    if recipe.get("image_sha256", made.recipe.get("image_sha256")) != made.recipe.get("image_sha256"):
        out.note("The picture of the recipe was another: this is not the same video again.")
    out.emit(_value(made), lambda: out.line(str(made.path)))
    return 0


class Told:
    """Shows how far a video is: which step, and how long the rest takes, by the steps so far."""

    def __init__(self, line: ProgressLine, out: Output) -> None:
        self._line, self._out = line, out
        self._first: tuple[float, float] | None = None
        self._frames = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, VideoPlanned):
            self._frames = event.frames
            self._out.note(
                f"{event.frames} frames of {event.width} × {event.height} at {event.fps:g} a second, "
                f"seed {event.recipe.get('seed')}"
            )
        elif isinstance(event, FrameReady):
            self._line(Progress(stage="decode", done=event.number + 1, total=self._frames))
        elif isinstance(event, Progress):
            self._line(evolve(event, stage=self._words(event)))

    def _words(self, event: Progress) -> str:
        now, total = time.monotonic(), event.total or 0
        words = f"step {event.done:.0f} of {total:.0f}"
        if self._first is None:  # the first step holds what is done but once
            self._first = now, event.done
            return words
        began, done = self._first
        left = int((total - event.done) * (now - began) / max(1, event.done - done))
        return f"{words}, {left // 60}:{left % 60:02d} left" if event.done < total else words


def _look(loader: InferenceEngine, model: str, request: VideoRequest, out: Output) -> None:
    """What is wrong with the request, and what memory it takes, before a weight is fetched or read."""
    if loader.mock:
        return
    card = loader.resolve(model)
    claim = loader.explain(card).claim
    if claim.kind != "video" or claim.problem is not None:
        return  # loading says so
    shape = layout(card).shape
    job = plan(request, shape, defaults_for(card, shape))
    found = loader.fit(card, VideoWorkload(size=job.size, frames=job.frames))
    out.note(found.explanation[1])
    if found.verdict is FitVerdict.WONT_FIT:
        out.note(found.explanation[2])


def _asked(options: argparse.Namespace, recipe: Mapping[str, Any]) -> tuple[str, VideoRequest]:
    """The model and the request: what the command line says, else the recipe."""
    prompt = options.prompt if options.prompt is not None else recipe.get("prompt")
    if prompt is None:
        raise InvalidParameterError(
            "What should the video show?", hint='Write mlxengine video "a fox runs through snow".'
        )
    if recipe.get("image_sha256") is not None and options.image is None:
        raise InvalidParameterError(
            "This video was made from a picture, which the recipe does not hold.",
            hint="Name it with --image.",
        )
    size: Any = _size(options.size)
    if size is None and recipe.get("width"):
        size = recipe["width"], recipe.get("height")
    model = options.model or recipe.get("model") or "auto:video"
    if options.model is None and recipe.get("commit") and not Path(model).exists():
        model = f"{model}@{recipe['commit']}"
    told = {name: getattr(options, name) for name in _TOLD}
    values: dict[str, Any] = {
        name: recipe.get(name) if value is None else value for name, value in told.items()
    }
    return model, VideoRequest(prompt=prompt, size=size, image=options.image, **values)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        return pixels(text.strip().replace("×", "x"))
    except ValueError as error:
        raise InvalidParameterError(f"--size {text!r} is no size.", hint="Write it as 832x480.") from error


def _named(prompt: str) -> Path:
    words = re.findall(r"\w+", prompt.lower())[:8]
    # Bounded, as names of files are to 255 bytes: a text without spaces is one word.
    return Path("-".join(words)[:60].rstrip("-") or "video").with_suffix(".mp4")


def _value(made: WrittenVideo) -> dict[str, object]:
    return {
        "path": made.path.resolve(),
        "width": made.width,
        "height": made.height,
        "frames": made.frames,
        "fps": made.fps,
        "recipe": thaw(made.recipe),
    }


__all__ = ["Told", "configure", "run"]
