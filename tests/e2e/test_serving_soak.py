"""A server under clients that leave, stall and crowd: memory stays flat, no descriptor is lost."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from attrs import frozen
from mlxengine_echo import write_model

SECONDS = float(os.environ.get("MLXENGINE_SOAK_SECONDS", "60"))
PAUSE = float(os.environ.get("MLXENGINE_SOAK_PAUSE", "0"))  # of each client, between two requests
CHAT = "/v1/chat/completions"


@frozen
class Running:
    """A server of its own process."""

    pid: int
    address: tuple[str, int]

    @property
    def url(self) -> str:
        return f"http://{self.address[0]}:{self.address[1]}"

    def megabytes(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def tasks(self) -> float:
        text = httpx2.get(f"{self.url}/metrics", trust_env=False).text
        return float(
            next(line for line in text.splitlines() if line.startswith("mlxengine_tasks ")).split()[1]
        )

    def send(self, stream: bool, tokens: int = 400) -> socket.socket:
        body = json.dumps({
            "messages": [{"role": "user", "content": "the house that Jack built"}],
            "ignore_eos": True, "max_tokens": tokens, "stream": stream,
        }).encode()  # fmt: skip
        raw = socket.create_connection(self.address)
        raw.settimeout(30)
        lines = [
            f"POST {CHAT} HTTP/1.1",
            "host: localhost",
            "connection: close",
            f"content-length: {len(body)}",
        ]
        raw.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        return raw


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    model = write_model(tmp_path / "echo", context_length=10**6)
    words = ["serve", "--port", "0", "--json", "--model", f"echo={model}", "--max-waiting", "100000"]
    command = [sys.executable, "-m", "mlxengine", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        host, port = json.loads(process.stdout.readline())["url"].removeprefix("http://").split(":")
        found = Running(process.pid, (host, int(port)))
        deadline = time.monotonic() + 30
        while httpx2.get(f"{found.url}/ready", trust_env=False).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield found
        process.terminate()
        assert process.wait(30) == 0


def crowd(server: Running, seconds: float, seed: int, wrong: list[str]) -> None:
    """One client after the other: some read to the end, some leave in the middle, some at once."""
    draw, until = random.Random(seed), time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(PAUSE)
        stream, kind = draw.random() < 0.5, draw.random()
        with server.send(stream) as raw:
            if kind < 0.3:
                time.sleep(draw.random() * 0.01)
                continue
            if kind < 0.6 and stream:
                raw.recv(2000)
                continue
            seen = b""
            while piece := raw.recv(1 << 16):
                seen += piece
            if not seen.startswith(b"HTTP/1.1 200") or (stream and b"[DONE]" not in seen):
                wrong.append(seen[:200].decode())


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_clients_that_leave_cost_no_memory_and_no_descriptor(server: Running) -> None:
    wrong: list[str] = []

    def run(seconds: float) -> None:
        threads = [threading.Thread(target=crowd, args=(server, seconds, seed, wrong)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        deadline = time.monotonic() + 10
        while server.tasks():
            assert time.monotonic() < deadline, "a place was not given back"
            time.sleep(0.05)

    run(max(5, SECONDS / 4))  # what is kept once is kept by now
    memory, descriptors = server.megabytes(), server.descriptors()
    run(SECONDS)
    assert wrong == []
    assert server.descriptors() <= descriptors + 2
    assert server.megabytes() < memory + 8, f"{memory:.1f} MB before, {server.megabytes():.1f} after"


@pytest.mark.slow
def test_a_thousand_connections_that_say_nothing_or_half_hold_nobody_up(server: Running) -> None:
    idle = [socket.create_connection(server.address) for _ in range(800)]
    half = [socket.create_connection(server.address) for _ in range(200)]
    for raw in half:
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{")
    began = time.monotonic()
    with server.send(stream=True, tokens=50) as raw:
        seen = b""
        while piece := raw.recv(1 << 16):
            seen += piece
    assert b"[DONE]" in seen
    assert time.monotonic() - began < 3
    for raw in (*idle, *half):
        raw.close()
    deadline = time.monotonic() + 10
    while server.descriptors() > 60:
        assert time.monotonic() < deadline
        time.sleep(0.1)
