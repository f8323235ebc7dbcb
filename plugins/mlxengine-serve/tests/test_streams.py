"""A stream begins with a true status, is never silent for long, and bodies keep within their bounds."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
from mlxengine import Event, Finished, Request, TextDelta, errors
from mlxengine_serve import Key, ServerOptions
from mlxengine_serve._http import EventWriter
from serve_harness import Served, said, serving

PATH = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}], "stream": True}


def slow(seconds: float, then: Exception | None = None) -> Any:
    """Nothing for a while, then a word; the fixture waits 0.3 s for the first event and beats every 0.2 s."""

    def plan(_request: Request) -> Iterator[Event | None]:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.005)
            yield None
        if then is not None:
            raise then
        yield TextDelta(text="at last")
        yield Finished()

    return plan


def test_a_quick_answer_has_no_heartbeat(served: Served) -> None:
    assert not [line for line in served.lines(PATH, BODY) if line.startswith(":")]


def test_a_long_prefill_gets_its_status_its_opening_and_then_a_heartbeat(served: Served) -> None:
    served.plugin.plan = slow(0.9)  # type: ignore[union-attr]
    began = time.monotonic()
    with served.client.stream("POST", PATH, json=BODY) as answer:
        assert (answer.status_code, time.monotonic() - began < 0.7) == (200, True)
        lines = [line for line in answer.iter_lines() if line]
    opening = json.loads(lines[0].removeprefix("data: "))
    assert opening["choices"][0]["delta"]["role"] == "assistant", "a comment in front broke a client"
    assert 1 <= sum(line.startswith(": ") for line in lines) <= 4
    assert json.loads(lines[-3].removeprefix("data: "))["choices"][0]["delta"]["content"] == "at last"
    assert sum("assistant" in line for line in lines) == 1


def test_an_error_within_the_first_moment_is_a_status_and_later_a_frame(served: Served) -> None:
    served.plugin.plan = slow(0.1, errors.PromptTooLongError("long"))  # type: ignore[union-attr]
    assert served.post(PATH, BODY).status_code == 400
    served.plugin.plan = slow(0.5, errors.PromptTooLongError("long"))  # type: ignore[union-attr]
    assert served.frames(PATH, BODY)[-1]["error"]["code"] == "context_length_exceeded"


def test_proxies_are_told_not_to_hold_frames_back(served: Served) -> None:
    with served.client.stream("POST", PATH, json=BODY) as answer:
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.headers["cache-control"] == "no-cache, no-transform"
        assert answer.headers["content-type"].startswith("text/event-stream")


def test_what_came_meanwhile_goes_in_one_piece_and_says_the_same(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    plain = EventWriter.write

    async def slowly(writer: EventWriter, data: bytes) -> None:
        written.append(data)
        await plain(writer, data)
        await asyncio.sleep(0.05)  # tokens come faster than they can be sent

    monkeypatch.setattr(EventWriter, "write", slowly)
    words = [f"{number} \U0001f600\n" for number in range(200)]
    served.plugin.plan = said(*words)  # type: ignore[union-attr]
    frames = served.frames(PATH, BODY)
    texts = [frame["choices"][0]["delta"].get("content") for frame in frames[:-1] if frame["choices"]]
    assert [text for text in texts if text] == words
    assert len(written) < 100
    assert all(set(frame) == set(frames[0]) for frame in frames[:-1])


# -- bodies ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked() -> Any:
    options = ServerOptions(
        models=["mock/llm"], keys=[Key.of("s3cret", "alice")], max_body=2000, body_seconds=0.3
    )
    with serving(options, backend="mock") as made:
        yield made


KEY = {"x-api-key": "s3cret"}


def test_a_large_body_is_refused_before_it_is_read_whole(locked: Served) -> None:
    assert locked.client.post(PATH, content=b"x" * 2001, headers=KEY).status_code == 413
    endless = (b"x" * 1000 for _ in range(5))
    assert locked.client.post(PATH, content=endless, headers=KEY).status_code == 413


def test_a_body_that_does_not_arrive_ends_in_time(locked: Served) -> None:
    host, port = locked.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: s3cret\r\n"
            b"content-length: 100\r\n\r\n{"
        )
        raw.settimeout(5)
        assert raw.recv(1000).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("body", [b"{", b"[1]", b"nul", b"\xff", b'"x"', b"[" * 1500, b"1" * 1500])
def test_what_is_no_json_object_is_a_400(locked: Served, body: bytes) -> None:
    answer = locked.client.post(PATH, content=body, headers=KEY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


def test_text_that_is_no_unicode_is_refused_and_not_echoed_raw(locked: Served) -> None:
    body = b'{"messages": [{"role": "user", "content": "a\\ud800b"}]}'
    answer = locked.client.post(PATH, content=body, headers=KEY)
    assert answer.status_code == 400
    answer.content.decode()


def test_a_reader_that_is_cut_off_from_a_fast_model_leaves_no_noise(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    def fast(_request: Request) -> Iterator[Event]:
        while True:
            yield TextDelta(text="x" * 50)

    served.plugin.plan = fast  # type: ignore[union-attr]
    host, port = served.url.removeprefix("http://").split(":")
    body = json.dumps(BODY).encode()
    head = b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % (PATH.encode(), len(body))
    for _ in range(30):
        with socket.create_connection((host, int(port))) as raw:
            raw.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )  # a reset, no farewell
            raw.sendall(head + body)
            raw.recv(4000)
    served.wait_until(lambda: served.plugin.alive == 0)  # type: ignore[union-attr]
    assert "socket.send() raised" not in caplog.text, "it wrote on and on before it looked"
