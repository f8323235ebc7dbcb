"""Hashing content as the hub does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..contract.configuration import FileInfo
from .access import Cancelled, check, never

_BLOCK = 1 << 20


class Digest:
    """A running content hash of the kind that ``FileInfo.hash`` names.

    ``sha256`` is over the content; ``git`` (git's blob id) is SHA-1 over ``b"blob <size>\\0"`` and the
    content.
    """

    def __init__(self, file: FileInfo) -> None:
        kind = (file.hash or "").partition(":")[0]
        self._kind = kind
        self._state: Any
        if kind == "git":
            self._state = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
        else:
            self._state = hashlib.sha256()

    def update(self, data: bytes | memoryview) -> None:
        self._state.update(data)

    def text(self) -> str:
        return f"{self._kind}:{self._state.hexdigest()}"


def hash_file(
    path: Path, file: FileInfo, cancelled: Cancelled = never, advance: Callable[[int], None] | None = None
) -> str | None:
    """The content hash of a file on the disk; ``None`` if it is not there, or not of the file's size.

    Raises:
        CancelledError: the caller gave up, which says nothing about the file.
    """
    try:
        with path.open("rb", buffering=0) as handle:
            digest, size, block = Digest(file), 0, bytearray(_BLOCK)
            view = memoryview(block)
            while count := handle.readinto(block):
                digest.update(view[:count])
                size += count
                if size > file.size:
                    return None
                check(cancelled)
                if advance is not None:
                    advance(count)
    except OSError:
        return None
    return digest.text() if size == file.size else None


def hash_bytes(data: bytes, file: FileInfo) -> str:
    """The content hash of bytes in memory."""
    digest = Digest(file)
    digest.update(data)
    return digest.text()
