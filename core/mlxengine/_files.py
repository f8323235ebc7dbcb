"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import time
from pathlib import Path


def write_atomically(path: Path, data: bytes, temporary: Path | None = None, *, durable: bool = True) -> None:
    """Write a small file so that it is there whole or not at all; if ``durable``, also after a power cut.

    What it replaces is lost only once the new one is whole. ``temporary`` is where it is written first;
    beside ``path`` if it is not given. It is gone afterwards, whatever happens.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = temporary or path.with_name(f".{path.name[:40]}-{os.getpid()}-{time.monotonic_ns()}")
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            if durable:
                os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make names in a folder survive a power cut, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


__all__ = ["sync_folder", "write_atomically"]
