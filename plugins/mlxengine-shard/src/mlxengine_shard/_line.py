"""What the leader and its ranks say to each other: a JSON object and bytes behind it, over a socket pair.

It is a channel outside mx.distributed: a rank that has nothing to do sleeps on it, where one that waited in a
collective would take a whole core. Each end reads on the thread that waits for what comes: a message that has
to pass from one thread to another costs more than the rest of it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

_HEAD = struct.Struct(">II")
_BEAT = bytes(_HEAD.size)  # a message without anything


@frozen
class Said:
    """A message; ``raw`` is its text. One without a text says only that the other end lives."""

    message: Mapping[str, Any]
    data: bytes = field(default=b"", repr=False)
    raw: bytes = field(default=b"", repr=False)


def packed(message: Mapping[str, Any], data: bytes = b"") -> bytes:
    """A message as `Line` sends it."""
    text = json.dumps(message).encode()
    return _HEAD.pack(len(text), len(data)) + text + data


class Line:
    """One end.

    Args:
        end: a connected stream socket, closed with the line.
        sends, reads: seconds that the other end may keep this one waiting within a message; 0: for ever.
    """

    def __init__(self, end: socket.socket, *, sends: float = 0.0, reads: float = 0.0) -> None:
        self._end = end
        for option, seconds in ((socket.SO_SNDTIMEO, sends), (socket.SO_RCVTIMEO, reads)):
            end.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), 0))
        self._sending = threading.Lock()

    def fileno(self) -> int:
        """The descriptor, to wait on."""
        return self._end.fileno()

    def send(self, content: bytes) -> None:
        """Send what `packed` made; on any thread.

        Raises:
            OSError: the other end is gone, or does not read.
        """
        with self._sending:
            self._end.sendall(content)

    def beat(self) -> None:
        """Say that this process lives, if there is anybody to hear it."""
        with contextlib.suppress(OSError):
            self.send(_BEAT)

    def read(self) -> Said:
        """Wait for the next message.

        Raises:
            EOFError: the other end is gone.
            OSError: it is gone, or does not go on (`BlockingIOError`).
        """
        head = self._take(_HEAD.size)
        if head == _BEAT:
            return Said({})
        length, more = _HEAD.unpack(head)
        raw = self._take(length)
        return Said(json.loads(raw), self._take(more), raw)

    def close(self) -> None:
        """Close it."""
        self._end.close()

    def _take(self, count: int) -> bytes:
        found = bytearray(count)
        view = memoryview(found)
        while view:
            got = self._end.recv_into(view)
            if not got:
                raise EOFError
            view = view[got:]
        return bytes(found)


__all__ = ["Line", "Said", "packed"]
