"""Any request of any kind over HTTP: kinds that the server does not know, and nothing opened for a name."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from mlxengine import (
    Array,
    Event,
    Finished,
    GenerateParams,
    Grammar,
    ImagePart,
    ImageRequest,
    Message,
    Request,
    TextDelta,
    TextPart,
    TextRequest,
    ToolCallPart,
)
from mlxengine.errors import InvalidParameterError
from mlxengine_markov import SPECIMEN, ContinueRequest
from mlxengine_serve import ServerOptions
from mlxengine_serve._refusals import Refusal
from mlxengine_serve._values import Builder, event_value
from serve_harness import Served, planned, serving

AUDIO = Path(__file__).parents[3] / "docs" / "examples" / "mlxengine-audio" / "tests"
PNG = {"base64": base64.b64encode(b"\x89PNG").decode()}


@pytest.fixture(scope="module")
def kinds() -> Iterator[Served]:
    """A server of models of kinds that two strangers' plugins bring."""
    options = ServerOptions(models=[f"chain={SPECIMEN}", f"ears={AUDIO / 'specimen'}"])
    with serving(options) as served:
        served.wait_until(lambda: served.get("/ready").status_code == 200, 60)
        yield served


def test_a_kind_of_a_strangers_is_served_whole_and_streamed(kinds: Served) -> None:
    asked = {"text": "round the", "length": 4, "seed": 0}
    path = "/v1/engine/ContinueRequest"
    with kinds.engine.sync.load(SPECIMEN) as chain:
        result = chain.run(ContinueRequest(**asked))
    expected = [event_value(event) for event in result.events]
    answer = kinds.post(path, {"model": "chain", "request": asked}).json()
    assert answer["events"][:-1] == expected
    assert answer["events"][-1]["type"] == "Finished"
    assert answer["events"][-1]["usage"]["completion_tokens"] == 4
    lines = [line for line in kinds.lines(path, {"model": "chain", "request": asked, "stream": True}) if line]
    assert lines[0] == "event: TextDelta"
    assert [json.loads(line.removeprefix("data: ")) for line in lines[1::2]][:-1] == expected


def test_sound_is_sent_and_heard_without_a_line_in_the_server(kinds: Served) -> None:
    from mlxengine_audio.handle import SpeechHandle

    sound = AUDIO / "two-sentences.wav"
    with kinds.engine.sync.load_as(SpeechHandle, AUDIO / "specimen") as model:
        expected = [(item.start, item.end) for item in model.listen(str(sound))]
    body = {"model": "ears", "request": {"path": {"base64": base64.b64encode(sound.read_bytes()).decode()}}}
    events = kinds.post("/v1/engine/ListenRequest", body).json()["events"]
    heard = [(item["start"], item["end"]) for item in events if item["type"] == "Speech"]
    assert heard == expected
    assert heard


def test_the_file_of_a_request_is_gone_with_it(kinds: Served) -> None:
    import tempfile

    before = set(Path(tempfile.gettempdir()).glob("mlxengine-serve-*"))
    body = {"model": "ears", "request": {"path": {"base64": base64.b64encode(b"no wav").decode()}}}
    assert kinds.post("/v1/engine/ListenRequest", body).status_code == 400
    assert set(Path(tempfile.gettempdir()).glob("mlxengine-serve-*")) == before


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("EmbedRequest", {"model": "chain", "request": {}}, 400, "request.texts"),
        ("ContinueRequest", {"model": "chain", "request": {"text": 3}}, 400, "request.text"),
        ("ContinueRequest", {"model": "chain", "request": {"text": "a", "more": 1}}, 400, "request.more"),
        (
            "ContinueRequest",
            {"model": "chain", "request": {"text": "a", "priority": 9}},
            400,
            "request.priority",
        ),
        ("ContinueRequest", {"model": "chain", "request": []}, 400, "request"),
        ("ContinueRequest", {"model": "nobody", "request": {}}, 404, "model"),
        ("ListenRequest", {"model": "ears", "request": {"path": "/etc/passwd"}}, 400, "request.path"),
        ("ListenRequest", {"model": "chain", "request": {}}, 404, None),
        ("LoadAdapterRequest", {"model": "chain", "request": {"name": "a", "source": "/x"}}, 404, None),
        ("UnloadAdapterRequest", {"model": "chain", "request": {"name": "a"}}, 404, None),
        ("Request", {"model": "chain", "request": {}}, 404, None),
        ("TextRequest", {"model": "chain", "request": {"prompt": "a"}}, 400, None),
    ],
)
def test_what_cannot_be_asked_is_said(
    kinds: Served, path: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    answer = kinds.post(f"/v1/engine/{path}", body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


# -- values --------------------------------------------------------------------------------------------------


def build(kind: type, data: Any, folder: Path | None = None) -> Any:
    return Builder(lambda: folder or Path("/nowhere")).build(kind, data, "request")


def test_a_conversation_is_built_by_the_names_of_its_parts() -> None:
    data = {
        "messages": [
            {"role": "system", "parts": [{"type": "TextPart", "text": "Be brief."}]},
            {"role": "user", "parts": [
                {"type": "TextPart", "text": "See?"}, {"type": "ImagePart", "source": PNG}]},
            {"role": "assistant", "parts": [
                {"type": "ToolCallPart", "id": "c", "name": "clock", "arguments": {"zone": "utc"}}]},
        ],
        "params": {"max_tokens": 4, "temperature": 0, "stop": ["a"], "logit_bias": [[3, -1.5]],
                   "grammar": {"kind": "regex", "source": "a+"}},
        "tools": [{"type": "function", "function": {"name": "clock"}}],
        "chat_template_kwargs": {"style": "plain"},
    }  # fmt: skip
    assert build(TextRequest, data) == TextRequest(
        messages=[
            Message.system("Be brief."),
            Message.user([TextPart("See?"), ImagePart(b"\x89PNG")]),
            Message.assistant(ToolCallPart("c", "clock", {"zone": "utc"})),
        ],
        params=GenerateParams(
            max_tokens=4, temperature=0, stop=["a"], logit_bias={3: -1.5}, grammar=Grammar.regex("a+")
        ),
        tools=[{"type": "function", "function": {"name": "clock"}}],
        chat_template_kwargs={"style": "plain"},
    )


@pytest.mark.parametrize(
    "data",
    [
        {"prompt": "x", "init_image": "/etc/passwd"},
        {"prompt": "x", "init_image": ["/etc/passwd"]},
        {"prompt": "x", "lora": [["/etc", 1.0]]},
        {"prompt": "x", "lora": "/etc"},
        {"prompt": "x", "size": [1, 2, 3]},
        {"prompt": "x", "size": "64x64"},
        {"prompt": "x", "steps": 1.5},
        {"prompt": "x", "n": True},
        {"prompt": 5},
    ],
)
def test_no_text_stands_where_a_file_could(data: dict[str, Any]) -> None:
    with pytest.raises(Refusal):
        build(ImageRequest, data)


def test_a_picture_to_start_from_comes_as_bytes() -> None:
    found = build(ImageRequest, {"prompt": "x", "init_image": PNG, "size": [64, 32], "guidance": 3})
    assert (found.init_image, found.size, found.guidance) == (b"\x89PNG", (64, 32), 3)


@frozen(kw_only=True)
class Odd(Request):
    """What a stranger may think of."""

    where: Path | None = None
    recording_path: str | None = None
    data: bytes = b""
    either: int | str = 0
    pairs: tuple[tuple[str, float], ...] = ()


def test_paths_are_files_of_the_request_alone(tmp_path: Path) -> None:
    found = build(
        Odd, {"where": PNG, "recording_path": PNG, "data": PNG, "either": "a", "pairs": [["a", 1]]}, tmp_path
    )
    assert found.where.read_bytes() == b"\x89PNG"
    assert Path(found.recording_path).parent == tmp_path == found.where.parent
    assert (found.data, found.either, found.pairs) == (b"\x89PNG", "a", (("a", 1),))
    for name in ("where", "recording_path", "data"):
        with pytest.raises(Refusal):
            build(Odd, {name: "/etc/passwd"}, tmp_path)


def test_a_value_that_the_class_refuses_is_the_callers_fault() -> None:
    with pytest.raises(InvalidParameterError):
        build(TextRequest, {"prompt": "x", "params": {"temperature": -1}})


@frozen(kw_only=True)
class Strange(Event):
    """An event with all that one may hold."""

    values: Array
    numbers: tuple[float, ...] = ()
    content: bytes = b""


def test_events_are_plain_json_whatever_they_hold(served: Served) -> None:
    array = Array(data=b"\x00\x01", shape=(2,), dtype="uint8")
    served.plugin.plan = planned(  # type: ignore[union-attr]
        Strange(values=array, numbers=(1.5, float("-inf"), float("nan")), content=b"\xff"),
        TextDelta(text="x"), Finished(),
    )  # fmt: skip
    first = served.post("/v1/engine/TextRequest", {"request": {"prompt": "x"}}).json()["events"][0]
    assert first == {
        "type": "Strange", "index": 0, "mock": False, "numbers": [1.5, None, None],
        "values": {"data": "AAE=", "shape": [2], "dtype": "uint8"}, "content": {"base64": "/w=="},
    }  # fmt: skip
