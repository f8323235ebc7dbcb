"""Downloads in processes of their own, which can be killed; and this module is their program.

``python -m tests.hub.processes ours|stock ENDPOINT CACHE REPO [TOKEN]`` fetches a repository and prints one
line of JSON: ``{"path": …}`` or ``{"error": class, "message": …}``, with the ``seconds`` that the call took,
imports not counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Download:
    """A running download."""

    def __init__(
        self, client: str, endpoint: str, cache: Path, repo: str, token: str | None = None, **environment: str
    ) -> None:
        arguments = [client, endpoint, str(cache), repo, *([token] if token else [])]
        own = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.hub.processes", *arguments],
            cwd=ROOT,
            env=os.environ | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def kill(self) -> None:
        """SIGKILL: no handler runs."""
        self.process.kill()
        self.process.communicate()

    def result(self, timeout: float = 60.0) -> dict[str, Any]:
        output, errors = self.process.communicate(timeout=timeout)
        if not output.strip():
            raise AssertionError(f"the process ended with {self.process.returncode}:\n{errors[-3000:]}")
        return dict(json.loads(output.strip().splitlines()[-1]))

    @property
    def running(self) -> bool:
        return self.process.poll() is None


def until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Wait for a condition; whether it came true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.002)
    return False


def _main(client: str, endpoint: str, cache: str, repo: str, token: str | None = None) -> None:
    from huggingface_hub import snapshot_download
    from mlxengine import hub

    start = time.perf_counter()
    try:
        if client == "stock":
            path = snapshot_download(repo, endpoint=endpoint, cache_dir=cache, token=token or False)
        else:
            path = str(hub.fetch(repo, files=["*"], endpoint=endpoint, cache_dir=cache, token=token))
    except Exception as error:
        result = {"error": type(error).__name__, "message": str(error)}
    else:
        result = {"path": path}
    print(json.dumps(result | {"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
