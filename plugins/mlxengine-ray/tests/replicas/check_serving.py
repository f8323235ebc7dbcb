"""``mlxengine serve --replicas`` with a real Ray: ``make test-ray`` runs it, in an environment of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from attrs import define, field
from deadly import install
from ray_processes import listening_elsewhere, wait_for_the_end

from tests.hub import weights

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"


@define(eq=False)
class Served:
    """The verb as a process, the leader of a group of its own, as a shell starts it."""

    process: subprocess.Popen[str]
    url: str
    client: httpx2.Client

    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.client.get("/replicas").json()["replicas"]
        return found

    def wait_until(self, true: Any, seconds: float = 120) -> float:
        began = time.monotonic()
        while not true():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() - began < seconds, self.rows()
            time.sleep(0.05)
        return time.monotonic() - began

    def ready(self) -> bool:
        return all(row["ready"] for row in self.rows())


@contextmanager
def serving(words: Sequence[object], environment: dict[str, str] | None = None) -> Iterator[Served]:
    command = [sys.executable, "-m", "mlxengine", "serve", "--port", "0", "--json", "--replicas", "2", *words]
    with subprocess.Popen(
        [str(word) for word in command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.communicate()
            url = json.loads(line)["url"]
            with httpx2.Client(base_url=url, timeout=120, trust_env=False) as client:
                yield Served(process, url, client)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(60)
    wait_for_the_end()


@define(eq=False)
class Stream:
    """A stream that is read on a thread of its own."""

    served: Served
    path: str
    words: int
    frames: list[Any] = field(factory=list)
    thread: threading.Thread = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        messages = [{"role": "user", "content": f"say {self.words}"}]
        body = {"messages": messages, "stream": True, "max_tokens": 9}
        with (
            contextlib.suppress(httpx2.RemoteProtocolError),  # its server was killed
            httpx2.Client(base_url=self.served.url, timeout=120, trust_env=False) as client,
            client.stream("POST", self.path, json=body) as answer,
        ):
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    self.frames.append(line[6:] if line == "data: [DONE]" else json.loads(line[6:]))

    @property
    def text(self) -> str:
        deltas = [item for item in self.frames if item != "[DONE]" and item.get("type") != "error"]
        if self.path == MESSAGES:
            return "".join(item.get("delta", {}).get("text", "") for item in deltas)
        return "".join(
            item["choices"][0]["delta"].get("content") or "" for item in deltas if "error" not in item
        )

    def error(self) -> dict[str, Any]:
        """What it ended with."""
        self.thread.join(60)
        found: dict[str, Any] = self.frames[-1]["error"]
        return found

    def check_whole(self) -> None:
        self.thread.join(120)
        words = self.text.split()
        assert words[1:] == [str(number) for number in range(self.words)], self.frames[-1]
        assert self.frames[-1] == "[DONE]" or self.frames[-1]["type"] == "message_stop"


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Path]:
    folder = tmp_path_factory.mktemp("talking")
    return install(folder, "talking"), folder / "model"


def asked(served: Served, count: int) -> list[httpx2.Response]:
    """So many new requests, eight at once."""
    body = {"messages": [{"role": "user", "content": "say 3"}]}
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(lambda _: served.client.post(CHAT, json=body), range(count)))


def check_right(answers: list[httpx2.Response], process: int) -> None:
    assert [answer.status_code for answer in answers] == [200] * len(answers)
    texts = {answer.json()["choices"][0]["message"]["content"] for answer in answers}
    assert texts == {f"{process} 0 1 2"}


def test_a_replica_that_is_killed_ends_its_streams_in_form_and_another_takes_its_place(
    talking: tuple[dict[str, str], Path],
) -> None:
    environment, model = talking
    with serving(["--model", f"m={model}"], environment) as served:
        served.wait_until(served.ready)
        assert listening_elsewhere() == []
        streams = [Stream(served, path, 150) for path in (CHAT, MESSAGES) for _ in range(3)]
        served.wait_until(lambda: all(stream.text.count(" ") > 3 for stream in streams))
        shot, stays = [row["process"] for row in served.rows()]
        assert {row["open"] for row in served.rows()} == {3}
        os.kill(shot, signal.SIGKILL)
        check_right(asked(served, 30), stays)
        cut = [stream for stream in streams if stream.text.split()[0] == str(shot)]
        assert len(cut) == 3
        for stream in cut:
            assert stream.error()["message"] == "The replica that had this request has ended."
        assert {stream.error()["type"] for stream in cut if stream.path == MESSAGES} <= {"overloaded_error"}
        assert {stream.error().get("code") for stream in cut if stream.path == CHAT} <= {"replica_lost"}
        for stream in set(streams) - set(cut):
            stream.check_whole()
        served.wait_until(served.ready)
        assert [row["starts"] for row in served.rows()] == [2, 1]
        after = [row["process"] for row in served.rows()]
        answers = asked(served, 30)
        assert {answer.json()["choices"][0]["message"]["content"].split()[0] for answer in answers} == {
            str(process) for process in after
        }


def test_a_replica_that_stands_still_gets_no_requests_and_is_replaced(
    talking: tuple[dict[str, str], Path],
) -> None:
    environment, model = talking
    with serving(["--model", f"m={model}"], environment) as served:
        served.wait_until(served.ready)
        still, works = [row["process"] for row in served.rows()]
        streams = [Stream(served, CHAT, 50) for _ in range(2)]
        served.wait_until(lambda: all(stream.text.count(" ") > 3 for stream in streams))
        os.kill(still, signal.SIGSTOP)
        took = served.wait_until(lambda: not served.rows()[0]["ready"], 30)
        assert took < 15
        check_right(asked(served, 30), works)
        served.wait_until(lambda: served.rows()[0]["starts"] == 2 and served.ready(), 180)
        [cut] = [stream for stream in streams if stream.text.split()[0] == str(still)]
        [whole] = [stream for stream in streams if stream is not cut]
        assert cut.error()["code"] == "replica_lost"
        whole.check_whole()
        assert not Path(f"/proc/{still}").exists()


@pytest.mark.parametrize("whom", ["group", "killed"])
def test_ctrl_c_and_a_kill_of_the_front_leave_no_process(
    talking: tuple[dict[str, str], Path], whom: str
) -> None:
    environment, model = talking
    with serving(["--model", f"m={model}"], environment) as served:
        served.wait_until(served.ready)
        streams = [Stream(served, CHAT, 3000) for _ in range(2)]
        served.wait_until(lambda: all(stream.text.count(" ") > 3 for stream in streams))
        processes = [row["process"] for row in served.rows()]
        if whom == "group":  # what a terminal does
            os.killpg(served.process.pid, signal.SIGINT)
            assert served.process.wait(30) == 130
            assert {stream.error()["code"] for stream in streams} == {"shutting_down"}
        else:
            served.process.kill()
        deadline = time.monotonic() + 30
        while any(Path(f"/proc/{process}").exists() for process in processes):
            assert time.monotonic() < deadline, "replicas outlive their front"
            time.sleep(0.1)
        for stream in streams:
            stream.thread.join(10)
        wait_for_the_end(30 if whom == "group" else 120)  # two agents of Ray's ask for its dead servers first


def test_real_weights_answer_alike_and_conversations_find_their_prefix() -> None:
    model = weights.folder_of(weights.SMOLLM2)
    story = "Once there was a cat who counted all the stars above the old harbour. " * 12
    with serving(["--model", f"m={model}", "--offline"]) as served:
        served.wait_until(served.ready)

        def turn(messages: list[dict[str, str]]) -> tuple[str, int, str]:
            body = {"messages": messages, "max_tokens": 8, "temperature": 0}
            answer = served.client.post(CHAT, json=body)
            assert answer.status_code == 200, answer.text
            value = answer.json()
            cached = value["usage"]["prompt_tokens_details"]["cached_tokens"]
            return value["choices"][0]["message"]["content"], cached, answer.headers["x-mlxengine-replica"]

        talks = [[{"role": "user", "content": f"{name}: {story} What did it count?"}] for name in "abcd"]
        at: list[set[str]] = [set() for _ in talks]
        for number in range(3):
            for messages, replicas in zip(talks, at, strict=True):
                text, cached, replica = turn(messages)
                replicas.add(replica)
                assert (cached > 150) == (number > 0), (number, cached)
                messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "And then?"}]
        assert [len(replicas) for replicas in at] == [1] * 4
        assert set.union(*at) == {"0", "1"}
        same = [{"role": "user", "content": "What is the capital of France?"}]
        first, second = turn(same), turn(same)
        assert first[0] == second[0]
        assert {first[2], second[2]} == {"0", "1"}


def test_a_model_that_no_replica_can_load_ends_it_with_its_own_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nobody"}')
    command = [sys.executable, "-m", "mlxengine", "serve", "--port", "0", "--replicas", "2"]
    done = subprocess.run(
        [*command, "--model", str(tmp_path)], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 3, done.stderr
    wait_for_the_end()
