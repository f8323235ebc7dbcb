"""What the leader and its ranks say to each other: a JSON object and bytes behind it, over a socket pair.

It is a channel outside mx.distributed: a rank that has nothing to do sleeps on it, where one that waited in a
collective would take a whole core.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, frozen

_HEAD = struct.Struct(">II")
_PATIENCE = 30  # seconds that sending may wait for a reader that has stopped
_BEAT = bytes(_HEAD.size)  # a message without anything


@frozen
class Said:
    """A message of one end; ``message`` is ``None`` when the other end is gone.

    ``raw`` is the text of the message.
    """

    rank: int
    message: Mapping[str, Any] | None = None
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
        put: given what comes, in order, on a thread of the line's own.
        rank: whose that is.

    Attributes:
        beats: how often the other end said only that it lives.
    """

    def __init__(self, end: socket.socket, put: Callable[[Said], None], rank: int) -> None:
        self._end = end
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _PATIENCE, 0))
        self._put = put
        self._rank = rank
        self._sending = threading.Lock()
        self.beats = 0
        self._thread = threading.Thread(target=self._read, name=f"mlxengine-shard-line-{rank}", daemon=True)
        self._thread.start()

    def send(self, content: bytes) -> None:
        """Send what `packed` made.

        Raises:
            OSError: the other end is gone, or does not read.
        """
        with self._sending:
            self._end.sendall(content)

    def beat(self) -> None:
        """Say that this process lives; on any thread, for as long as the other end reads."""
        with contextlib.suppress(OSError):
            self.send(_BEAT)

    def close(self) -> None:
        """Close it; the thread has ended when this returns."""
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._end.close()

    def _read(self) -> None:
        try:
            while head := self._take(_HEAD.size):
                if head == _BEAT:
                    self.beats += 1
                    continue
                length, more = _HEAD.unpack(head)
                raw = self._take(length)
                self._put(Said(self._rank, json.loads(raw), self._take(more), raw))
        except (OSError, EOFError):
            pass
        self._put(Said(self._rank))

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
