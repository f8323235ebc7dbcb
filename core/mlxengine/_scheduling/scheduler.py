"""The only owner of a thread that touches a model.

Every model is evaluated, run and closed on one thread, because an mlx stream belongs to a thread and
because two models that interleave step by step share the device better than two threads that fight for
it. What comes from other threads waits in an inbox; between two looks at it a model has its turn (`Rounds`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

from ..errors import CancelledError, EngineClosedError, GenerationError
from .faults import running
from .rounds import Rounds
from .task import SchedulerStatus, Task
from .threads import forked, give_up_streams, refuse_fork, start, wait_until_gone

if TYPE_CHECKING:
    from ..contract.device import DeviceBackend

log = logging.getLogger("mlxengine.scheduler")
T = TypeVar("T")
_Posted = tuple[Callable[[], None], Callable[[BaseException], object]]


class Scheduler:
    """Runs tasks and calls on one thread, which starts with the first of them and can be replaced."""

    def __init__(self, name: str = "mlxengine-scheduler") -> None:
        self._name = name
        self._process = os.getpid()
        self._wake = threading.Condition()
        self._inbox: deque[_Posted] = deque()  # what to do, and whom to tell where that cannot be
        self._thread: threading.Thread | None = None
        self._closed = False
        self._rounds = Rounds(self.nudge)
        self.later = self._rounds.later
        self._died: BaseException | None = None
        self._died_at: float | None = None
        self._busy: float | None = None  # since when it is at something; None while it waits

    # -- called from any thread -----------------------------------------------------------------------

    def submit(self, task: Task) -> None:
        """Queue a task.

        Raises:
            EngineClosedError: the scheduler was closed.
        """
        self._post(lambda: self._rounds.admit(task), task.finish)

    def heed(self, task: Task) -> None:
        """Keep a task's deadlines from now on, whether it was submitted or still waits for its model.

        Raises:
            EngineClosedError: the scheduler was closed.
        """
        self._post(lambda: self._rounds.heed(task), lambda _error: None)

    def cancel(self, task: Task) -> None:
        """Close a task's iterator before any further step of it; harmless when it is over."""
        task.cancelled = True
        if not task.done and not self._closed and not forked(self._process):
            self._post(lambda: self._rounds.cancel(task), lambda _error: None)

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run a function on the scheduler's thread, between two steps."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._post(run, future.set_exception)
        return future

    def run(self, function: Callable[[], T], timeout: float | None = None) -> T:
        """Run a function on the scheduler's thread and wait for it; from that thread, at once.

        Raises:
            TimeoutError: it has not come to its end within so many seconds; it still will.
        """
        if threading.current_thread() is self._thread:
            return function()
        return self.call(function).result(timeout)

    def use(self, make: Callable[[], DeviceBackend]) -> DeviceBackend:
        """Make a back end on the scheduler's thread and evaluate under its stream from now on."""

        def enter() -> DeviceBackend:
            self._rounds.backend = backend = make()
            self._enter_stream()
            return backend

        return self.run(enter)

    @property
    def thread(self) -> threading.Thread | None:
        """The thread, once there was work for it."""
        return self._thread

    def nudge(self) -> None:
        """A reader has room again."""
        if forked(self._process):
            return
        with self._wake:
            self._wake.notify()

    def status(self) -> SchedulerStatus:
        """What the loop is doing now; safe from any thread, never waits."""
        thread = self._thread
        now, busy = running(thread), self._busy
        seconds = 0.0 if busy is None else time.perf_counter() - busy
        return SchedulerStatus(
            alive=thread is not None and thread.is_alive(),
            running=now.record.name if now else None,
            running_seconds=now.seconds if now else seconds,
            tasks=len(self._rounds.tasks()),
            died=None if self._died is None else f"{type(self._died).__name__}: {self._died}",
            died_at=self._died_at,
            patience=self._rounds.patience() if now else None,
        )

    def close(self, timeout: float | None = 30.0) -> None:
        """Cancel everything, run what is queued, and end the thread. May be called twice."""
        if forked(self._process):
            return
        with self._wake:
            self._closed = True
            thread = self._thread
            self._wake.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
            if not thread.is_alive():
                wait_until_gone(thread)

    def tell_all(self, error: BaseException) -> None:
        """End every request and refuse what is queued, while a step that does not return has the thread."""
        with self._wake:
            posted = list(self._inbox)
            self._inbox.clear()
        for _, fail in posted:
            fail(error)
        for task in self._rounds.tasks():
            task.finish(error)

    def end_group(self, key: Hashable, error: BaseException) -> None:
        """End every task of a model; on the scheduler's thread."""
        self._rounds.end_group(key, error)

    # -- the loop ------------------------------------------------------------------------------------

    def _post(self, action: Callable[[], None], fail: Callable[[BaseException], object]) -> None:
        refuse_fork(self._process)
        with self._wake:
            if self._closed:
                raise EngineClosedError("The engine is closed.")
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._main, name=self._name, daemon=True)
                start(thread)
                self._thread = thread
            self._inbox.append((action, fail))
            self._wake.notify()

    def _main(self) -> None:
        died: BaseException | None = None
        tasks: list[Task] = []
        with ExitStack() as stack:
            self._stack = stack
            try:
                if self._rounds.backend is not None:
                    self._enter_stream()
                while self._turn():
                    pass
            except BaseException as error:
                died = error
                tasks = self._rounds.abandon()
            else:
                self._rounds.end_everything(
                    CancelledError("The engine was closed while the request was running.")
                )
        give_up_streams(self._rounds.backend)
        if died is not None:
            self._die(died, tasks)

    def _enter_stream(self) -> None:
        assert self._rounds.backend is not None
        self._stack.enter_context(self._rounds.backend.stream())

    def _turn(self) -> bool:
        """Take in what is new, then let one model go; ``False`` when the scheduler was closed."""
        with self._wake:
            self._busy = None
            while not (self._inbox or self._closed or self._rounds.runnable()):
                if not self._wake.wait(self._rounds.until_due()):
                    break
            posted, closed = list(self._inbox), self._closed
            self._inbox.clear()
            self._busy = time.perf_counter()
        for action, _ in posted:
            action()
        if closed:
            return False
        self._rounds.expire()
        self._rounds.turn()
        return True

    def _die(self, error: BaseException, tasks: list[Task]) -> None:
        """The loop itself failed: tell every waiting caller at once; the next call starts a new thread.

        The streams were given up before, because the next thread frees what this one compiled.
        """
        log.critical("The scheduler's thread died", exc_info=error)
        self._died, self._died_at = error, time.monotonic()
        self._busy = None
        typed = GenerationError(
            f"The engine's thread failed: {type(error).__name__}: {error}.",
            hint="Try again: the engine starts a new thread with the next call.",
            recoverable=True,
        )
        typed.__cause__ = error
        with self._wake:
            posted = list(self._inbox)
            self._inbox.clear()
            self._thread = None
        # Only now: whoever is told may try again at once, on the next thread.
        for _, fail in posted:
            fail(typed)
        for task in tasks:
            task.finish(typed)


__all__ = ["Scheduler", "SchedulerStatus"]
