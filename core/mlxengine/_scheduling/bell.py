"""What wakes an event loop from another thread."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import finalize, ref

if TYPE_CHECKING:
    import asyncio


class Bell:
    """Calls a function on an event loop, rung from any thread, which does not let go of Python's lock for it.

    ``loop.call_soon_threadsafe`` writes to a socket, and Python's own writes let the lock go meanwhile. Then
    the loop has it, and with many readers the device's thread waits for a millisecond to get it back.

    Args:
        loop: the running one.
        answer: what to call on it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, answer: Callable[[], None]) -> None:
        import ctypes  # not needed to import the engine, which has to be quick

        self._loop = ref(loop)
        self._heard, self._rope = os.pipe()
        os.set_blocking(self._heard, False)
        os.set_blocking(self._rope, False)
        self._write = ctypes.PyDLL(None).write  # unlike CDLL's, its calls keep the lock
        self._write.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)
        loop.add_reader(self._heard, self._come, answer)  # which holds this, so this does not hold it
        finalize(loop, _close, self._heard, self._rope).atexit = False

    def ring(self) -> None:
        """Have the function called soon, once for all rings until then."""
        loop = self._loop()  # held, so that its pipe stays open
        if loop is not None:
            self._write(self._rope, b"!", 1)

    def _come(self, answer: Callable[[], None]) -> None:
        os.read(self._heard, 64)
        answer()


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


__all__ = ["Bell"]
