"""How a model that makes pictures is asked and measured from the command line."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..contract.events import Event
from ..contract.kinds import Answer, Asking, Measuring, Option, pixels, positive
from ..contract.requests import Request
from ..errors import InvalidParameterError
from .handle import ImageHandle, Picture, picture_format
from .outputs import ImageReady
from .requests import ImageRequest


class _Asking(Asking):
    options = (
        Option(flag="--output", short="-o", type=Path, metavar="FILE", help="where the picture goes"),
        Option(flag="--size", type=pixels, metavar="WxH", help="of the picture"),
        Option(flag="--steps", type=int),
        Option(flag="--guidance", type=float),
        Option(flag="--negative", metavar="TEXT", help="what the picture should not show"),
        Option(flag="--seed", type=int, help="makes the picture repeatable"),
    )

    def request(self, words: Sequence[str], options: Mapping[str, Any]) -> Request:
        output: Path | None = options["output"]
        if output is None:
            raise InvalidParameterError("A picture needs a file to go to.", hint="Add --output picture.png.")
        if not output.absolute().parent.is_dir():
            raise InvalidParameterError(f"There is no folder {output.parent}.", hint="Make it first.")
        picture_format(output)
        return ImageRequest(
            prompt=" ".join(words),
            **{name: options[name] for name in ("negative", "size", "steps", "guidance", "seed")},
        )

    def answer(self, events: Sequence[Event], options: Mapping[str, Any]) -> Answer:
        ready = next(event for event in reversed(events) if isinstance(event, ImageReady))
        try:
            path = Picture(pixels=ready.pixels, recipe=ready.recipe).save(options["output"])
        except (OSError, ValueError) as error:  # no such format, no space
            raise InvalidParameterError(f"{options['output']} cannot be written: {error}.") from error
        return Answer(
            value={"path": path, "recipe": ready.recipe, "mock": ready.mock},
            text=str(path),
            stats=", ".join(f"{name}={value}" for name, value in ready.recipe.items() if value is not None),
        )


class _Measuring(Measuring):
    options = (
        Option(flag="--steps", type=positive, default=4, metavar="N", help="of a picture"),
        Option(flag="--size", type=pixels, metavar="WxH", help="of a picture"),
    )

    def measure(self, handle: ImageHandle, options: Mapping[str, Any]) -> Mapping[str, float]:
        steps = options["steps"]
        request = ImageRequest(prompt="a red circle", steps=steps, size=options["size"], seed=0)
        start = time.perf_counter()
        result = handle.run(request)
        seconds = time.perf_counter() - start
        peak = float(result.metrics.peak_memory_bytes or 0)
        return {"picture, s": seconds, "steps/s": steps / seconds, "peak memory, bytes": peak}


RUN = _Asking()
BENCH = _Measuring()

__all__ = ["BENCH", "RUN"]
