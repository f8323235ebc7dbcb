"""Kills a download at each of its steps on the file system, one after the other.

``python -m tests.hub.stepwise ENDPOINT FOLDER REPO EVERY`` forks a child for every EVERY-th step; the child
kills itself (SIGKILL) right before that step. A step is a file that is opened, written, renamed, linked,
made or removed below its cache. Then the parent looks at what was left, and lets a second child finish.
Prints one line of JSON for each: the step, what it was, whether the model was ready after the kill, and
what came of the second child.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# everything that a download imports, so that the children need not
import filelock  # noqa: F401
import httpx2  # noqa: F401
from huggingface_hub import constants, errors, snapshot_download, utils  # noqa: F401
from mlxengine import hub

EVENTS = frozenset(
    {"open", "os.rename", "os.mkdir", "os.remove", "os.symlink", "os.link", "os.rmdir", "os.truncate"}
)


class _Steps:
    """Counts the steps below a folder, and ends the process before the one that was chosen."""

    def __init__(self, folder: Path, last: int, report: int) -> None:
        self._folder, self._last, self._report, self.count = str(folder), last, report, 0
        write = os.pwrite

        def pwrite(descriptor: int, data: Any, offset: int) -> int:
            half = memoryview(data)[: max(1, len(data) // 2)]
            if self.step("write"):
                write(descriptor, half, offset)
                self.die("in the middle of a write")
            return write(descriptor, data, offset)

        os.pwrite = pwrite
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and any(self._folder in str(item) for item in arguments) and self.step(event):
            self.die(f"{event} {Path(str(arguments[0])).name[:60]}")

    def step(self, what: str) -> bool:
        self.count += 1
        return self.count == self._last

    def die(self, what: str) -> None:
        os.write(self._report, what.encode())
        os.kill(os.getpid(), signal.SIGKILL)


def _child(act: Callable[[int], None]) -> tuple[int, str]:
    """Run a function in a fork; returns its exit status and what it wrote to the pipe it was given."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            act(write)
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
            os._exit(1)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        text = stream.read()
    return os.waitpid(pid, 0)[1], text


def main(endpoint: str, folder: str, repo: str, every: str) -> None:
    for step in range(1, 100_000, int(every)):
        cache = Path(folder) / str(step)
        cache.mkdir()

        def fetch(_report: int, cache: Path = cache) -> None:
            hub.fetch(repo, files=["*"], endpoint=endpoint, cache_dir=cache)

        def killed(report: int, cache: Path = cache, step: int = step) -> None:
            _Steps(cache, step, report)
            fetch(report)

        status, what = _child(killed)
        if status == 0:
            return  # there are not so many steps
        ready = [str(m.path) for model in hub.list_local(cache_dir=cache) for m in model.revisions if m.ready]
        again, problem = _child(fetch)
        print(
            json.dumps({"step": step, "what": what, "ready": ready, "again": again, "problem": problem}),
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
