"""What the server costs on top of the library: processor time a token, and how soon it answers.

python -m benchmarks.engine.http [--tokens 4000] [--streams 8]

The model is the example back end `mlxengine-echo`, which takes next to nothing itself. Processor time is
measured, not the clock: that of the process that serves, so that the client and others do not count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from mlxengine import AsyncInferenceEngine, GenerateParams, TextDelta
from mlxengine_echo import write_model

from benchmarks.language.served import processor

BODY = {"messages": [{"role": "user", "content": "the house that Jack built"}], "ignore_eos": True}


@contextmanager
def server(model: Path) -> Iterator[tuple[int, str, float]]:
    """A server of its own process: its id, its address, seconds from its start until it is ready."""
    began = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "mlxengine",
        "serve",
        "--port",
        "0",
        "--json",
        "--model",
        f"echo={model}",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        while httpx2.get(f"{url}/ready", trust_env=False).status_code != 200:
            time.sleep(0.005)
        yield process.pid, url, time.monotonic() - began
        process.terminate()


def read(url: str, tokens: int, first: list[float]) -> None:
    """Read one stream to its end, by hand: a client library would take longer than the server."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({**BODY, "max_tokens": tokens, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as raw:
        began, seen = time.monotonic(), b""
        raw.sendall(head.encode() + body)
        while b"[DONE]" not in seen:
            seen = seen[-16:] + raw.recv(1 << 16)
            if len(first) < 1000 and began:
                first.append(time.monotonic() - began)
                began = 0.0


async def library(model: Path, tokens: int, streams: int) -> float:
    """Processor time of the same requests without a server."""
    async with AsyncInferenceEngine() as engine:
        handle = await engine.load_text(model)
        params = GenerateParams(max_tokens=tokens, ignore_eos=True)

        async def one() -> int:
            found = 0
            async for event in handle.stream("the house that Jack built", params):
                found += isinstance(event, TextDelta)
            return found

        began = time.process_time()
        counts = await asyncio.gather(*(one() for _ in range(streams)))
        assert counts == [tokens] * streams
        return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--streams", type=int, default=8)
    options = parser.parse_args()
    tokens, streams = options.tokens, options.streams
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "echo", context_length=10**9)
        alone = min(asyncio.run(library(model, tokens, streams)) for _ in range(3))
        with server(model) as (pid, url, ready):
            spent, first = [], list[float]()
            for _ in range(3):
                before = processor(pid)
                threads = [threading.Thread(target=read, args=(url, tokens, first)) for _ in range(streams)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                spent.append(processor(pid) - before)
            quick: list[float] = []
            for _ in range(50):
                read(url, 1, quick)
    total = tokens * streams
    found = {
        "library_us_per_token": round(alone / total * 1e6, 1),
        "server_us_per_token": round(min(spent) / total * 1e6, 1),
        "one_token_ms_median": round(sorted(quick)[25] * 1e3, 2),
        "start_to_ready_s": round(ready, 3),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
