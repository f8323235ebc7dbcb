"""The command where a process has little, and where nobody reads it to its end."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from .conftest import COMMAND

LIMITS = {"32 files": (resource.RLIMIT_NOFILE, 32), "12 files": (resource.RLIMIT_NOFILE, 12)}


def _limit(kind: int, most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (most, most))


@pytest.mark.parametrize("words", [("--help",), ("models",), ("run", "x")], ids=" ".join)
@pytest.mark.parametrize("read", [0, 1])
def test_a_reader_that_goes_away_ends_the_command_quietly(
    env: dict[str, str], words: tuple[str, ...], read: int
) -> None:
    here, there = os.pipe()
    process = subprocess.Popen([*COMMAND, *words], env=env, stdout=there, stderr=subprocess.PIPE, text=True)
    os.close(there)
    if read:
        os.read(here, read)
    os.close(here)
    shown = process.communicate(timeout=60)[1]
    assert process.returncode in (0, 141)
    for word in ("Traceback", "BrokenPipe", "Exception ignored"):
        assert word not in shown


@pytest.mark.parametrize("words", [("models",), ("run", "x"), ("doctor",)], ids=" ".join)
@pytest.mark.parametrize("place", ["no home", "a home that is not there", "the C locale", *LIMITS])
def test_a_command_works_where_there_is_little(
    env: dict[str, str], words: tuple[str, ...], place: str
) -> None:
    if "home" in place:
        env = {
            name: value for name, value in env.items() if not name.startswith(("HOME", "XDG_", "HF_HUB_C"))
        }
    if place == "a home that is not there":
        env["HOME"] = "/nonexistent/home"
    if place == "the C locale":
        env |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    before = _limit(*LIMITS[place]) if place in LIMITS else None
    done = subprocess.run([*COMMAND, *words], env=env, capture_output=True, timeout=60, preexec_fn=before)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("most", [150, 200, 250, 300, 400])
def test_a_command_without_memory_says_so(env: dict[str, str], most: int) -> None:
    before = _limit(resource.RLIMIT_AS, most * 2**20)
    done = subprocess.run(
        [*COMMAND, "run", "x"], env=env, capture_output=True, text=True, timeout=60, preexec_fn=before
    )
    assert done.returncode in (0, 5), done.stderr
    assert "Traceback" not in done.stderr
    assert "foresees" not in done.stderr


def test_ctrl_c_after_the_answer_does_not_change_how_the_command_ended(env: dict[str, str]) -> None:
    code = "import atexit, time; atexit.register(lambda: (print('over', flush=True), time.sleep(1)))"
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"{code}; import sys; from mlxengine.cli import entry; sys.exit(entry())",
            "run",
            "x",
        ],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while process.stdout.readline() != "over\n":
        assert process.poll() is None
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
