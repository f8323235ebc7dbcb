"""Two servers, each a process, behind one front: who is asked, and what is left when one is killed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from anthropic.types import RawMessageStreamEvent
from attrs import define
from behind_process import options_of
from mlxengine_serve import ServerOptions
from mlxengine_serve._behind import Figures
from mlxengine_serve._front import create_front
from mlxengine_serve._members import Member
from mlxengine_serve._uvicorn import Runner, bind, config
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter
from serve_harness import write_model

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
RESPONSE_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
MESSAGE_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
HERE = Path(__file__).parent


def body(path: str, words: int, *, stream: bool = True, before: str = "") -> dict[str, Any]:
    said = f"{before} say {words}"
    if path == TEXT:
        return {"prompt": f"{words}", "stream": stream}
    if path == RESPONSES:
        return {"input": said, "stream": stream}
    return {"messages": [{"role": "user", "content": said}], "stream": stream, "max_tokens": 9}


@define(eq=False)
class Fronted:
    """Two members' processes and the address of what stands before them."""

    url: str
    members: list[Member]
    processes: list[subprocess.Popen[str]]
    client: httpx2.Client

    def post(self, path: str, value: Any, **rest: Any) -> httpx2.Response:
        return self.client.post(path, json=value, **rest)

    def frames(self, path: str, value: Any, seen: list[Any] | None = None) -> list[Any]:
        """The data of a stream's frames, as they come; ``[DONE]`` as it is."""
        found: list[Any] = [] if seen is None else seen
        with self.client.stream("POST", path, json=value) as answer:
            assert answer.status_code == 200, answer.read()
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    found.append(line[6:] if line == "data: [DONE]" else json.loads(line[6:]))
        return found

    def running(self) -> dict[str, float]:
        """Requests that run, by member."""
        text = self.client.get("/metrics").text
        found = re.findall(
            r'^mlxengine_model_requests\{.*replica="(\d)",state="running"\} (\S+)$', text, re.MULTILINE
        )
        return {number: float(value) for number, value in found}

    def wait_until(self, true: Any, seconds: float = 10) -> float:
        began = time.monotonic()
        while not true():
            assert time.monotonic() - began < seconds, "it did not come true"
            time.sleep(0.005)
        return time.monotonic() - began


@contextmanager
def fronted(tmp_path: Path, keys: str = "open") -> Iterator[Fronted]:
    model = write_model(tmp_path / "model")
    members, options = [Member(0), Member(1)], options_of(str(model), keys == "keys")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        words = [sys.executable, str(HERE / "behind_process.py"), folder, str(model), keys]
        processes = [
            stack.enter_context(subprocess.Popen(words, stdout=subprocess.PIPE, text=True)) for _ in members
        ]
        for process, member in zip(processes, members, strict=True):
            stack.callback(process.kill)
            assert process.stdout is not None
            path = process.stdout.readline().strip()
            member.arrived(Figures(pid=process.pid, path=path, running=0, waiting=0, step_seconds=0))
            member.trouble = None
        url = stack.enter_context(listening(members, options))
        client = stack.enter_context(httpx2.Client(base_url=url, timeout=30, trust_env=False))
        yield Fronted(url, members, processes, client)


@contextmanager
def listening(members: list[Member], options: ServerOptions) -> Iterator[str]:
    """The front on a thread of its own; its address."""

    @asynccontextmanager
    async def tended() -> AsyncIterator[None]:
        yield

    runner = Runner(config(create_front(members, options, tended)))
    runner.config.timeout_graceful_shutdown = 1
    with bind("127.0.0.1", 0) as taken:
        thread = threading.Thread(target=lambda: asyncio.run(runner.serve(sockets=[taken])), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
        runner.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fronted]:
    with fronted(tmp_path_factory.mktemp("two")) as made:
        yield made


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fronted]:
    """One that wants a key, and whose streams end with their connections."""
    with fronted(tmp_path_factory.mktemp("closed"), "keys") as made:
        made.client.headers["authorization"] = "Bearer secret"
        yield made


def text_of(path: str, frames: list[Any]) -> str:
    """What was said in a stream."""
    found = []
    for item in frames:
        if item == "[DONE]" or "error" in item:
            continue
        if path in (CHAT, TEXT):
            choice = item["choices"][0]
            found.append(choice["text"] if path == TEXT else choice["delta"].get("content") or "")
        elif path == RESPONSES and item["type"] == "response.output_text.delta":
            found.append(item["delta"])
        elif path == MESSAGES and item["type"] == "content_block_delta":
            found.append(item["delta"].get("text", ""))
    return "".join(found)


def whole(path: str, frames: list[Any]) -> bool:
    last = frames[-1]
    return last == "[DONE]" or last.get("type") in ("response.completed", "message_stop")


def check_cut(path: str, frames: list[Any]) -> None:
    """Whether a stream ends with its dialect's own error."""
    last = frames[-1]
    message = "The replica that had this request has ended."
    if path == RESPONSES:
        events = [RESPONSE_EVENT.validate_python(item) for item in frames]
        assert [item.sequence_number for item in events] == list(range(len(events)))
        assert last["type"] == "response.failed"
        assert last["response"]["error"] == {"code": "server_error", "message": message}
        assert last["response"]["id"] == frames[0]["response"]["id"]
        assert [item["type"] for item in last["response"]["output"]] == ["reasoning"]
    elif path == MESSAGES:
        for item in frames[:-1]:
            MESSAGE_EVENT.validate_python(item)
        assert last["error"] == {"type": "overloaded_error", "message": message}
        assert last["type"] == "error"
    else:
        assert last["error"] == {
            "message": message, "type": "server_error", "param": None, "code": "replica_lost"
        }  # fmt: skip


def test_a_member_that_is_killed_ends_its_streams_in_form_and_the_others_are_whole(tmp_path: Path) -> None:
    with fronted(tmp_path) as front, ThreadPoolExecutor(16) as threads:
        asked = [path for path in (CHAT, TEXT, RESPONSES, MESSAGES) for _ in range(4)]
        seen: list[list[Any]] = [[] for _ in asked]
        done = [
            threads.submit(front.frames, path, body(path, 120), frames)
            for path, frames in zip(asked, seen, strict=True)
        ]
        front.wait_until(
            lambda: all(
                text_of(path, frames).count(" ") > 3 for path, frames in zip(asked, seen, strict=True)
            )
        )
        shot = str(front.processes[0].pid)
        os.kill(int(shot), signal.SIGKILL)
        new = [front.post(CHAT, body(CHAT, 3, stream=False)) for _ in range(30)]
        assert [answer.status_code for answer in new] == [200] * 30
        said = {answer.json()["choices"][0]["message"]["content"] for answer in new}
        assert said == {f"{front.processes[1].pid} 0 1 2"}
        for future in done:
            future.result(30)
        cut = 0
        for path, frames in zip(asked, seen, strict=True):
            text = text_of(path, frames)
            if text.split()[0] == shot:
                cut += 1
                check_cut(path, frames)
                assert not whole(path, frames)
            else:
                assert whole(path, frames)
                assert text == f"{front.processes[1].pid}" + "".join(f" {number}" for number in range(120))
        assert cut == 8
        ready = front.client.get("/ready").json()
        assert ready["replicas"] == {"0": "its process is gone", "1": "ready"}
        # an answer that had not begun is an error too, and is not asked again
        waits = threads.submit(front.post, CHAT, body(CHAT, 10_000, stream=False))
        front.wait_until(lambda: front.running() == {"1": 1.0})
        front.processes[1].kill()
        answer = waits.result(10)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "replica_lost")
        assert answer.headers["retry-after"] == "1"
        answer = front.post(MESSAGES, body(MESSAGES, 1))
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "overloaded_error")
        assert front.client.get("/ready").status_code == 503


def test_a_request_that_its_member_never_read_goes_to_another(two: Fronted, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dying = socket.socket(socket.AF_UNIX)
        dying.bind(f"{folder}/socket")
        dying.listen()
        # it is there and accepts nobody, as a process that is just being ended
        members = [Member(0), two.members[1]]
        members[0].arrived(Figures(pid=0, path=f"{folder}/socket", running=0, waiting=0, step_seconds=0))
        members[0].trouble = None
        with listening(members, options_of(str(tmp_path))) as url, ThreadPoolExecutor(1) as threads:
            answer = threads.submit(
                httpx2.post, url + CHAT, json=body(CHAT, 1, stream=False), trust_env=False
            )
            two.wait_until(lambda: members[0].open == 1)
            time.sleep(0.1)
            dying.close()
            assert answer.result(10).headers["x-mlxengine-replica"] == "1"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place_in_the_member(closed: Fronted, stream: bool) -> None:
    host, port = closed.url.removeprefix("http://").split(":")
    said = json.dumps(body(CHAT, 10_000, stream=stream)).encode()
    lines = [f"POST {CHAT} HTTP/1.1", "host: localhost", "x-api-key: secret", f"content-length: {len(said)}"]
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall("\r\n".join([*lines, "", ""]).encode() + said)
        closed.wait_until(lambda: sum(closed.running().values()) == 1)
    assert closed.wait_until(lambda: sum(closed.running().values()) == 0) < 1


def test_conversations_go_to_the_member_that_has_their_prefix(two: Fronted) -> None:
    went: dict[str, list[str]] = {}
    for turn in range(4):
        for name in "abcde":
            before = f"{name} has a long story. " * 20 + f"{name} goes on. " * 20 * turn
            answer = two.post(CHAT, body(CHAT, 1, stream=False, before=before))
            went.setdefault(name, []).append(answer.headers["x-mlxengine-replica"])
    assert all(len(set(members)) == 1 for members in went.values()), went
    assert {members[0] for members in went.values()} == {"0", "1"}


def test_a_stream_that_was_lost_is_taken_up_where_it_is(two: Fronted) -> None:
    for _ in range(2):  # whatever member has its turn
        with two.client.stream("POST", CHAT, json=body(CHAT, 20)) as answer:
            identities = (line[4:] for line in answer.iter_lines() if line.startswith("id: "))
            last = [next(identities) for _ in range(4)][-1]
            member = answer.headers["x-mlxengine-replica"]
        with two.client.stream("POST", CHAT, headers={"last-event-id": last}) as rest:
            assert rest.headers["x-mlxengine-replica"] == member
            assert [line for line in rest.iter_lines() if line][-1] == "data: [DONE]"


def test_what_a_member_says_passes_with_one_name_for_the_request(two: Fronted) -> None:
    answer = two.post(CHAT, {"messages": [{"role": "user", "content": "say 1"}], "strange": 1})
    assert answer.headers["x-mlxengine-ignored"] == "strange"
    [name] = answer.headers.get_list("x-request-id")
    assert answer.json()["id"] == name.replace("req_", "chatcmpl-")
    assert len(answer.headers.get_list("date")) == 1
    wrong = two.post(MESSAGES, {"messages": []})
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (400, "invalid_request_error")
    assert wrong.json()["request_id"] == wrong.headers["x-request-id"]
    assert two.client.get("/v1/models?x=1").json()["data"][0]["id"] == "m"
    assert two.client.get("/nothing").status_code == 404
    assert two.client.get("/").text.startswith("<!doctype html>")


def test_the_figures_of_all_are_one_text_with_the_member_in_a_label(two: Fronted) -> None:
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    two.post(CHAT, body(CHAT, 1, stream=False))
    families = {item.name: item for item in text_string_to_metric_families(two.client.get("/metrics").text)}
    assert {sample.labels["replica"] for sample in families["mlxengine_model_requests"].samples} == {"0", "1"}
    assert [sample.value for sample in families["mlxengine_replica_ready"].samples] == [1.0, 1.0]
    routes = {sample.labels["route"] for sample in families["mlxengine_http_requests"].samples}
    assert CHAT in routes
    assert all("replica" not in sample.labels for sample in families["mlxengine_http_requests"].samples)
    rows = two.client.get("/replicas").json()["replicas"]
    assert [row["process"] for row in rows] == [process.pid for process in two.processes]


def test_keys_are_asked_for_once_and_their_limit_holds_over_all_members(closed: Fronted) -> None:
    assert httpx2.post(closed.url + CHAT, json=body(CHAT, 1), trust_env=False).status_code == 401
    assert httpx2.get(closed.url + "/replicas", trust_env=False).status_code == 401
    with ThreadPoolExecutor(3) as threads:
        running = [threads.submit(closed.post, CHAT, body(CHAT, 200, stream=False)) for _ in range(3)]
        closed.wait_until(lambda: sum(closed.running().values()) == 3)
        assert max(closed.running().values()) == 2
        assert closed.post(CHAT, body(CHAT, 1)).status_code == 429
        assert closed.client.get("/v1/models").status_code == 200
        assert [item.result(20).status_code for item in running] == [200] * 3
