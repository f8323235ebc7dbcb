"""The process of one rank, ``python -m mlxengine_shard._rank DESCRIPTOR``; `Ranks` starts it."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ._line import Line, Said, packed

BEAT_SECONDS = 0.5
"""A rank that is at work says so often that it lives."""
_PATIENCE = 30.0  # seconds that the leader, which may be stopped, may keep it waiting within a message


class _Rank:
    """Its end of the line.

    Args:
        descriptor: of the socket.
    """

    def __init__(self, descriptor: int) -> None:
        self._line = Line(socket.socket(fileno=descriptor), sends=_PATIENCE)
        self._works = True
        self._leader = os.getppid()
        threading.Thread(target=self._live, name="mlxengine-shard-beat", daemon=True).start()

    def _live(self) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            if os.getppid() != self._leader:  # the main thread may wait for ever for a sum
                os._exit(0)
            if self._works:
                self._line.beat()

    def serve(self) -> NoReturn:
        """Build this rank's part and do what the leader says, until the leader is gone."""
        try:
            settings = self._next().message
            from mlxengine.toolkit import backend

            backend.MLXBackend()  # the engine's bounds on what mlx keeps
            import mlx.core as mx

            group = mx.distributed.init(strict=True, backend=settings["transport"])
            from ._mirror import Mirror

            mirror = Mirror(settings, group, self._ask)
            self._say({"ready": group.size()})
            while True:
                self._works = False
                said = self._next()
                self._works = True
                self._say(mirror.answer(said.message, said.raw))
        except Exception as error:
            from mlxengine.errors import out_of_memory

            self._say({"error": f"{type(error).__name__}: {error}", "memory": out_of_memory(error)})
        while True:  # others may wait for this one in a collective: whoever started them ends them
            self._next()

    def _ask(self, rows: Sequence[int], logits: bytes) -> Sequence[int]:
        if logits:
            self._say({"draw": list(rows)}, logits)
        tokens: Sequence[int] = self._next().message["tokens"]
        return tokens

    def _next(self) -> Said:
        try:
            return self._line.read()
        except (OSError, EOFError):
            os._exit(0)

    def _say(self, message: Mapping[str, Any], data: bytes = b"") -> None:
        self._line.send(packed(message, data))


if __name__ == "__main__":
    _Rank(int(sys.argv[1])).serve()
