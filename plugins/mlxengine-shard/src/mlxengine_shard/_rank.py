"""The process of one rank, ``python -m mlxengine_shard._rank DESCRIPTOR``; `Ranks` starts it."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from typing import Any, NoReturn

from ._line import Line, Said, packed

BEAT_SECONDS = 0.5
"""A rank that is at work says so often that it lives."""


class _Rank:
    """Its end of the line.

    Args:
        descriptor: of the socket.
    """

    def __init__(self, descriptor: int) -> None:
        self._inbox: SimpleQueue[Said] = SimpleQueue()
        self._line = Line(socket.socket(fileno=descriptor), self._heard, 0)
        self._works = True
        threading.Thread(target=self._beat, name="mlxengine-shard-beat", daemon=True).start()

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            if self._works:
                self._line.beat()

    def _heard(self, said: Said) -> None:
        if said.message is None:  # nobody is left to work for, even where a collective never returns
            os._exit(0)
        self._inbox.put(said)

    def serve(self) -> NoReturn:
        """Build this rank's part and do what the leader says, until the leader is gone."""
        try:
            settings = self._next().message
            assert settings is not None
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
                assert said.message is not None
                self._say(mirror.answer(said.message, said.raw))
        except Exception as error:
            from mlxengine.errors import out_of_memory

            self._say({"error": f"{type(error).__name__}: {error}", "memory": out_of_memory(error)})
        while True:  # others may wait for this one in a collective: whoever started them ends them
            self._next()

    def _ask(self, rows: Sequence[int], logits: bytes) -> Sequence[int]:
        if logits:
            self._say({"draw": list(rows)}, logits)
        said = self._next().message
        assert said is not None
        tokens: Sequence[int] = said["tokens"]
        return tokens

    def _next(self) -> Said:
        return self._inbox.get()

    def _say(self, message: Mapping[str, Any], data: bytes = b"") -> None:
        self._line.send(packed(message, data))


if __name__ == "__main__":
    _Rank(int(sys.argv[1])).serve()
