"""Sound by a plugin's own paths: forms, files, other answers than JSON, streams; the server knows of none."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import mlxengine_audio.plugin
import openai
import pytest
from attrs import frozen
from mlxengine import (
    AsyncModelHandle,
    AsyncTextHandle,
    Event,
    Finished,
    Request,
    Route,
    TextDelta,
    TextRequest,
    hookimpl,
)
from mlxengine_serve import Asked, Content, Door, Fields, Refusal, ServerOptions
from serve_harness import Scripted, Served, said, serving, write_model

AUDIO = Path(mlxengine_audio.__file__).parents[2] / "tests"
ACTIVITY = "/v1/audio/activity"
SPEECH, TRANSCRIPTIONS = "/v1/audio/speech", "/v1/audio/transcriptions"


# -- the example plugin -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    talker = write_model(tmp_path_factory.mktemp("models") / "talker")
    options = ServerOptions(models=[f"vad={AUDIO / 'specimen'}", f"talker={talker}"])
    with serving(options, plugins=[("audio", mlxengine_audio.plugin), ("scripted", Scripted())]) as made:
        made.wait_until(lambda: made.get("/ready").status_code == 200, 60)
        yield made


def recording(name: str = "two-sentences.wav") -> dict[str, Any]:
    return {"file": (name, (AUDIO / name).read_bytes(), "audio/wav")}


def test_the_example_plugins_path_hears_what_python_hears(listener: Served) -> None:
    handle: Any = listener.engine.sync.load(AUDIO / "specimen")
    wanted = handle.listen(AUDIO / "two-sentences.wav", min_silence=0.3)
    answer = listener.client.post(ACTIVITY, files=recording(), data={"min_silence": "0.3", "odd": "1"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["segments"] == [{"start": item.start, "end": item.end} for item in wanted]
    assert len(wanted) == 2
    assert answer.json()["usage"] == {"type": "duration", "seconds": pytest.approx(6.247625)}
    assert answer.headers["x-mlxengine-ignored"] == "odd"


def test_it_streams_each_stretch_as_it_ends(listener: Served) -> None:
    whole = listener.client.post(ACTIVITY, files=recording(), data={"model": "vad"}).json()["segments"]
    answer = listener.client.post(ACTIVITY, files=recording(), data={"stream": "true"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    frames = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert [json.loads(frame) for frame in frames[:-1]] == whole
    assert frames[-1] == "[DONE]"


def test_what_it_cannot_hear_has_the_servers_own_errors(listener: Served) -> None:
    def status(files: Any, **fields: str) -> tuple[int, str | None]:
        answer = listener.client.post(ACTIVITY, files=files, data=fields)
        return answer.status_code, answer.json()["error"]["param"]

    assert status({"other": ("a", b"x")}) == (400, "file")
    assert status({"file": ("a.wav", b"no sound")}) == (400, None)
    assert status(recording(), threshold="high") == (400, "threshold")
    assert status(recording(), threshold="2") == (400, None)
    assert status(recording(), model="talker") == (400, "model")
    assert status(recording(), model="nothing") == (404, "model")
    named = listener.client.post(ACTIVITY, data={"file": "/etc/passwd"}, files={"x": ("x", b"x")})
    assert named.status_code == 400, "nothing is opened because a client names it"
    assert "/v1/audio/activity" in listener.get("/metrics").text


def test_any_request_of_the_kind_still_goes_without_the_path(listener: Served) -> None:
    import base64

    data = base64.b64encode((AUDIO / "two-sentences.wav").read_bytes()).decode()
    answer = listener.post("/v1/engine/ListenRequest", {"request": {"path": {"base64": data}}})
    assert {event["type"] for event in answer.json()["events"]} == {"Voice", "Speech", "Finished"}


# -- a stranger's plugin, by OpenAI's paths ------------------------------------------------------------------


@frozen(kw_only=True)
class HearRequest(Request):
    """A recording to write down."""

    recording: bytes


class Speaks(Scripted):
    """Says and writes down by paths that the server has not."""

    @hookimpl
    def list_routes(self) -> Sequence[Route]:
        return [
            Route(path=SPEECH, target="speaking_routes:speech"),
            Route(path=TRANSCRIPTIONS, target="speaking_routes:transcriptions"),
        ]


def _speech(body: dict[str, Any], _request_id: str) -> Asked:
    fields = Fields(body)
    if fields.text("response_format") not in (None, "wav"):
        raise fields.wrong("response_format", "Sound is WAV.")
    return Asked(
        model=fields.text("model"),
        requests=(TextRequest(prompt=fields.need("input")),),
        handle=AsyncTextHandle,
        gives="speech",
        whole=lambda events: Content(_texts(events).encode(), "audio/wav"),
    )


def _transcription(body: dict[str, Any], _request_id: str) -> Asked:
    fields = Fields(body)
    file = body.get("file")
    if not isinstance(file, bytes):
        raise Refusal(400, "file is missing.", param="file")
    return Asked(
        model=fields.text("model"),
        requests=(HearRequest(recording=file),),
        handle=AsyncModelHandle,
        gives="transcriptions",
        whole=_plain if fields.text("response_format") == "text" else _object,
        writer=_Stream() if fields.flag("stream") else None,
    )


def _plain(events: Sequence[Event]) -> Content:
    return Content(_texts(events).encode(), "text/plain")


def _object(events: Sequence[Event]) -> dict[str, str]:
    return {"text": _texts(events)}


def _texts(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


class _Stream:
    def __init__(self) -> None:
        self._text = ""

    def open(self) -> bytes:
        return b""

    def beat(self) -> bytes:
        return b": still here\n\n"

    def event(self, event: Event) -> bytes:
        if isinstance(event, TextDelta):
            self._text += event.text
            return self._frame("transcript.text.delta", delta=event.text)
        return self._frame("transcript.text.done", text=self._text) if isinstance(event, Finished) else b""

    def fail(self, refusal: Refusal, request_id: str) -> bytes:
        return self._frame("error", message=refusal.message, request_id=request_id)

    def _frame(self, kind: str, **fields: Any) -> bytes:
        return b"data: " + json.dumps({"type": kind, **fields}).encode() + b"\n\n"


@pytest.fixture
def speaker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    module = ModuleType("speaking_routes")

    def speech(door: Door) -> Any:
        return door.endpoint(SPEECH, _speech)

    def transcriptions(door: Door) -> Any:
        return door.endpoint(TRANSCRIPTIONS, _transcription, form={"temperature": float, "stream": bool})

    module.speech, module.transcriptions = speech, transcriptions  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "speaking_routes", module)
    folder = write_model(tmp_path / "scripted")
    with serving(ServerOptions(models=[f"scripted={folder}"]), Speaks()) as made:
        made.wait_until(lambda: made.get("/ready").status_code == 200)
        yield made


def client_of(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_openais_client_has_speech_and_transcriptions_of_a_strangers_plugin(speaker: Served) -> None:
    client = client_of(speaker)
    made = client.audio.speech.create(model="scripted", voice="any", input="say it", response_format="wav")
    assert (made.read(), made.response.headers["content-type"]) == (b"Hello world", "audio/wav")
    file = ("a.wav", io.BytesIO(b"RIFF"), "audio/wav")
    found = client.audio.transcriptions.create(model="scripted", file=file)
    assert found.text == "Hello world"
    assert speaker.plugin.last.recording == b"RIFF"  # type: ignore[union-attr]
    events = list(client.audio.transcriptions.create(model="scripted", file=file, stream=True))
    assert [event.type for event in events] == [*["transcript.text.delta"] * 2, "transcript.text.done"]
    plain: Any = client.audio.transcriptions.create(model="scripted", file=file, response_format="text")
    assert plain == "Hello world"
    with pytest.raises(openai.BadRequestError, match="Sound is WAV"):
        client.audio.speech.create(model="scripted", voice="any", input="x", response_format="mp3")


def test_who_leaves_such_a_path_frees_its_place(speaker: Served) -> None:
    def endless(_request: Request) -> Iterator[Event]:
        while True:
            time.sleep(0.005)
            yield TextDelta(text="a")

    plugin = speaker.plugin
    assert plugin is not None
    plugin.plan = endless
    client = client_of(speaker).with_options(timeout=0.5)

    def ask() -> None:
        with pytest.raises(openai.APITimeoutError):
            client.audio.speech.create(model="scripted", voice="any", input="x", response_format="wav")

    thread = threading.Thread(target=ask)
    thread.start()
    speaker.wait_until(lambda: plugin.alive == 1)
    thread.join()
    assert speaker.wait_until(lambda: plugin.alive == 0) < 1
    plugin.plan = said("then")
    made = client.audio.speech.create(model="scripted", voice="any", input="x", response_format="wav")
    assert made.read() == b"then"


def test_without_such_a_plugin_there_is_no_such_path(listener: Served) -> None:
    answer = listener.post(SPEECH, {"input": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
