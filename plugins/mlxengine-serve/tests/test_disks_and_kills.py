"""A disk that becomes full, a process that is killed: nothing is half-written, and service goes on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
from attrs import evolve
from mlxengine import Claim, hookimpl
from mlxengine import hub as hub_module
from mlxengine_serve import ServerOptions
from serve_harness import Scripted, serving

from tests.hub.fixtures import fill_disk
from tests.hub.server import HubServer

CHAT = "/v1/chat/completions"
LARGE = os.urandom(6 << 20)


class Heavy(Scripted):
    """A scripted model with a file of weights."""

    @hookimpl
    def claim_model(self, card: Any) -> Claim | None:
        found = super().claim_model(card)
        return found and evolve(found, files=("config.json", "weights.txt"))


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def test_a_disk_that_becomes_full_in_a_pull_ends_it_in_form_and_the_next_one_resumes(
    hub: HubServer, small_disk: Path
) -> None:
    hub.repos.add("org/heavy", {"config.json": b'{"model_type": "scripted"}', "weights.txt": LARGE})
    hub.faults.add(kind="slow", match="weights", rate=4 << 20)
    options = ServerOptions(models=["mine=org/heavy"], manage=True)
    body = {"model": "mine", "messages": [{"role": "user", "content": "hi"}]}
    cache = small_disk / "cache"

    def arrived() -> int:
        return sum(
            path.stat().st_size for path in cache.rglob("*") if path.is_file() and not path.is_symlink()
        )

    ended: list[BaseException] = []
    with serving(options, Heavy(), failed=ended.append, endpoint=hub.endpoint, cache_dir=cache) as served:
        until(lambda: arrived() > 2 << 20)
        ballast = fill_disk(small_disk)
        until(lambda: bool(ended))
        refused = served.post(CHAT, body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_not_fetched")
        assert "full" in refused.json()["error"]["message"]
        assert served.get("/ready").status_code == 503
        blobs = [path.name for path in cache.rglob("blobs/*") if path.stat().st_size > 1 << 20]
        assert blobs
        assert all(name.endswith(".incomplete") for name in blobs), "nothing looks complete"
        ballast.unlink()
        hub.log.clear()
        assert served.post(CHAT, body).json()["choices"][0]["message"]["content"] == "Hello world"
        assert hub.log.bytes() < len(LARGE) - (1 << 20), "what had arrived was not fetched again"
        until(lambda: served.get("/ready").status_code == 200)
    assert hub_module.verify("org/heavy", deep=True, cache_dir=cache).ok


# -- a process that is killed --------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Supervised:
    """``mlxengine serve``, started again whenever it ends, as systemd or a container would."""

    def __init__(self, *words: str, **environment: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-m", "mlxengine", "serve", "--port", str(port), *words]
        self._environment = {**os.environ, **environment}
        self._over = False
        self.process = self._start()
        self._thread = threading.Thread(target=self._supervise, daemon=True)
        self._thread.start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def _supervise(self) -> None:
        while not self._over:
            self.process.wait()
            if not self._over:
                self.process = self._start()

    def __enter__(self) -> Supervised:
        return self

    def __exit__(self, *_error: object) -> None:
        self._over = True
        self.process.kill()
        self._thread.join(10)

    def kill(self) -> None:
        """SIGKILL, in the middle of whatever it does."""
        os.kill(self.process.pid, signal.SIGKILL)

    def answers(self, path: str = "/ready") -> bool:
        try:
            return httpx2.get(self.url + path, trust_env=False, timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False


def test_a_server_that_is_killed_in_a_pull_and_in_a_stream_comes_back_and_is_right(
    hub: HubServer, hub_home: Path
) -> None:
    table = {f"word{number}": {f"word{number + 1}": 1} for number in range(60_000)}
    files = {
        "config.json": json.dumps({"model_type": "markov", "order": 1}).encode(),
        "table.json": json.dumps(table).encode(),
    }
    hub.repos.add("org/chain", files)
    size = len(files["table.json"])
    hub.faults.add(kind="slow", match="table", rate=size // 2, times=None)

    def ask(length: int, timeout: float = 30) -> httpx2.Response:
        request = {"text": "word0", "length": length}
        body = {"model": "chain", "request": request, "stream": length > 100}
        return httpx2.post(url, json=body, trust_env=False, timeout=timeout)

    def text(answer: httpx2.Response) -> str:
        assert answer.status_code == 200, answer.text
        return "".join(item["text"] for item in answer.json()["events"] if item["type"] == "TextDelta")

    whole = "".join(f" word{number}" for number in range(1, 21))
    with Supervised("-m", "chain=org/chain", HF_ENDPOINT=hub.endpoint) as server:
        url = f"{server.url}/v1/engine/ContinueRequest"
        until(lambda: server.answers("/health"), 60)
        partial = hub_home / "hub"
        until(lambda: any(item.stat().st_size > size // 4 for item in partial.rglob("blobs/*.incomplete")))
        server.kill()
        hub.faults.clear()
        until(server.answers, 60)
        fetched = hub.log.bytes()
        assert fetched < 1.6 * size, "it went on where it was"
        assert text(ask(20)) == whole

        broken: list[type[Exception]] = []

        def read() -> None:
            try:
                ask(50_000)
            except httpx2.HTTPError as error:
                broken.append(type(error))

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        until(lambda: b"running" in httpx2.get(f"{server.url}/metrics", trust_env=False).content)
        time.sleep(0.3)
        server.kill()
        for reader in readers:
            reader.join(20)
        assert len(broken) == 3, "each client saw its connection break"
        until(server.answers, 60)
        assert text(ask(20)) == whole
        assert hub.log.bytes() - fetched < size // 4, "and nothing was fetched again"
    assert hub_module.verify("org/chain", deep=True).ok
