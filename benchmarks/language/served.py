"""Our server beside `mlx_lm.server` and our library, on the same weights, by a client that favours none.

    python -m benchmarks.language.served MODEL_FOLDER [--clients 1 4 8 32] [--requests 2] [--rounds 3]
    python -m benchmarks.language.served --shape llama-1B --dtype bfloat16 --output FILE.json

``--shape`` makes weights first: random ones of a real shape (`benchmarks/shapes.py`; ``tiny`` tries it out).
All three run at once, each in a process of its own, and are asked in turn, every other round the other way
round. Each client sends its requests one after the other, streamed, greedy, each with a prompt of its own. A
row: requests a second, the median time to the first token, and the 99th percentile of the time between two
tokens, each the median of the rounds. The first round of each row warms up, and is left out. ``processor_ms``
is what a request took of the process that serves, which others on the machine change less, and ``client_ms``
what its clients took. ``http_overhead`` compares the server with the library in the same round: the part of
the requests a second that the server loses, and how much more of the processor it takes; the median of the
rounds, the least and the most. The library has no client beside it that reads from a socket.

Needs, besides this checkout: mlx with a back end, mlx-lm, starlette, uvicorn (click), httptools,
prometheus-client and httpx2; with `scripts/uninstalled.py` nothing of ours has to be installed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2

TEXT = re.compile(rb'"content": ?"[^"]')  # a chunk with some of the answer, by either's spacing
WORDS = ["river", "house", "boat", "garden", "winter", "letter", "bridge", "market"]
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
PEER = "from mlxengine.toolkit import blas; blas.load(); from mlx_lm.server import main; main()"
Figures = tuple[float, float, float]  # requests a second, median first token, 99th percentile of gaps


def made(shape: str, dtype: str) -> Path:
    """A checkpoint of random weights; it stays, so that a second run finds it."""
    from benchmarks.shapes import BIG, SHAPES, write_checkpoint

    name = "llama-2M" if shape == "tiny" else shape
    folder = Path(tempfile.gettempdir()) / f"served-{name}-{dtype}"
    if not folder.exists():
        write_checkpoint(folder, {**SHAPES, **BIG}[name], dtype)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings["chat_template"] = TEMPLATE  # without one mlx_lm.server says more than was asked
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def said(number: int, words: int) -> str:
    """What request ``number`` asks; no two begin alike."""
    more = " ".join(WORDS[(number * 7 + place) % 8] for place in range(words))
    return f"{number}: tell me about the {WORDS[number % 8]} and what happened there last year. {more}"


class Watch:
    """Notes when the tokens of one request come."""

    def __init__(self, first: list[float], gaps: list[float]) -> None:
        self._first, self._gaps = first, gaps
        self._last, self._seen = time.monotonic(), False

    def token(self) -> None:
        now = time.monotonic()
        (self._gaps if self._seen else self._first).append(now - self._last)
        self._last, self._seen = now, True


def processor(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- the servers ------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def server(command: list[str], url: str, probe: str) -> Iterator[int]:
    """A server of its own process, once it answers; its id."""
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log) as process,
    ):
        try:
            while True:
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(f"{command[:4]} ended: {log.read()[-2000:].decode()}")
                try:
                    if httpx2.get(url + probe, trust_env=False, timeout=5).status_code == 200:
                        break
                except httpx2.TransportError:
                    time.sleep(0.1)
            yield process.pid
        finally:
            process.kill()


def ask(url: str, model: str, prompt: str, tokens: int, first: list[float], gaps: list[float]) -> None:
    """One request, read line by line."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens,
            "temperature": 0, "stream": True}  # fmt: skip
    host, port = url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: localhost", "content-type: application/json",
             "connection: close", f"content-length: {len(data)}", "", ""]  # fmt: skip
    with socket.create_connection((host, int(port))) as raw, raw.makefile("rb") as stream:
        watch = Watch(first, gaps)
        raw.sendall("\r\n".join(lines).encode() + data)
        for line in stream:
            if TEXT.search(line):
                watch.token()


def served_burst(url: str, model: str, clients: int, requests: int, tokens: int, words: int) -> Figures:
    first: list[float] = []
    gaps: list[float] = []

    def client(place: int) -> None:
        for turn in range(requests):
            ask(url, model, said(place * requests + turn, words), tokens, first, gaps)

    threads = [threading.Thread(target=client, args=(place,)) for place in range(clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return figures(began, clients * requests, first, gaps)


def figures(began: float, count: int, first: list[float], gaps: list[float]) -> Figures:
    took = time.monotonic() - began
    assert len(first) == count, "a request had no answer"
    return count / took, statistics.median(first), sorted(gaps)[int(len(gaps) * 0.99)] if gaps else 0.0


# -- the library ------------------------------------------------------------------------------------------


async def library(folder: str) -> None:
    """Answer bursts: a line of numbers on standard input, a line of figures on standard output."""
    from mlxengine import AsyncInferenceEngine, AsyncTextHandle, GenerateParams, Message, TextDelta

    async def client(
        handle: AsyncTextHandle, prompts: list[str], tokens: int, first: list[float], gaps: list[float]
    ) -> None:
        params = GenerateParams(max_tokens=tokens, temperature=0)
        for prompt in prompts:
            watch = Watch(first, gaps)
            async for event in handle.stream([Message.user(prompt)], params):
                if isinstance(event, TextDelta) and event.text:
                    watch.token()

    async with AsyncInferenceEngine() as engine:
        handle = await engine.load_text(folder)
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            clients, requests, tokens, words = map(int, line.split())
            first: list[float] = []
            gaps: list[float] = []
            began = time.monotonic()
            await asyncio.gather(
                *(
                    client(
                        handle,
                        [said(place * requests + turn, words) for turn in range(requests)],
                        tokens,
                        first,
                        gaps,
                    )
                    for place in range(clients)
                )
            )
            print(*figures(began, clients * requests, first, gaps), flush=True)


@contextmanager
def library_process(folder: str) -> Iterator[tuple[int, Callable[..., Figures]]]:
    """The library in a process of its own: its id, and what measures a burst in it."""
    command = [sys.executable, "-m", "benchmarks.language.served", folder, "--library"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        given, found = process.stdin, process.stdout
        assert found.readline() == "ready\n"

        def burst(*numbers: int) -> Figures:
            print(*numbers, file=given, flush=True)
            rate, first, gap = map(float, found.readline().split())
            return rate, first, gap

        yield process.pid, burst
        given.close()


# -- side by side -----------------------------------------------------------------------------------------


def measure(folder: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each number of clients and side."""
    ports = [free_port(), free_port()]
    ours, theirs = (f"http://127.0.0.1:{port}" for port in ports)
    serve = ["-m", "mlxengine", "serve", "--port", str(ports[0]), "--max-waiting", "1000"]
    engine = [sys.executable, *serve, "--model", f"m={folder}"]
    peer = [sys.executable, "-c", PEER, "--port", str(ports[1]), "--model", folder]
    sides: dict[str, tuple[int, Callable[..., Figures]]] = {}
    with ExitStack() as open_:
        served_id = open_.enter_context(server(engine, ours, "/ready"))
        sides["mlxengine"] = served_id, lambda *numbers: served_burst(ours, "m", *numbers)
        sides["library"] = open_.enter_context(library_process(folder))
        if not options.no_peer:
            peer_id = open_.enter_context(server(peer, theirs, "/v1/models"))
            sides["mlx_lm"] = peer_id, lambda *numbers: served_burst(theirs, folder, *numbers)
        for clients in options.clients:
            found: dict[str, list[tuple[float, ...]]] = {name: [] for name in sides}
            for turn in range(options.rounds + 1):
                for name, (process, burst) in list(sides.items())[:: -1 if turn % 2 else 1]:
                    before, own = processor(process), time.process_time()
                    figures = burst(clients, options.requests, options.tokens, options.words)
                    spent = processor(process) - before, time.process_time() - own
                    found[name].append((*figures, *(each / (clients * options.requests) for each in spent)))
            rounds = {name: rows[1:] for name, rows in found.items()}
            rows = {
                name: [statistics.median(each) for each in zip(*of, strict=True)]
                for name, of in rounds.items()
            }
            for name, (rate, first, gap, *spent) in rows.items():
                row = {"clients": clients, "side": name, "requests_per_second": round(rate, 3)}
                row |= {"first_token_ms": round(first * 1e3, 1), "gap_p99_ms": round(gap * 1e3, 1)}
                yield {**row, "processor_ms": round(spent[0] * 1e3, 1), "client_ms": round(spent[1] * 1e3, 2)}
            last: dict[str, Any] = {"clients": clients}
            if "mlx_lm" in rows:
                names = ("requests_per_second", "first_token", "gap_p99", "processor")
                pairs = zip(names, rows["mlxengine"], rows["mlx_lm"], strict=False)
                last |= {name: round(a / b, 3) for name, a, b in pairs if b}
            both = list(zip(rounds["mlxengine"], rounds["library"], strict=True))
            overhead = {"requests_per_second": spread([1 - a[0] / b[0] for a, b in both])}
            overhead["processor"] = spread([a[3] / b[3] - 1 for a, b in both if b[3]])
            yield {**last, "http_overhead": overhead}


def spread(values: list[float]) -> list[float]:
    """The median of some values, the least and the most."""
    return [round(of(values), 3) for of in (statistics.median, min, max)] if values else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="a folder; else --shape says what is made")
    parser.add_argument("--shape", default="tiny", help="of benchmarks/shapes.py, or tiny")
    parser.add_argument("--dtype", default="float32", help="of the weights that --shape makes")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 32])
    parser.add_argument("--requests", type=int, default=2, help="of each client")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer, at most")
    parser.add_argument("--words", type=int, default=0, help="by which prompts are longer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-peer", action="store_true", help="leave mlx_lm.server out")
    parser.add_argument("--output", type=Path, help="a file for all rows, as one JSON list")
    parser.add_argument("--library", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.model or str(made(options.shape, options.dtype))
    if options.library:
        asyncio.run(library(folder))
        return
    rows = []
    for row in measure(folder, options):
        print(json.dumps(row), flush=True)
        rows.append(row)
        if options.output is not None:
            options.output.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


if __name__ == "__main__":
    main()
