"""A client that leaves, in whatever phase, frees its place at once, and nobody else hears of it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mlxengine import Event, Finished, Request, TextDelta, TextRequest, TokenUsage
from mlxengine_serve import ServerOptions
from serve_harness import Scripted, Served, serving, write_model

PATH = "/v1/chat/completions"
SOON = 0.2 + 0.15  # of the law's 200 ms and what a loaded machine adds


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Served]:
    """A server of this test's alone; its model is loaded by the first request."""
    folder = write_model(tmp_path / "scripted")
    options = ServerOptions(models=[f"scripted={folder}"], first_byte_seconds=5)
    with serving(options, Scripted()) as served:
        served.wait_until(lambda: served.get("/ready").status_code == 200)
        assert served.plugin is not None
        served.plugin.asked.clear()
        yield served


class Steps:
    """An iterator with what the engine asks of one: whether it waits for a place, and what it used."""

    def __init__(self, text: str, *, waiting: bool = False, count: int = 10**9) -> None:
        self.text, self.waiting, self.left, self.used = text, waiting, count, 0
        self.closed_at: float | None = None

    @property
    def usage(self) -> TokenUsage:
        return TokenUsage(prompt_tokens=7, completion_tokens=self.used)

    def __iter__(self) -> Steps:
        return self

    def __next__(self) -> Event | None:
        time.sleep(0.002)
        if self.waiting or not self.text:
            return None
        if self.left == 0:
            raise StopIteration
        self.left -= 1
        if self.left == 0:
            return Finished(usage=self.usage)
        self.used += 1
        return TextDelta(text=self.text)

    def close(self) -> None:
        self.closed_at = time.monotonic()


def begin(served: Served, body: dict[str, Any]) -> socket.socket:
    """Send a request by hand; the socket."""
    host, port = served.url.removeprefix("http://").split(":")
    raw = socket.create_connection((host, int(port)))
    said = json.dumps(body).encode()
    raw.sendall(
        b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (PATH.encode(), len(said), said)
    )
    return raw


def body(stream: bool, text: str = "hi") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "stream": stream}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("phase", ["queued", "prefill", "decode"])
def test_a_client_that_leaves_frees_its_place_and_is_counted(own: Served, phase: str, stream: bool) -> None:
    steps = Steps("word " if phase == "decode" else "", waiting=phase == "queued")
    assert own.plugin is not None
    own.plugin.plan = lambda _request: steps  # type: ignore[assignment,return-value]
    raw = begin(own, body(stream))
    if phase == "decode":
        own.wait_until(lambda: steps.used > 2)
    else:
        own.wait_until(lambda: own.engine.sync.status().tasks == 1)
    left = time.monotonic()
    raw.close()
    own.wait_until(lambda: own.engine.sync.status().tasks == 0)
    assert time.monotonic() - left < SOON
    own.wait_until(lambda: own.engine.sync.metrics()[0].requests.get("CancelledError") == 1)
    if phase == "decode":
        assert own.engine.sync.metrics()[0].unfinished["completion_tokens"] == steps.used
    own.wait_until(lambda: 'route="/v1/chat/completions",status="' in own.get("/metrics").text)
    status = "200" if phase == "decode" and stream else "499"
    assert f'route="/v1/chat/completions",status="{status}"' in own.get("/metrics").text


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_while_its_model_is_loaded_ends_the_load(tmp_path: Path, stream: bool) -> None:
    folder = write_model(tmp_path / "scripted")
    plugin = Scripted()
    options = ServerOptions(models=[f"scripted={folder}"], first_byte_seconds=0.05, manage=True)
    with serving(options, plugin) as served:
        served.wait_until(lambda: served.get("/ready").status_code == 200)
        plugin.load_seconds = 20
        served.post("/v1/models/unload", {"model": "scripted"})
        raw = begin(served, body(stream))
        served.wait_until(lambda: len(served.engine.sync.loads) == 1)
        left = time.monotonic()
        raw.close()
        served.wait_until(lambda: not served.engine.sync.loads)
        assert time.monotonic() - left < SOON
        plugin.load_seconds = 0
        assert served.post(PATH, body(False)).status_code == 200


def test_who_leaves_a_load_leaves_the_others_who_wait_for_it(tmp_path: Path) -> None:
    first = write_model(tmp_path / "first")
    plugin = Scripted(load_seconds=0.6)
    with serving(ServerOptions(models=[f"a={first}"]), plugin) as served:
        answers: list[int] = []
        stays = threading.Thread(target=lambda: answers.append(served.post(PATH, body(False)).status_code))
        stays.start()
        leaves = begin(served, body(True))
        served.wait_until(lambda: len(served.engine.sync.loads) == 1)
        time.sleep(0.1)
        leaves.close()
        stays.join(10)
        assert answers == [200]
        assert len(plugin.loads) == 1


def test_nobody_elses_bytes_change_when_others_leave(own: Served) -> None:
    assert own.plugin is not None

    def plan(request: Request) -> Iterator[Event | None]:
        assert isinstance(request, TextRequest)
        name = request.messages[0].text
        for number in range(60):
            time.sleep(0.001)
            yield TextDelta(text=f"{name}{number} ")
        yield Finished()

    own.plugin.plan = plan
    texts: dict[str, str] = {}

    def stay(name: str) -> None:
        frames = own.frames(PATH, body(True, name))
        pieces = [item["choices"][0]["delta"].get("content", "") for item in frames[:-1]]
        texts[name] = "".join(pieces)

    staying = [threading.Thread(target=stay, args=(name,)) for name in "abc"]
    leaving = [begin(own, body(True, "x")) for _ in range(6)]
    for thread in staying:
        thread.start()
    for raw in leaving:
        time.sleep(0.01)
        raw.close()
    for thread in staying:
        thread.join(20)
    assert texts == {name: "".join(f"{name}{number} " for number in range(60)) for name in "abc"}
    own.wait_until(lambda: own.plugin.alive == 0)  # type: ignore[union-attr]


def test_a_reader_that_does_not_read_holds_up_itself_alone(own: Served) -> None:
    assert own.plugin is not None
    long = Steps("x" * 60_000)
    plans = iter([long])

    def plan(_request: Request) -> Any:
        return next(plans, None) or iter([TextDelta(text="quick"), Finished()])

    own.plugin.plan = plan
    raw = begin(own, body(True))
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    own.wait_until(lambda: long.used > 3)

    def stands_still() -> bool:
        before = long.used
        time.sleep(0.5)
        return long.used == before

    own.wait_until(stands_still, 20)
    assert long.used < 500, "what the system and the queue take, and no more"
    assert own.post(PATH, body(False)).json()["choices"][0]["message"]["content"] == "quick"
    raw.close()
    own.wait_until(lambda: own.plugin.alive == 0, 2)  # type: ignore[union-attr]


def test_a_reader_that_never_reads_loses_its_place_in_time_and_a_slow_one_gets_it_all(tmp_path: Path) -> None:
    options = ServerOptions(models=[f"a={write_model(tmp_path / 'scripted')}"])
    with serving(options, Scripted(), write_seconds=0.5) as own:
        own.wait_until(lambda: own.get("/ready").status_code == 200)
        assert own.plugin is not None
        own.plugin.plan = lambda _request: Steps("x" * 60_000)  # type: ignore[assignment,return-value]
        never = begin(own, body(True))
        own.wait_until(lambda: own.plugin.alive == 1)  # type: ignore[union-attr]
        own.wait_until(lambda: own.plugin.alive == 0, 20)  # type: ignore[union-attr]
        never.close()
        size = 30_000_000
        own.plugin.plan = lambda _request: iter([TextDelta(text="x" * size), Finished()])
        slow = begin(own, body(False))
        slow.settimeout(10)
        began, got = time.monotonic(), 0
        while got < size:
            found = slow.recv(1 << 20)
            assert found, f"cut off after {got} bytes"
            got += len(found)
            time.sleep(0.04)
        slow.close()
        assert time.monotonic() - began > 1, "or it was not slow"


@pytest.mark.parametrize("kept", [None, 30.0], ids=["as-it-is", "resumable"])
def test_an_open_request_ends_in_form_when_the_server_ends_and_no_trace_is_logged(
    tmp_path: Path, kept: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_model(tmp_path / "scripted")
    plugin = Scripted()
    frames: list[str] = []
    with serving(ServerOptions(models=[f"a={folder}"], resume_seconds=kept), plugin) as served:
        served.wait_until(lambda: served.get("/ready").status_code == 200)
        plugin.plan = lambda _request: Steps("word ")  # type: ignore[assignment,return-value]

        def read() -> None:
            with (
                httpx2.Client(timeout=30, trust_env=False) as client,
                client.stream("POST", served.url + PATH, json=body(True)) as answer,
            ):
                frames.extend(answer.iter_lines())

        reader = threading.Thread(target=read)
        reader.start()
        served.wait_until(lambda: len(frames) > 4)
    reader.join(10)
    data = [line for line in frames if line.startswith("data: ")]
    assert json.loads(data[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert data[-1] != "data: [DONE]"
    assert not [item for item in caplog.records if item.exc_info], caplog.text
