"""``POST /v1/audio/activity`` of a server: a recording in, the stretches of speech in it out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mlxengine import Event, Finished
from mlxengine_serve import Asked, Fields, Refusal

from .handle import AsyncSpeechHandle
from .types import Heard, ListenRequest, Speech

if TYPE_CHECKING:
    from mlxengine_serve import Door

PATH = "/v1/audio/activity"
FORM = {"threshold": float, "min_speech": float, "min_silence": float, "stream": bool}


def activity(door: Door) -> Any:
    """The application behind the path; the server calls this once."""
    return door.endpoint(PATH, read, form=FORM)


def read(body: dict[str, Any], _request_id: str) -> Asked:
    """A form with a WAV file in ``file``; other fields are those of `ListenRequest`."""
    fields = Fields(body)
    recording = body.get("file")
    if not isinstance(recording, bytes):
        raise fields.wrong("file", "file must be a WAV file of a multipart form.", "missing_value")
    said: dict[str, Any] = {
        name: value
        for name in ("threshold", "min_speech", "min_silence")
        if (value := fields.number(name)) is not None
    }
    return Asked(
        model=fields.text("model"),
        requests=(ListenRequest(path=recording, **said),),
        handle=AsyncSpeechHandle,
        gives="voice activity",
        whole=_whole,
        writer=_Stream() if fields.flag("stream") else None,
        unknown=[name for name in body if name not in ("file", "model", *FORM)],
    )


def _whole(events: list[Event]) -> dict[str, Any]:
    last = events[-1]
    assert isinstance(last, Finished)
    assert isinstance(last.usage, Heard)
    speech = [_segment(event) for event in events if isinstance(event, Speech)]
    return {"segments": speech, "usage": {"type": "duration", "seconds": last.usage.seconds}}


def _segment(event: Speech) -> dict[str, float]:
    return {"start": event.start, "end": event.end}


class _Stream:
    """Each stretch of speech as it ends, as a server-sent event."""

    def open(self) -> bytes:
        return b""

    def beat(self) -> bytes:
        return b": still here\n\n"

    def event(self, event: Event) -> bytes:
        if isinstance(event, Speech):
            return _frame(_segment(event))
        return b"data: [DONE]\n\n" if isinstance(event, Finished) else b""

    def fail(self, refusal: Refusal, request_id: str) -> bytes:
        return _frame({"error": {"message": refusal.message, "code": refusal.code, "request_id": request_id}})


def _frame(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"
