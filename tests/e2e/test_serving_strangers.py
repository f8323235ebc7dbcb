"""Kinds that strangers' plugins bring are served without a line in the server."""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlxengine_markov import SPECIMEN, ContinueRequest
from mlxengine_serve import ServerOptions
from mlxengine_serve._values import event_value

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "plugins" / "mlxengine-serve" / "tests"))

from serve_harness import Served, serving  # noqa: E402

AUDIO = ROOT / "docs" / "examples" / "mlxengine-audio" / "tests"


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
    before = set(Path(tempfile.gettempdir()).glob("mlxengine-serve-*"))
    body = {"model": "ears", "request": {"path": {"base64": base64.b64encode(b"no wav").decode()}}}
    assert kinds.post("/v1/engine/ListenRequest", body).status_code == 400
    assert set(Path(tempfile.gettempdir()).glob("mlxengine-serve-*")) - before == set()


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
