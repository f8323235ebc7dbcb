"""``mlxengine serve`` as a process: it begins quickly, brings no model library, and ends in order."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mlxengine.cli import main
from mlxengine_echo import write_model
from mlxengine_serve import cli
from mlxengine_serve._uvicorn import Protocol
from mlxengine_serve.app import DIALECTS, dialect

IMPORTS = "import sys, mlxengine_serve.plugin; print(*sorted(sys.modules))"
HI = [{"role": "user", "content": "hi there"}]
HEAVY = ("mlx", "numpy", "transformers", "torch", "mlx_lm", "PIL", "fastapi", "pydantic")


@contextmanager
def process(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The verb on a free port; the process and its address."""
    with started([sys.executable, "-m", "mlxengine", "serve", "--port", "0", "--json", *words]) as found:
        yield found


@contextmanager
def started(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        try:
            yield running, json.loads(line)["url"] if line else ""
        finally:
            running.kill()


def test_looking_for_plugins_imports_no_server() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert not {"starlette", "uvicorn", *HEAVY} & set(done.stdout.split())


LATE = {"_any_kind", "_asking", *(name.partition(":")[0] for name in DIALECTS.values())}
LATE_BESIDES = {
    "mlxengine.text.requests",
    "mlxengine.vectors.requests",
    "prometheus_client",
    "huggingface_hub",
}


def test_a_dialect_is_imported_when_it_is_first_asked_for_and_every_one_is_there() -> None:
    code = "import sys, mlxengine_serve.app, mlxengine_serve.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    late = {f"mlxengine_serve.{name}" for name in LATE} | LATE_BESIDES
    assert not late & set(done.stdout.split())
    assert [dialect(path).table.path for path in DIALECTS] == list(DIALECTS)


def test_connections_are_read_and_written_by_httptools() -> None:
    assert Protocol.__base__.__module__ == "uvicorn.protocols.http.httptools_impl"  # type: ignore[union-attr]


def test_it_serves_and_ends_in_order_at_sigterm() -> None:
    with process("--feature", "core.mock", "--model", "mock/llm") as (running, url):
        deadline = time.monotonic() + 20
        while httpx2.get(f"{url}/ready", trust_env=False).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert httpx2.get(f"{url}/v1/models", trust_env=False).json()["data"][0]["id"] == "mock/llm"
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == 0
        assert running.stderr is not None
        assert "Traceback" not in running.stderr.read()


HANGS = """
import time
from mlxengine._scheduling.rounds import Rounds
step = Rounds._advance
Rounds._advance = lambda self, task: (step(self, task), time.sleep(20 if task.answers else 0))
"""


@pytest.mark.parametrize(
    ("before", "stays"),
    [("", True), (HANGS, True), (HANGS, False)],
    ids=["a stream", "a step that does not return", "such a step whose client has left"],
)
def test_a_second_ctrl_c_ends_it_at_once_and_quietly(tmp_path: Path, before: str, stays: bool) -> None:
    model = write_model(tmp_path / "echo", context_length=10**9)
    code = f"{before}\nimport sys; from mlxengine.cli import entry; sys.exit(entry())"
    words = ["serve", "--port", "0", "--json", "--model", f"m={model}"]
    body = {"messages": HI, "stream": True, "max_tokens": 10**8, "ignore_eos": True}
    with (
        started([sys.executable, "-c", code, *words]) as (running, url),
        httpx2.stream("POST", f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=60) as answer,
    ):
        chunks = answer.iter_raw()
        next(chunks)
        if not stays:
            answer.close()
        running.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):  # what runs may end
            running.wait(0.5)
        running.send_signal(signal.SIGINT)
        assert running.wait(15) == 130
        assert running.stderr is not None
        assert running.stderr.read() == ""


@pytest.mark.parametrize("turns", [0, 2], ids=["before the loop turns", "and after"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_while_the_engine_is_made_ends_it_quietly(number: int, code: int, turns: int) -> None:
    before = f"""
import asyncio, os, sys
from mlxengine import AsyncInferenceEngine
from mlxengine.cli import entry
enter = AsyncInferenceEngine.__aenter__
async def early(engine):
    os.kill(os.getpid(), {int(number)})
    for _ in range({turns}):
        await asyncio.sleep(0.01)
    return await enter(engine)
AsyncInferenceEngine.__aenter__ = early
sys.exit(entry())
"""
    with started([sys.executable, "-c", before, "serve", "--port", "0", "--json"]) as (running, _):
        assert running.wait(20) == code
        assert running.stderr is not None
        assert running.stderr.read() == ""


def test_a_model_that_cannot_be_loaded_ends_it_with_the_code_of_the_error(tmp_path: Path) -> None:
    with process("--offline", "--model", "org/nothing") as (running, _):
        assert running.wait(20) == 3
    folder = tmp_path / "empty"
    folder.mkdir()
    with process("--model", str(folder)) as (running, _):
        assert running.wait(20) == 3


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--host", "0.0.0.0"), "without a key"),
        (("--port", "99999"), "cannot be listened on"),
        (("--alias", "x"), "NAME=MODEL"),
        (("--keys", "/nowhere"), "cannot be read"),
        (("--wait-timeout", "-1"), "positive number"),
        (("--tls-key", __file__), "goes with --tls-cert"),
        (("--tls-cert", __file__), "names a chain in PEM"),
        (("--tls-cert", "/nowhere"), "/nowhere cannot be served with"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(words: tuple[str, ...], told: str) -> None:
    command = [sys.executable, "-m", "mlxengine", "serve", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=os.environ)
    assert done.returncode == 2
    assert told in done.stderr


def test_replicas_without_the_plugin_that_has_them_are_refused_with_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlxengine_ray.serving", None)
    assert main(["serve", "--port", "0", "--replicas", "2"]) == 2
    assert 'pip install "mlxengine-ray[serve]"' in capsys.readouterr().err


def test_ranks_are_a_flag_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    cli.configure(parser)
    monkeypatch.setattr(cli, "_alone", lambda _options, made_with, _failed: made_with["features"])
    found = []
    for words in (["--ranks", "2"], []):
        arguments = parser.parse_args(words)
        with contextlib.ExitStack() as stack:
            application: Any = cli._application(arguments, cli.options_of(arguments), stack)
            found.append(application(print).get("shard.ranks"))
    assert found == [2, None]
