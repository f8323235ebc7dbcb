"""Our server beside `mlx_lm.server` on the same weights, by a client that favours neither.

python -m benchmarks.language.served MODEL_FOLDER [--clients 1 4 8 32] [--requests 2] [--rounds 3]

Both run at once and are asked in turn. Each client sends its requests one after the other, streamed, greedy,
each with a prompt of its own. A row: requests a second, the median time to the first token, and the 99th
percentile of the time between two tokens, each the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2

TEXT = re.compile(rb'"content": ?"[^"]')  # a chunk with some of the answer, by either's spacing
WORDS = ["river", "house", "boat", "garden", "winter", "letter", "bridge", "market"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def server(command: list[str], url: str, probe: str) -> Iterator[None]:
    """A server of its own process, until it answers."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while True:
                try:
                    if httpx2.get(url + probe, trust_env=False, timeout=5).status_code == 200:
                        break
                except httpx2.TransportError:
                    time.sleep(0.1)
            yield
        finally:
            process.kill()


def ask(url: str, model: str, number: int, tokens: int, first: list[float], gaps: list[float]) -> None:
    """One request, read line by line."""
    said = f"Tell me about the {WORDS[number % 8]} number {number} and what happened there last year."
    body = {"model": model, "messages": [{"role": "user", "content": said}], "max_tokens": tokens,
            "temperature": 0, "stream": True}  # fmt: skip
    host, port = url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: localhost", "content-type: application/json",
             "connection: close", f"content-length: {len(data)}", "", ""]  # fmt: skip
    with socket.create_connection((host, int(port))) as raw, raw.makefile("rb") as stream:
        began = last = time.monotonic()
        raw.sendall("\r\n".join(lines).encode() + data)
        seen = 0
        for line in stream:
            if TEXT.search(line):
                now = time.monotonic()
                if seen:
                    gaps.append(now - last)
                else:
                    first.append(now - began)
                seen, last = seen + 1, now
        assert seen, "no token came"


def burst(url: str, model: str, clients: int, requests: int, tokens: int) -> tuple[float, float, float]:
    """Requests a second, median first token, 99th percentile of gaps."""
    first: list[float] = []
    gaps: list[float] = []

    def client(place: int) -> None:
        for turn in range(requests):
            ask(url, model, place * requests + turn, tokens, first, gaps)

    threads = [threading.Thread(target=client, args=(place,)) for place in range(clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    assert len(first) == clients * requests, "a request had no answer"
    return clients * requests / took, statistics.median(first), sorted(gaps)[int(len(gaps) * 0.99)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 32])
    parser.add_argument("--requests", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ports = [free_port(), free_port()]
    ours, theirs = (f"http://127.0.0.1:{port}" for port in ports)
    engine = [
        sys.executable,
        "-m",
        "mlxengine",
        "serve",
        "--port",
        str(ports[0]),
        "--model",
        f"m={options.model}",
    ]
    code = "from mlxengine.toolkit import blas; blas.load(); from mlx_lm.server import main; main()"
    peer = [sys.executable, "-c", code, "--port", str(ports[1]), "--model", options.model]
    with server(engine, ours, "/ready"), server(peer, theirs, "/v1/models"):
        sides = {"mlxengine": (ours, "m"), "mlx_lm": (theirs, options.model)}
        for url, model in sides.values():
            burst(url, model, 2, 1, 8)
        for clients in options.clients:
            found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sides}
            for _ in range(options.rounds):
                for name, (url, model) in sides.items():
                    found[name].append(burst(url, model, clients, options.requests, options.tokens))
            for name, rounds in found.items():
                rate, first, gap = (statistics.median(values) for values in zip(*rounds, strict=True))
                row = {"clients": clients, "server": name, "requests_per_second": round(rate, 3)}
                row |= {"first_token_ms": round(first * 1e3, 1), "gap_p99_ms": round(gap * 1e3, 1)}
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
