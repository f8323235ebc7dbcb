"""What waits is bounded: a further request is told when to come again, and a late one that it is late."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from mlxengine import Event, Finished, Request, errors
from mlxengine_serve import Key, ServerOptions
from serve_harness import Scripted, Served, serving, write_model

PATH = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}]}


class Place:
    """An iterator that waits for a place until it is let in, and then takes so long."""

    def __init__(self, seconds: float = 0.0, *, admitted: bool = True) -> None:
        self.seconds, self.waiting = seconds, not admitted
        self.done = False

    def __iter__(self) -> Place:
        return self

    def __next__(self) -> Event | None:
        if self.waiting:
            time.sleep(0.002)
            return None
        if self.seconds:
            time.sleep(self.seconds)
            self.seconds = 0.0
            return None
        if self.done:
            raise StopIteration
        self.done = True
        return Finished()

    def close(self) -> None:
        self.done = True


def server(tmp_path: Path, most: int, **options: Any) -> Any:
    folder = write_model(tmp_path / "scripted")
    made = ServerOptions(models=[f"scripted={folder}"], **options)
    return serving(made, Scripted(), features={"core.max_waiting": most})


def send(served: Served, count: int) -> list[threading.Thread]:
    threads = [threading.Thread(target=served.post, args=(PATH, BODY)) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def test_a_full_queue_is_a_429_that_says_when_by_what_requests_took(tmp_path: Path) -> None:
    with server(tmp_path, 4) as served:
        served.wait_until(lambda: served.get("/ready").status_code == 200)
        waiting: list[Place] = []

        def plan(_request: Request) -> Any:
            waiting.append(Place(admitted=False))
            return waiting[-1]

        served.plugin.plan = lambda _request: Place(0.8)
        for _ in range(3):
            served.post(PATH, BODY)
        served.plugin.plan = plan
        threads = send(served, 4)
        served.wait_until(lambda: len(waiting) == 4)
        answer = served.post(PATH, BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
        # 3 requests of 0.8 s and the one of readiness, which took next to nothing: 0.6 s each, and 4 wait
        assert 3 <= int(answer.headers["retry-after"]) <= 4
        with pytest.raises(openai.RateLimitError):
            openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0).chat.completions.create(
                model="scripted", messages=BODY["messages"]
            )
        theirs = served.post("/v1/nothing", {})
        assert theirs.status_code == 404, "only what the model would have to do is refused"
        for place in waiting:
            place.waiting = False
        for thread in threads:
            thread.join(10)


def test_what_waits_too_long_is_a_504_and_a_line_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with server(tmp_path, 4, wait_seconds=0.3) as served:
        served.wait_until(lambda: served.get("/ready").status_code == 200)
        served.plugin.plan = lambda _request: Place(admitted=False)
        began = time.monotonic()
        answer = served.post(PATH, BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        assert time.monotonic() - began < 1
    [line] = [item for item in caplog.records if "504" in item.getMessage()]
    assert (line.exc_info, "waited for 0.3 s" in line.getMessage()) == (None, True)


def test_a_load_that_takes_too_long_is_a_504_too(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "scripted")
    options = ServerOptions(models=[f"scripted={folder}"], wait_seconds=0.2)
    with serving(options, Scripted(load_seconds=1.0)) as served:
        assert served.post(PATH, BODY).status_code == 504
        served.wait_until(lambda: served.get("/ready").status_code == 200)


def test_what_runs_too_long_ends_in_form(tmp_path: Path) -> None:
    with server(tmp_path, 4, run_seconds=0.2) as served:
        served.wait_until(lambda: served.get("/ready").status_code == 200)

        def endless(_request: Request) -> Iterator[Event | None]:
            while True:
                time.sleep(0.002)
                yield None

        served.plugin.plan = endless
        assert served.post(PATH, BODY).json()["error"]["code"] == "timeout"


def test_a_refusal_calls_a_model_as_clients_do_and_tells_no_path(tmp_path: Path) -> None:
    with server(tmp_path, 4) as served:
        served.wait_until(lambda: served.get("/ready").status_code == 200)
        [handle] = served.engine.sync.status().queues
        assert str(tmp_path) in handle.id

        def refusing(_request: Request) -> Iterator[Event]:
            raise errors.UnsupportedInputError(f"{handle.id} calls no tools.")
            yield

        served.plugin.plan = refusing
        told = [served.post(PATH, BODY), served.post("/v1/engine/None", {})]
        told += [served.post("/v1/embeddings", {"input": "a"})]
        for answer in told:
            message = answer.json()["error"]["message"]
            assert answer.status_code in (400, 404)
            assert (str(tmp_path) in message, "scripted" in message) == (False, True), message


def test_a_key_has_its_priority_and_its_limit(tmp_path: Path) -> None:
    keys = [Key.of("one", "one", priority=2, limit=1), Key.of("two", "two")]
    with server(tmp_path, 9, keys=keys) as served:
        served.wait_until(lambda: served.get("/ready").status_code == 200)
        place = Place(admitted=False)
        served.plugin.plan = lambda _request: place
        one, two = {"x-api-key": "one"}, {"x-api-key": "two"}
        first = threading.Thread(target=lambda: served.post(PATH, BODY, headers=one))
        first.start()
        served.wait_until(lambda: served.engine.sync.status().tasks == 1)
        assert served.plugin.last.priority == 2
        again = served.post(PATH, BODY, headers=one)
        assert (again.status_code, again.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert again.headers["retry-after"] == "1"
        served.plugin.plan = lambda _request: Place()
        assert served.post(PATH, BODY, headers=two).status_code == 200
        place.waiting = False
        first.join(10)
        assert served.post(PATH, {**BODY, "service_tier": "priority"}, headers=one).status_code == 200
        assert served.plugin.last.priority == 2, "a tier raises nobody above the key"
        assert served.post(PATH, {**BODY, "service_tier": "flex"}, headers=one).status_code == 200
        assert served.plugin.last.priority == 1
