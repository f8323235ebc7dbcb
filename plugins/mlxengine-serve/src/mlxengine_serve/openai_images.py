"""OpenAI's pictures: a prompt in, PNG files in base64 out, with previews where they are asked for."""

from __future__ import annotations

import base64
import time
from typing import Any

from mlxengine import AsyncImageHandle, Event, Finished, ImagePreview, ImageReady, ImageRequest, TokenUsage
from mlxengine.contract.events import Array, Usage
from mlxengine.contract.kinds import pixels

from ._answers import Asked, Dialect
from ._asking import seed_of
from ._chat_stream import COMMENT
from ._fields import Field, Fields, Table, callers, honoured, refused
from ._png import png
from ._refusals import Refusal, encoded, openai_form

_STEPS = 20

BEYOND = (
    honoured("negative_prompt", ours="negative"),
    honoured("steps"),
    honoured("guidance"),
    honoured("seed", "Picture i of n has the seed i further."),
    honoured("scheduler"),
)
"""Parameters that OpenAI's own pictures lack."""

SHARED = (
    refused("background", "Pictures are opaque.", "auto", "opaque"),
    refused("complexity", "Say steps."),
    refused("frame_count", "One picture has one frame.", 1),
    refused("frame_duration_ms", "Pictures do not move."),
    honoured("model", "A served model's name or alias; left out, it is the first one."),
    honoured("n"),
    refused("output_compression", "PNG loses nothing.", 100),
    refused("output_format", "Pictures are PNG files.", "png"),
    honoured(
        "partial_images",
        "So many previews of a stream, where steps says how many steps there are.",
        "preview_every",
    ),
    refused("quality", "Say steps.", "auto", "standard"),
    refused("response_format", "Pictures come in base64.", "b64_json"),
    callers("safety_identifier", "Nothing is sent anywhere."),
    honoured("stream"),
    refused("svg", "Pictures are made of pixels."),
    callers("user", "Nothing is sent anywhere."),
)
"""What pictures and edits of them have in common."""


def by_name(*fields: Field) -> tuple[Field, ...]:
    """Fields as OpenAI lists those that may be left out."""
    return tuple(sorted(fields, key=lambda item: item.name))


TABLE = Table(
    "OpenAI images",
    "/v1/images/generations",
    (
        honoured("prompt"),
        *by_name(
            *SHARED,
            refused("effort", "Say steps."),
            callers("moderation", "Nothing is moderated."),
            refused("reasoning", "Nobody thinks about a picture."),
            honoured("size", "WIDTHxHEIGHT, or auto, which is the model's own.", "size width height"),
            refused("style", "Say it in the prompt."),
        ),
    ),
    BEYOND,
)


def read(body: dict[str, Any], request_id: str) -> Asked:  # noqa: ARG001 - the answer has no id
    """A body as what the engine is asked.

    Raises:
        Refusal: 400, with the field that is wrong.
    """
    unknown = TABLE.check(body)
    fields = Fields(body)
    streamed, previews, values = parameters(fields)
    return Asked(
        model=fields.text("model"),
        requests=(ImageRequest(**values),),
        handle=AsyncImageHandle,
        gives="pictures",
        whole=whole,
        writer=PictureStream("image_generation", previews) if streamed else None,
        unknown=unknown,
        aside=True,
    )


def parameters(fields: Fields) -> tuple[bool, int, dict[str, Any]]:
    """Whether a stream is wanted, how many previews in it, and a request's arguments.

    Raises:
        Refusal: 400, with the field that is wrong.
    """
    count, steps, previews = (fields.integer(name) for name in ("n", "steps", "partial_images"))
    for name, value in (("n", count), ("steps", steps)):
        if value is not None and value < 1:
            raise fields.wrong(name, f"{name} is a number from 1.")
    streamed = fields.flag("stream") or False
    if previews and not streamed:
        raise fields.wrong("partial_images", "partial_images goes with stream: true.")
    return (
        streamed,
        previews or 0,
        {
            "prompt": fields.need("prompt"),
            "negative": fields.text("negative_prompt"),
            "size": _size(fields),
            "steps": steps,
            "guidance": fields.number("guidance"),
            "seed": seed_of(fields),
            "scheduler": fields.text("scheduler"),
            "n": count or 1,
            "preview_every": max(1, (steps or _STEPS) // (previews + 1)) if previews else 0,
        },
    )


def _size(fields: Fields) -> tuple[int, int] | None:
    said = fields.text("size")
    if said in (None, "auto"):
        return None
    try:
        return pixels(said)
    except ValueError as error:
        raise fields.wrong("size", f"{error}.") from None


def whole(events: list[Event]) -> dict[str, Any]:
    """The answer of all events."""
    ready = sorted((event for event in events if isinstance(event, ImageReady)), key=lambda item: item.index)
    return {
        "created": int(time.time()),
        "data": [{"b64_json": _file(event.pixels)} for event in ready],
        "output_format": "png",
        "background": "opaque",
        "size": _shown(ready[0].pixels) if ready else None,
    }


def _file(picture: Array) -> str:
    return base64.b64encode(png(picture)).decode()


def _shown(picture: Array) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"


class PictureStream:
    """Previews and pictures as they are made; the last one waits for what was counted.

    Args:
        kind: what the events' names begin with.
        previews: how many are shown of each picture.
    """

    def __init__(self, kind: str, previews: int) -> None:
        self._kind = kind
        self._previews = previews
        self._shown: dict[int, int] = {}
        self._ready: list[ImageReady] = []

    def open(self) -> bytes:
        """Nothing: the first picture says enough."""
        return b""

    def beat(self) -> bytes:
        """A comment."""
        return COMMENT

    def event(self, event: Event) -> bytes:
        """The frames of an event."""
        if isinstance(event, ImagePreview):
            number = self._shown.get(event.index, 0)
            self._shown[event.index] = number + 1
            if number >= self._previews:
                return b""
            return _frame(f"{self._kind}.partial_image", event.pixels, partial_image_index=number)
        if isinstance(event, ImageReady):
            self._ready.append(event)
            return b""
        if isinstance(event, Finished):
            usage = _usage(event.usage)
            return b"".join(
                _frame(f"{self._kind}.completed", item.pixels, usage=usage)
                for item in sorted(self._ready, key=lambda item: item.index)
            )
        return b""

    def fail(self, refusal: Refusal, request_id: str) -> bytes:
        """What went wrong, as their clients expect it."""
        return (
            b"event: error\ndata: " + encoded({"type": "error", **openai_form(refusal, request_id)}) + b"\n\n"
        )


def _usage(usage: Usage) -> dict[str, Any]:
    tokens = TokenUsage.of(usage)
    return {
        "input_tokens": tokens.prompt_tokens,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": tokens.prompt_tokens},
        "output_tokens": tokens.completion_tokens,
        "total_tokens": tokens.total_tokens,
    }


def _frame(kind: str, picture: Array, **fields: Any) -> bytes:
    value = {
        "type": kind,
        "b64_json": _file(picture),
        "created_at": int(time.time()),
        "size": _shown(picture),
        "quality": "auto",
        "background": "opaque",
        "output_format": "png",
        **fields,
    }
    return b"event: " + kind.encode() + b"\ndata: " + encoded(value) + b"\n\n"


DIALECT = Dialect(TABLE, read)

__all__ = ["BEYOND", "DIALECT", "SHARED", "TABLE", "PictureStream", "by_name", "parameters", "read", "whole"]
