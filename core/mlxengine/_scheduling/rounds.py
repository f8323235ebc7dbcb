"""Whose turn it is on the device, and what a turn is: a fair loop over event iterators.

Fair means device time: each model has a clock that advances with the measured time of its steps, divided by
its weight, and the model whose clock is furthest behind goes next (stride scheduling over measured costs;
Waldspurger and Weihl, 1995). Idle models do not save up time.

That alone would give a model with short steps its share in bunches, many of them at once behind a long step
of each of the others. So a model goes out of turn once it has waited for twice as long as its own turn
usually takes: a chat goes on after every single long step, however many models there are. Turns out of turn
are charged as any, and count as waiting only for models whose own are at most half as long: so they end,
and whoever is furthest behind goes next. Who has had too much by them has every other turn at least.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from math import inf
from typing import TYPE_CHECKING, Any

from ..contract.events import Event, Finished, Progress, Usage, Waiting
from ..errors import CancelledError, MLXEngineError
from .faults import broken, calling, enter, leave, translate
from .patience import patience
from .task import CHEAP_SECONDS, QUANTUM_SECONDS, Group, Task

if TYPE_CHECKING:
    from ..contract.device import DeviceBackend

log = logging.getLogger("mlxengine.scheduler")

_LONGEST_SLEEP = 3600.0  # more than some systems' clocks take at once is never asked of them


class Rounds:
    """The tasks that run, by model; everything here happens on the scheduler's thread.

    Args:
        nudge: wakes that thread; called from any other.
    """

    def __init__(self, nudge: Callable[[], None]) -> None:
        self.backend: DeviceBackend | None = None
        self._nudge = nudge
        self._groups: dict[Hashable, Group] = {}
        self._floor = 0.0
        self._timed: set[Task] = set()  # those with a deadline, admitted or not
        self._due = inf  # the first of their deadlines, or earlier
        self._stepping: Task | None = None
        self._turning: int | None = None  # the thread on which a turn runs
        self._later: deque[Callable[[], None]] = deque()

    def tasks(self) -> list[Task]:
        """All that run; safe from any thread."""
        return [task for group in list(self._groups.values()) for task in list(group.tasks)]

    def patience(self) -> float | None:
        """Seconds that the step which runs now may take; safe from any thread."""
        task = self._stepping
        group = None if task is None else self._groups.get(task.group)
        return None if task is None or group is None else patience(task, list(group.tasks))

    def abandon(self) -> list[Task]:
        """Close every iterator and forget the tasks, which are still to be told how they ended."""
        found = self.tasks()
        for task in found:
            self._close(task)
        self._groups.clear()
        self._timed.difference_update(found)
        return found

    def runnable(self) -> list[Group]:
        """The models that have something to do, and room for what they say."""
        ready = []
        for group in self._groups.values():
            active = any(task.ready for task in group.tasks)
            if active and not group.active:
                group.clock = max(group.clock, self._floor)
            group.active = active
            if active:
                ready.append(group)
        return ready

    def turn(self) -> None:
        """Let a model go: the shortest turn that is overdue, else the model that had least of the device."""
        ready = self.runnable()
        if not ready:
            return
        overdue = [item for item in ready if item.overdue]
        if overdue:
            group = min(overdue, key=lambda item: item.usual)
        else:
            group = min(ready, key=lambda item: item.clock)
            self._floor = group.clock
        spent = self._serve(group, alone=len(ready) == 1)
        for other in ready:
            if other is not group and (not overdue or other.is_short_beside(spent)):
                other.waited += spent
        group.had_turn(spent)

    def _serve(self, group: Group, *, alone: bool) -> float:
        """One turn of a model: a step, and the steps after it that are predicted to be cheap; its seconds.

        Requests that share a batch advance together with the first one's step; what the others have to
        say is waiting then and costs nothing, so it must not wait for another model's step.
        """
        began = time.perf_counter()
        spent = 0.0
        last: Task | None = None
        self._turning = threading.get_ident()
        try:
            for _ in range(len(group.tasks)):
                task = group.tasks[0]
                if last is not None and task.predicted > max(CHEAP_SECONDS, QUANTUM_SECONDS - spent):
                    break
                group.tasks.rotate(-1)
                if not task.ready:
                    continue
                last = task
                if task.predicted > CHEAP_SECONDS:
                    self._call_now()
                self._step(task)
                spent = time.perf_counter() - began
        finally:
            self._turning = None
            self._call_now()
        if not alone and self.backend is not None:
            # What was queued asynchronously must be charged to the model that queued it.
            self._synchronize(group)
        return time.perf_counter() - began

    def _synchronize(self, group: Group) -> None:
        assert self.backend is not None
        try:
            self.backend.synchronize()
        except Exception as error:
            for task in list(group.tasks):
                self._end(task, translate(task.record, task.hook, error))

    def later(self, call: Callable[[], None]) -> None:
        """Call a function once all of a turn was said; from another thread, or between two turns, now.

        Who is told of an event while the step's others are still to come takes Python's lock from this
        thread for each: two threads then change places once an event instead of once a step.
        """
        if threading.get_ident() == self._turning:
            self._later.append(call)
        else:
            call()

    def _call_now(self) -> None:
        while self._later:
            self._later.popleft()()

    def heed(self, task: Task) -> None:
        """Keep a task's deadlines from now on, also before it is admitted."""
        if not task.done:
            self._timed.add(task)
            self._due = min(self._due, task.due)

    def until_due(self) -> float | None:
        """Seconds until a deadline has to be looked at."""
        return None if self._due == inf else min(max(0.0, self._due - time.perf_counter()), _LONGEST_SLEEP)

    def expire(self) -> None:
        """End the tasks whose deadline has come."""
        now = time.perf_counter()
        if now < self._due:
            return
        self._timed = {task for task in self._timed if not task.done}
        for task in [task for task in self._timed if task.due <= now]:
            self._end(task, task.overdue())
        self._due = min((task.due for task in self._timed), default=inf)

    def admit(self, task: Task) -> None:
        """Begin a task, unless it ended while it waited for its model."""
        if task.done:
            return
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
        self._stepping = task
        self._measure(task, lambda: self._advance(task))
        self._stepping = None

    def _advance(self, task: Task) -> None:
        assert task.iterator is not None
        began = time.perf_counter()
        try:
            event = next(task.iterator)
        except StopIteration:
            if task.answers:
                raise broken(task.record, task.hook, "ended without a Finished event") from None
            self._end(task)
            return
        if task.first_step is None and not _still_waits(task.iterator, event):
            task.begin(began)
            if task in self._timed:
                self._due = min(self._due, task.due)
        if event is None:
            task.usual.note(None, time.perf_counter() - began)
            return
        if isinstance(event, Waiting):
            self._set_aside(task, event.until)
            return
        if not isinstance(event, Event):
            raise broken(task.record, task.hook, f"yielded {type(event).__name__}, not an Event")
        now = time.perf_counter()
        task.usual.note(event, now - began)
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
            self._nudge()

        task.waiting = True
        until.add_done_callback(resume)

    def _measure(self, task: Task, function: Callable[[], None]) -> None:
        began = time.perf_counter()
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

    def cancel(self, task: Task) -> None:
        """Close a task's iterator; harmless when it is over."""
        if not task.done:
            self._end(task, CancelledError("The request was cancelled."))

    def _end(self, task: Task, error: BaseException | None = None) -> None:
        self._close(task)
        self._timed.discard(task)
        group = self._groups.get(task.group)
        if group is not None and task in group.tasks:
            group.tasks.remove(task)
            if not group.tasks:
                del self._groups[task.group]
        task.finish(error)

    def _close(self, task: Task) -> None:
        iterator, task.iterator = task.iterator, None
        if iterator is None:
            return
        try:
            with calling(task.record, task.hook):
                if task.finished is None and isinstance(used := getattr(iterator, "usage", None), Usage):
                    task.spent = used
        except MLXEngineError as problem:
            log.warning("Asking a request what it used: %s", problem)
        try:
            with calling(task.record, task.hook):
                close = getattr(iterator, "close", None)
                if close is not None:
                    close()
        except MLXEngineError as problem:
            log.warning("Closing a request: %s", problem)

    def end_group(self, key: Hashable, error: BaseException) -> None:
        """End every task of a model."""
        group = self._groups.get(key)
        for task in list(group.tasks) if group is not None else ():
            self._end(task, error)

    def end_everything(self, error: BaseException) -> None:
        """End every task."""
        for key in list(self._groups):
            self.end_group(key, error)


def _still_waits(iterator: object, event: object) -> bool:
    """Whether a request has no place yet, after a step: what it needs is being made, or others are served."""
    return isinstance(event, Waiting) or bool(getattr(iterator, "waiting", False))


__all__ = ["Rounds"]
