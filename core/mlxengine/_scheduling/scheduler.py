"""The only owner of a thread that touches a model: a fair loop over event iterators.

Every model is evaluated, run and closed on one thread, because an mlx stream belongs to a thread and
because two models that interleave step by step share the device better than two threads that fight for
it. Fair means device time: each model has a clock that advances with the measured time of its steps,
divided by its weight, and the model whose clock is furthest behind goes next (stride scheduling over
measured costs; Waldspurger and Weihl, 1995). Idle models do not save up time.
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
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import frozen

from ..contract.events import Event, Finished, Progress, Waiting
from ..errors import (
    CancelledError,
    EngineClosedError,
    GenerationError,
    MLXEngineError,
)
from .faults import broken, calling, enter, leave, running, translate
from .task import CHEAP_SECONDS, QUANTUM_SECONDS, Group, SchedulerStatus, Task
from .threads import forked, give_up_streams, refuse_fork, start, wait_until_gone

if TYPE_CHECKING:
    from ..contract.device import DeviceBackend

log = logging.getLogger("mlxengine.scheduler")
T = TypeVar("T")


class Scheduler:
    """Runs tasks and calls on one thread, which starts with the first of them and can be replaced."""

    def __init__(self, name: str = "mlxengine-scheduler") -> None:
        self._name = name
        self._process = os.getpid()
        self._wake = threading.Condition()
        self._inbox: deque[_Posted] = deque()
        self._groups: dict[Hashable, Group] = {}
        self._thread: threading.Thread | None = None
        self._closed = False
        self._backend: DeviceBackend | None = None
        self._floor = 0.0
        self._died: BaseException | None = None
        self._died_at: float | None = None

    # -- called from any thread -----------------------------------------------------------------------

    def submit(self, task: Task) -> None:
        """Queue a task.

        Raises:
            EngineClosedError: the scheduler was closed.
        """
        self._post(lambda: self._admit(task), task.finish)

    def cancel(self, task: Task) -> None:
        """Close a task's iterator before any further step of it; harmless when it is over."""
        task.cancelled = True
        if not task.done and not self._closed and not forked(self._process):
            self._post(lambda: self._cancel(task), lambda _error: None)

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
            self._backend = make()
            self._enter_stream()
            return self._backend

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
        now = running(thread)
        return SchedulerStatus(
            alive=thread is not None and thread.is_alive(),
            running=now.record.name if now else None,
            running_seconds=now.seconds if now else 0.0,
            tasks=sum(len(group.tasks) for group in list(self._groups.values())),
            died=None if self._died is None else f"{type(self._died).__name__}: {self._died}",
            died_at=self._died_at,
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
        for item in posted:
            item.fail(error)
        for group in list(self._groups.values()):
            for task in list(group.tasks):
                task.finish(error)

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
            self._inbox.append(_Posted(action, fail))
            self._wake.notify()

    def _main(self) -> None:
        died: BaseException | None = None
        tasks: list[Task] = []
        with ExitStack() as stack:
            self._stack = stack
            try:
                if self._backend is not None:
                    self._enter_stream()
                while self._turn():
                    pass
            except BaseException as error:
                died = error
                tasks = [task for group in self._groups.values() for task in group.tasks]
                for task in tasks:
                    self._close(task)
            else:
                self._end_everything(CancelledError("The engine was closed while the request was running."))
        give_up_streams(self._backend)
        if died is not None:
            self._die(died, tasks)

    def _enter_stream(self) -> None:
        assert self._backend is not None
        self._stack.enter_context(self._backend.stream())

    def _turn(self) -> bool:
        """Take in what is new, then let one model go; ``False`` when the scheduler was closed."""
        with self._wake:
            while not (self._inbox or self._closed or self._runnable()):
                self._wake.wait()
            posted, closed = list(self._inbox), self._closed
            self._inbox.clear()
        for action in posted:
            action()
        if closed:
            return False
        ready = self._runnable()
        if ready:
            group = min(ready, key=lambda item: item.clock)
            self._floor = group.clock
            self._serve(group, alone=len(ready) == 1)
        return True

    def _runnable(self) -> list[Group]:
        ready = []
        for group in self._groups.values():
            active = any(task.ready for task in group.tasks)
            if active and not group.active:
                group.clock = max(group.clock, self._floor)
            group.active = active
            if active:
                ready.append(group)
        return ready

    def _serve(self, group: Group, *, alone: bool) -> None:
        """One turn of a model: a step, and the steps after it that are predicted to be cheap.

        Requests that share a batch advance together with the first one's step; what the others have to
        say is waiting then and costs nothing, so it must not wait for another model's step.
        """
        began = time.perf_counter()
        spent = 0.0
        last: Task | None = None
        for _ in range(len(group.tasks)):
            task = group.tasks[0]
            if last is not None and task.predicted > max(CHEAP_SECONDS, QUANTUM_SECONDS - spent):
                break
            group.tasks.rotate(-1)
            if not task.ready:
                continue
            last = task
            self._step(task)
            spent = time.perf_counter() - began
        if not alone and self._backend is not None:
            # What was queued asynchronously must be charged to the model that queued it.
            self._synchronize(group)
        group.clock += (time.perf_counter() - began) / group.weight

    def _synchronize(self, group: Group) -> None:
        assert self._backend is not None
        try:
            self._backend.synchronize()
        except Exception as error:
            for task in list(group.tasks):
                self._end(task, translate(task.record, task.hook, error))

    def _admit(self, task: Task) -> None:
        if task.cancelled:
            self._end(task, CancelledError("The request was cancelled."))
            return
        self._groups.setdefault(task.group, Group()).tasks.append(task)
        self._measure(task, lambda: self._begin(task))

    def _begin(self, task: Task) -> None:
        iterator = task.start()
        if not hasattr(iterator, "__next__"):
            what = f"returned {type(iterator).__name__}, not an iterator"
            raise broken(task.record, task.hook, what)
        task.iterator = iterator

    def _step(self, task: Task) -> None:
        self._measure(task, lambda: self._advance(task))

    def _advance(self, task: Task) -> None:
        assert task.iterator is not None
        try:
            event = next(task.iterator)
        except StopIteration:
            if task.answers:
                raise broken(task.record, task.hook, "ended without a Finished event") from None
            self._end(task)
            return
        if event is None:
            return
        if isinstance(event, Waiting):
            self._set_aside(task, event.until)
            return
        if not isinstance(event, Event):
            raise broken(task.record, task.hook, f"yielded {type(event).__name__}, not an Event")
        now = time.perf_counter()
        if task.first_event is None and not isinstance(event, Progress):
            task.first_event = now
        if isinstance(event, Finished):
            task.finished = task.timed(event, now)
            task.sink.put(task.finished)
            self._end(task)
        else:
            task.sink.put(event)

    def _set_aside(self, task: Task, until: Future[Any]) -> None:
        def resume(_future: Future[Any]) -> None:
            task.waiting = False
            self.nudge()

        task.waiting = True
        until.add_done_callback(resume)

    def _measure(self, task: Task, function: Callable[[], None]) -> None:
        began = time.perf_counter()
        if task.first_step is None:
            task.first_step = began
        before = enter(task.record, task.hook, began)
        try:
            function()
        except BaseException as error:
            self._end(task, translate(task.record, task.hook, error))
        finally:
            leave(before)
        spent = time.perf_counter() - began
        task.device_seconds += spent
        task.predicted += 0.5 * (spent - task.predicted)

    def _cancel(self, task: Task) -> None:
        if not task.done:
            self._end(task, CancelledError("The request was cancelled."))

    def _end(self, task: Task, error: BaseException | None = None) -> None:
        self._close(task)
        group = self._groups.get(task.group)
        if group is not None and task in group.tasks:
            group.tasks.remove(task)
            if not group.tasks:
                del self._groups[task.group]
        task.finish(error)

    def _close(self, task: Task) -> None:
        iterator, task.iterator = task.iterator, None
        close = getattr(iterator, "close", None)
        if close is not None:
            try:
                with calling(task.record, task.hook):
                    close()
            except MLXEngineError as problem:
                log.warning("Closing a request: %s", problem)

    def end_group(self, key: Hashable, error: BaseException) -> None:
        """End every task of a model; on the scheduler's thread."""
        group = self._groups.get(key)
        for task in list(group.tasks) if group is not None else ():
            self._end(task, error)

    def _end_everything(self, error: BaseException) -> None:
        for key in list(self._groups):
            self.end_group(key, error)

    def _die(self, error: BaseException, tasks: list[Task]) -> None:
        """The loop itself failed: tell every waiting caller at once; the next call starts a new thread.

        The streams were given up before, because the next thread frees what this one compiled.
        """
        log.critical("The scheduler's thread died", exc_info=error)
        self._died, self._died_at = error, time.monotonic()
        typed = GenerationError(
            f"The engine's thread failed: {type(error).__name__}: {error}.",
            hint="Try again: the engine starts a new thread with the next call.",
            recoverable=True,
        )
        typed.__cause__ = error
        self._groups.clear()
        with self._wake:
            posted = list(self._inbox)
            self._inbox.clear()
            self._thread = None
        # Only now: whoever is told may try again at once, on the next thread.
        for item in posted:
            item.fail(typed)
        for task in tasks:
            task.finish(typed)


@frozen
class _Posted:
    action: Callable[[], None]
    fail: Callable[[BaseException], object]

    def __call__(self) -> None:
        self.action()


__all__ = ["Scheduler", "SchedulerStatus"]
