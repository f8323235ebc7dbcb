"""The command as a person, or a script, starts it: a process of its own, with nothing of this user's."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest
from attrs import frozen
from mlxengine.cli import main

COMMAND = [sys.executable, "-m", "mlxengine"]


@frozen
class Ran:
    """A finished process."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An environment without settings, with an empty cache, offline, and with the mock back end."""
    ours = ("MLXENGINE_", "HF_", "XDG_", "COLUMNS", "LINES", "NO_COLOR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "MLXENGINE_FEATURES": "core.mock",
        "TERM": "xterm",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }


@pytest.fixture
def run(env: dict[str, str]) -> Callable[..., Ran]:
    """Run the command without a terminal: ``run("models", "--json", input="…", MLXENGINE_BLAS="off")``."""

    def run(*words: str, input: str = "", **more: str) -> Ran:
        done = subprocess.run(
            [*COMMAND, *words], env=env | more, input=input, capture_output=True, text=True, timeout=120
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def call(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """The same as ``run`` in this process: many cases in the time of a few."""
    for name in os.environ:
        if name not in env:
            monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdin", io.StringIO())

    def call(*words: str, **more: str) -> Ran:
        for name, value in more.items():
            monkeypatch.setenv(name, value)
        code = main(words)
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err, shown.err
        return Ran(code, shown.out, shown.err)

    return call


@pytest.fixture
def terminal(env: dict[str, str]) -> Callable[..., pexpect.spawn]:
    """Start the command in a terminal of 80 columns."""
    started: list[pexpect.spawn] = []

    def terminal(*words: str, columns: int = 80, **more: str) -> pexpect.spawn:
        child = pexpect.spawn(
            COMMAND[0],
            [*COMMAND[1:], *words],
            env=env | more,
            dimensions=(24, columns),
            encoding="utf-8",
            timeout=120,
        )
        started.append(child)
        return child

    yield terminal
    for child in started:
        child.close(force=True)
