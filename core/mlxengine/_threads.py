"""What Python's threads do not say about the system's."""

from __future__ import annotations

import threading
import time
from pathlib import Path


def wait_until_gone(thread: threading.Thread, seconds: float = 1.0) -> None:
    """Wait until the system's thread is gone, which is a moment after Python's has been joined.

    mlx keeps compiled functions per thread and frees them, under the GIL, when the system's thread exits.
    If the interpreter ends in that moment, the process aborts.
    """
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        time.sleep(0.02)  # elsewhere nothing tells; the GIL is all that the thread waits for
        return
    deadline = time.perf_counter() + seconds
    while tasks.joinpath(str(thread.native_id)).exists() and time.perf_counter() < deadline:
        time.sleep(0.001)
