"""One place for "the model that is in use": a new choice stops, frees and replaces the old one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from .._memory.live import LiveModel, PendingLoad
from ..errors import CancelledError
from .pool import ModelPool


class Switch:
    """Stop → await → release → load, where the last request wins."""

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._generation = 0
        self._pending: PendingLoad | None = None
        self._live: LiveModel | None = None

    def to(self, start: Callable[[], PendingLoad], given_up: Future[None] | None = None) -> LiveModel:
        """Free what the last switch loaded (its requests are cancelled), then load.

        Args:
            start: begins the load.
            given_up: done as soon as nobody waits for this switch any more.

        Raises:
            CancelledError: another switch came before this one was done, or it was given up.
        """
        given_up = given_up or Future()
        with self._lock:
            self._generation += 1
            mine = self._generation
            pending, self._pending = self._pending, None
            old, self._live = self._live, None
            if pending is not None and pending.waiters > 1:
                pending = None  # a load that others wait for too goes on
        if pending is not None:
            # Its memory must be free before ours is reserved; its own caller is told below.
            pending.cancelled.set()
            wait([pending.future])
            if pending.future.exception() is None:
                old = pending.future.result()
        if old is not None:
            self._pool.stop(old)
        with self._lock:
            if mine != self._generation:
                raise _overtaken()
            if given_up.done():
                raise _given_up()
            pending = self._pending = start()
        try:
            either: list[Future[Any]] = [pending.future, given_up]
            wait(either, return_when=FIRST_COMPLETED)
            if not pending.future.done():
                raise _given_up()
            live = pending.future.result()
        except BaseException as error:
            with self._lock:
                self._pool.give_up(pending)
                if self._pending is pending and pending.waiters > 0:
                    self._pending = None
            if mine != self._generation and isinstance(error, CancelledError):
                raise _overtaken() from error
            raise
        with self._lock:
            if mine == self._generation:
                self._live, self._pending = live, None
                return live
        self._pool.release(live)
        raise _overtaken()


def _given_up() -> CancelledError:
    return CancelledError("The switch was given up.")


def _overtaken() -> CancelledError:
    return CancelledError("Another switch came before this one was done.")
