"""The server behind nginx, caddy and vllm-router, by the settings in ``deploy``: ``make test-clients``.

Needs nginx and caddy (Debian: ``apt-get install nginx-light caddy``), and an index of packages for the
router.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mlxengine import Event, Finished, Request, TextDelta

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from check_clients import environment  # noqa: E402
from mlxengine_serve import ServerOptions  # noqa: E402
from serve_harness import Scripted, Served, serving, write_model  # noqa: E402

DEPLOY = Path(__file__).parents[4] / "deploy"
CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
NAME = {"host": "models.example"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = write_model(tmp_path_factory.mktemp("models") / "m")
    options = ServerOptions(models=[f"m={folder}"], hosts=["models.example"])
    with serving(options, Scripted()) as made:
        made.wait_until(lambda: made.get("/ready").status_code == 200)
        yield made


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def nginx(server: Served, port: int, folder: Path) -> list[str]:
    site = (DEPLOY / "nginx.conf").read_text()
    site = re.sub(r"listen 80;", f"listen 127.0.0.1:{port};", site)
    site = site.replace("http://127.0.0.1:8080", server.url)
    paths = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    head = f"daemon off; pid {folder}/pid; error_log {folder}/log; events {{}}"
    (folder / "nginx.conf").write_text(f"{head} http {{ access_log off; {paths}\n{site}}}")
    return [_installed("nginx"), "-c", str(folder / "nginx.conf"), "-e", str(folder / "log")]


def caddy(server: Served, port: int, folder: Path) -> list[str]:
    text = (DEPLOY / "Caddyfile").read_text().replace("127.0.0.1:8080", server.url.removeprefix("http://"))
    text = text.replace("models.example {", f"http://models.example:{port} {{")
    (folder / "Caddyfile").write_text("{\n\tadmin off\n}\n" + text)
    return [_installed("caddy"), "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


def router(server: Served, port: int, _folder: Path) -> list[str]:
    python = environment("vllm_router", "vllm-router==0.1.17")
    words = ["--worker-urls", server.url, "--host", "127.0.0.1", "--port", str(port)]
    return [str(python.parent / "vllm-router"), *words, "--prometheus-port", str(free_port())]


def _installed(name: str) -> str:
    found = shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    assert found, f"{name} is not installed here"
    return found


@pytest.fixture(scope="module", params=[nginx, caddy, router], ids=lambda made: made.__name__)
def proxy(
    request: Any, server: Served, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, dict[str, str]]]:
    """A proxy's address, and the headers that go there."""
    make: Callable[[Served, int, Path], list[str]] = request.param
    port, folder = free_port(), tmp_path_factory.mktemp(make.__name__)
    headers = {} if make is router else NAME
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(make(server, port, folder), stdout=out, stderr=out)
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 60
            while True:
                try:
                    if httpx2.get(f"{url}/health", headers=headers, trust_env=False).status_code == 200:
                        break
                except httpx2.TransportError:
                    pass
                assert process.poll() is None, (folder / "out").read_text()[-2000:]
                assert time.monotonic() < deadline, (folder / "out").read_text()[-2000:]
                time.sleep(0.1)
            yield url, headers
        finally:
            process.terminate()
            process.wait(20)


def slowly(count: int) -> Callable[[Request], Iterator[Event]]:
    def plan(_request: Request) -> Iterator[Event]:
        for number in range(count):
            time.sleep(0.05)
            yield TextDelta(text=f"{number} ")
        yield Finished()

    return plan


def test_a_stream_passes_as_it_comes(server: Served, proxy: tuple[str, dict[str, str]]) -> None:
    assert server.plugin is not None
    server.plugin.plan = slowly(20)
    url, headers = proxy
    with httpx2.Client(trust_env=False, headers=headers, timeout=30) as client:
        times, texts = [], []
        with client.stream("POST", url + CHAT, json=BODY) as answer:
            assert answer.status_code == 200, answer.read()
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    times.append(time.monotonic())
                    texts.append(json.loads(line[6:])["choices"][0]["delta"].get("content") or "")
    assert "".join(texts) == "".join(f"{number} " for number in range(20))
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert times[-1] - times[0] > 0.8
    assert max(gaps) < 0.4, "nothing was collected"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_told_onwards(
    server: Served, proxy: tuple[str, dict[str, str]], stream: bool
) -> None:
    plugin = server.plugin
    assert plugin is not None
    plugin.plan = slowly(100_000)
    url, headers = proxy
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({**BODY, "stream": stream}).encode()
    lines = [f"POST {CHAT} HTTP/1.1", f"host: {headers.get('host', host)}", "content-type: application/json",
             f"content-length: {len(body)}", "", ""]  # fmt: skip
    with closing(socket.create_connection((host, int(port)))) as raw:
        raw.sendall("\r\n".join(lines).encode() + body)
        server.wait_until(lambda: plugin.alive == 1)
        time.sleep(0.3)
    assert server.wait_until(lambda: plugin.alive == 0) < 1.0


def test_pictures_and_messages_pass_too(server: Served, proxy: tuple[str, dict[str, str]]) -> None:
    assert server.plugin is not None
    server.plugin.plan = slowly(2)
    url, headers = proxy
    body = {"model": "m", "max_tokens": 9, "messages": BODY["messages"], "padding": "x" * 2_000_000}
    answer = httpx2.post(url + "/v1/messages", json=body, headers=headers, trust_env=False, timeout=30)
    assert (answer.status_code, answer.json()["content"][0]["text"]) == (200, "0 1 ")
