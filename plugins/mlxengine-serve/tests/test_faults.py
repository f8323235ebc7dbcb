"""The device hangs, dies or has no memory: readiness turns, open requests end in form, service goes on."""

from __future__ import annotations

import ctypes
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field
from mlxengine import Event, Finished, Request, TextDelta
from mlxengine.errors import UnsupportedInputError
from mlxengine_serve import ServerOptions
from serve_harness import Scripted, Served, said, serving, write_model

WORD = {"messages": [{"role": "user", "content": "hi"}]}
REQUEST = {"messages": [{"role": "user", "parts": [{"type": "TextPart", "text": "hi"}]}]}
DIALECTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": WORD,
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {**WORD, "max_tokens": 9},
    "/v1/engine/TextRequest": {"request": REQUEST},
}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Served]:
    """A server of this test's alone, that waits a second for a step of which it knows nothing."""
    folder = write_model(tmp_path / "scripted")
    options = ServerOptions(models=[f"scripted={folder}"], stuck_seconds=1.5, ready_seconds=0.5)
    with serving(options, Scripted()) as served:
        served.wait_until(lambda: ready(served))
        yield served


def ready(served: Served) -> bool:
    return served.get("/ready").status_code == 200


@define
class Hanging:
    """Every request says words until ``hang`` is set; then its step returns when ``hold`` is."""

    hang: threading.Event = field(factory=threading.Event)
    hold: threading.Event = field(factory=threading.Event)

    def __call__(self, _request: Request) -> Iterator[Event]:
        while not self.hang.is_set():
            time.sleep(0.002)
            yield TextDelta(text="word ")
        self.hold.wait(20)
        yield Finished()


@pytest.fixture
def hanging(own: Served) -> Iterator[Hanging]:
    """What the model of `own` does from now on."""
    assert own.plugin is not None
    own.plugin.plan = plan = Hanging()
    yield plan
    plan.hang.set()
    plan.hold.set()


def failure(path: str, text: str, *, stream: bool) -> dict[str, Any]:
    """The error that an answer ended with, in the form of its dialect."""
    if not stream:
        body = json.loads(text)
        if path == "/v1/messages":
            assert (body["type"], body["request_id"][:4]) == ("error", "req_")
        found: dict[str, Any] = body["error"]
        return found
    assert "[DONE]" not in text
    frames = [frame for frame in text.split("\n\n") if frame]
    name, _, data = frames[-1].rpartition("data: ")
    value = json.loads(data)
    if path == "/v1/responses":
        assert (value["type"], value["response"]["status"]) == ("response.failed", "failed")
        return dict(value["response"]["error"])
    if path in ("/v1/messages", "/v1/engine/TextRequest"):
        assert name.startswith("event: error")
    assert "word " in text, "what was said before stands"
    return dict(value["error"])


def all_at_once(served: Served) -> list[Any]:
    """Each dialect asked, stream and not; futures of (path, stream, status, text)."""
    pool = ThreadPoolExecutor(2 * len(DIALECTS))

    def ask(path: str, stream: bool) -> tuple[str, bool, int, str]:
        answer = served.post(path, {**DIALECTS[path], "stream": stream})
        return path, stream, answer.status_code, answer.text

    found = [pool.submit(ask, path, stream) for path in DIALECTS for stream in (True, False)]
    pool.shutdown(wait=False)
    return found


def test_a_hung_step_turns_ready_red_within_a_second_and_ends_what_is_open_in_form(
    own: Served, hanging: Hanging
) -> None:
    asked = all_at_once(own)
    own.wait_until(lambda: own.engine.sync.status().tasks == len(asked))
    time.sleep(0.3)
    assert ready(own)
    hanging.hang.set()
    own.wait_until(lambda: own.engine.sync.status().running_seconds > 0.1)
    hung = time.monotonic() - own.engine.sync.status().running_seconds
    own.wait_until(lambda: not ready(own))
    assert time.monotonic() - hung < 1.0
    assert "has not returned" in own.get("/ready").json()["reason"]
    assert own.get("/health").status_code == 200
    assert not any(item.done() for item in asked), "it may still return"
    for item in asked:
        path, stream, status, text = item.result(3)
        assert status == (200 if stream else 503)
        assert "not returned" in failure(path, text, stream=stream)["message"]
    refused = own.post("/v1/chat/completions", WORD)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "device_stuck")
    assert int(refused.headers["retry-after"]) > 0
    assert own.plugin is not None
    own.plugin.plan = said("a", "b")
    hanging.hold.set()
    own.wait_until(lambda: ready(own))
    assert own.post("/v1/chat/completions", WORD).json()["choices"][0]["message"]["content"] == "ab"
    own.wait_until(lambda: own.plugin.alive == 0)  # type: ignore[union-attr]


def test_asking_a_hung_server_how_it_is_costs_it_nothing(own: Served, hanging: Hanging) -> None:
    engine = own.engine.sync
    report = engine.memory
    engine.memory = lambda: engine._scheduler.run(report)  # type: ignore[method-assign] # as mlx's own is asked
    hanging.hang.set()
    asked = all_at_once(own)
    own.wait_until(lambda: not ready(own), 4)
    with ThreadPoolExecutor(20) as pool:  # more than asyncio has threads
        for answer in pool.map(own.get, ["/metrics", "/ready"] * 10):
            assert answer.status_code == 503
    large = {"messages": [{"role": "user", "content": "x" * 300_000}]}  # is parsed on such a thread
    assert own.post("/v1/chat/completions", large, timeout=2).status_code == 503
    hanging.hold.set()
    for item in asked:
        item.result(3)
    own.wait_until(lambda: ready(own))
    assert own.get("/metrics").status_code == 200


def test_a_first_step_that_is_only_long_leaves_ready_green(own: Served) -> None:
    assert own.plugin is not None

    def compiles(request: Request) -> Iterator[Event]:
        time.sleep(0 if request.priority else 1.2)  # the server's own is quick
        yield TextDelta(text="late")
        yield Finished()

    own.plugin.plan = compiles
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(own.post, "/v1/chat/completions", WORD)
        own.wait_until(lambda: own.engine.sync.status().running_seconds > 0.1)
        while not asked.done():
            assert ready(own)
            time.sleep(0.05)
        assert asked.result().status_code == 200


def test_when_the_devices_thread_dies_each_request_ends_in_form_at_once_and_the_next_is_right(
    own: Served,
) -> None:
    hold, scheduler = threading.Event(), own.engine.sync._scheduler
    assert own.plugin is not None

    def plan(_request: Request) -> Iterator[Event | None]:
        yield TextDelta(text="word ")
        while not hold.is_set():
            time.sleep(0.001)
            yield None
        yield Finished()

    own.plugin.plan = plan
    asked = all_at_once(own)
    own.wait_until(lambda: own.engine.sync.status().tasks == len(asked))
    time.sleep(0.2)
    first = scheduler.thread

    def die() -> None:
        raise SystemExit("injected")

    scheduler._post(die, lambda _error: None)
    began = time.monotonic()
    for item in asked:
        path, stream, status, text = item.result(3)
        assert status == (200 if stream else 500)
        assert "thread failed" in failure(path, text, stream=stream)["message"]
    assert time.monotonic() - began < 1.0
    own.plugin.plan = said("a", "b")
    assert own.post("/v1/chat/completions", WORD).json()["choices"][0]["message"]["content"] == "ab"
    assert ready(own)
    assert scheduler.thread is not first
    own.wait_until(lambda: own.plugin.alive == 0)  # type: ignore[union-attr]


def test_a_request_that_had_said_nothing_when_the_thread_died_is_served_by_the_next(own: Served) -> None:
    hold, scheduler = threading.Event(), own.engine.sync._scheduler
    assert own.plugin is not None

    def plan(_request: Request) -> Iterator[Event | None]:
        while not hold.is_set():
            time.sleep(0.001)
            yield None
        yield TextDelta(text="word ")
        yield Finished()

    own.plugin.plan = plan
    asked = all_at_once(own)
    own.wait_until(lambda: own.engine.sync.status().tasks == len(asked))

    def die() -> None:
        raise SystemExit("injected")

    scheduler._post(die, lambda _error: None)
    own.wait_until(lambda: own.engine.sync.status().died is not None)
    hold.set()
    for item in asked:
        path, stream, status, text = item.result(5)
        assert (status, "word " in text) == (200, True), path
        assert "error" not in text.replace('"error":null', ""), (path, stream)


@pytest.mark.parametrize("error", [MemoryError, SystemExit, ZeroDivisionError])
def test_what_is_raised_into_the_thread_ends_that_request_alone(
    own: Served, error: type[BaseException]
) -> None:
    """As a signal would, or memory that ran out in the middle of a step."""
    hold = threading.Event()
    assert own.plugin is not None
    victims: list[int] = []

    def plan(_request: Request) -> Iterator[Event | None]:
        victims.append(threading.get_ident())
        yield TextDelta(text="word ")
        while not hold.is_set():
            time.sleep(0.001)
        yield Finished()

    own.plugin.plan = plan
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(own.post, "/v1/messages", {**DIALECTS["/v1/messages"], "stream": True})
        own.wait_until(lambda: len(victims) == 1)
        time.sleep(0.1)
        own.plugin.plan = said("a", "b")
        other = pool.submit(own.post, "/v1/chat/completions", WORD)
        own.wait_until(lambda: own.engine.sync.status().tasks >= 1)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(victims[0]), ctypes.py_object(error))
        text = asked.result(5).text
        assert failure("/v1/messages", text, stream=True)["type"] in ("api_error", "overloaded_error")
        assert other.result(5).json()["choices"][0]["message"]["content"] == "ab"
    own.wait_until(lambda: ready(own))


def test_where_nothing_can_be_tried_a_failure_turns_ready_red_for_a_while(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "pictures", kind="diffusion")
    plugin = Scripted()
    options = ServerOptions(models=[f"pictures={folder}"], ready_seconds=0.4)
    body = {"prompt": "a red circle", "size": "8x8"}

    def broken(_request: Request) -> Iterator[Event]:
        raise MemoryError("no more")
        yield

    with serving(options, plugin, features={"core.degrade": False}) as served:
        served.wait_until(lambda: ready(served))
        plugin.plan = broken
        assert served.post("/v1/images/generations", body).status_code == 503
        assert not ready(served)
        served.wait_until(lambda: ready(served), 2)  # or nobody would ever send it a request again


def test_a_model_that_takes_no_trial_is_ready_all_the_same(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "ranker", kind="embed")

    def refuses(_request: Request) -> Iterator[Event]:
        raise UnsupportedInputError("It ranks, and makes no vectors.")
        yield

    with serving(ServerOptions(models=[f"ranker={folder}"]), Scripted(plan=refuses)) as served:
        served.wait_until(lambda: ready(served))
