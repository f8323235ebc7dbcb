"""One iterator on the scheduler, and where its events go."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from math import inf
from typing import Protocol

import attrs
from attrs import define, field, frozen

from ..contract.events import Event, Finished, Usage
from ..contract.plugins import PluginRecord
from ..errors import GenerationError, RunTimeoutError, WaitTimeoutError
from .patience import Usual

# A step that is predicted to cost less than this rides along in its model's turn.
CHEAP_SECONDS = 0.001
QUANTUM_SECONDS = 0.010


class Sink(Protocol):
    """Where a task's events go; a `Channel`, or a future for work that only ends."""

    @property
    def full(self) -> bool: ...

    def put(self, event: Event) -> None: ...

    def end(self, error: BaseException | None = None) -> None: ...


class FutureSink:
    """The end of a task as a future; its events are dropped."""

    full = False

    def __init__(self) -> None:
        self.future: Future[None] = Future()

    def put(self, event: Event) -> None:
        """Nothing reads the events of such a task."""

    def end(self, error: BaseException | None = None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(error)


@define(eq=False, kw_only=True)
class Task:
    """One iterator on the scheduler.

    Args:
        group: the model (tasks of one group share one clock).
        record: the plugin, for errors.
        start: makes the iterator, on the scheduler's thread.
        sink: where its events go.
        answers: whether the iterator owes exactly one `Finished`.
        hook: the hook that is running, for errors.
        on_begin: called once when it has its place; on the scheduler's thread.
        on_done: called once when the task is over, with its error; on the scheduler's thread.
        wait_timeout, run_timeout: see `Request`.

    ``spent`` is what was used where it ended otherwise than with a `Finished`, as far as its iterator tells.
    ``first_step`` is when its first step began in which it had its place, ``None`` while it waits for that.
    """

    group: Hashable = field(repr=False)
    record: PluginRecord
    start: Callable[[], Iterator[Event | None]]
    sink: Sink
    answers: bool = True
    hook: str = "generate"
    submitted: float = field(factory=time.perf_counter)
    cancelled: bool = False
    iterator: Iterator[Event | None] | None = None
    first_step: float | None = None
    first_event: float | None = None
    device_seconds: float = 0.0
    predicted: float = QUANTUM_SECONDS
    done: bool = False
    waiting: bool = False
    finished: Finished | None = None
    spent: Usage | None = None
    on_begin: Callable[[], None] | None = None
    on_done: Callable[[BaseException | None], None] | None = None
    wait_timeout: float | None = None
    run_timeout: float | None = None
    usual: Usual = field(factory=Usual, repr=False)

    @property
    def waits(self) -> bool:
        """Whether it is a request whose first step is still to come."""
        return self.answers and self.first_step is None and not self.done

    @property
    def has_deadline(self) -> bool:
        """Whether it has a deadline at all."""
        return self.wait_timeout is not None or self.run_timeout is not None

    @property
    def due(self) -> float:
        """Its next deadline, a ``time.perf_counter`` reading; ``inf`` where there is none."""
        if self.first_step is None:
            return self.submitted + (inf if self.wait_timeout is None else self.wait_timeout)
        return self.first_step + (inf if self.run_timeout is None else self.run_timeout)

    def overdue(self) -> GenerationError:
        """The error for having missed it."""
        if self.first_step is None:
            return WaitTimeoutError(
                f"The request waited for {self.wait_timeout:g} s and its turn had not come.",
                hint="Try again when less is asked of the model, or allow it a longer wait_timeout.",
            )
        return RunTimeoutError(
            f"The request ran for {self.run_timeout:g} s and was not at its end.",
            hint="Ask for less (max_tokens, steps), or allow it a longer run_timeout.",
        )

    @property
    def ready(self) -> bool:
        """Whether there is something to do for it, and room for what it says."""
        return not self.waiting and not self.sink.full

    def begin(self, now: float) -> None:
        """It has its place."""
        self.first_step = now
        if self.on_begin is not None:
            self.on_begin()

    def finish(self, error: BaseException | None = None) -> None:
        """The task is over; counted once."""
        if self.done:
            return
        self.done = True
        try:
            if self.on_done is not None:
                self.on_done(error)
        finally:
            self.sink.end(error)  # whoever waits is told, whatever else goes wrong

    def timed(self, event: Finished, now: float) -> Finished:
        """The last event with the times that only the scheduler knows."""
        first = self.first_event
        metrics = attrs.evolve(
            event.metrics,
            queue_seconds=(self.first_step or now) - self.submitted,
            first_event_seconds=None if first is None else first - self.submitted,
            total_seconds=now - self.submitted,
            device_seconds=self.device_seconds,
        )
        return attrs.evolve(event, metrics=metrics)


@define(eq=False)
class Group:
    """The tasks of one model, and the clock that says how much of the device it had.

    ``usual`` is what its turn takes in seconds, ``waited`` what those of others took since its last one.
    """

    tasks: deque[Task] = field(factory=deque)
    clock: float = 0.0
    weight: float = 1.0
    active: bool = False
    usual: float = inf
    waited: float = 0.0

    @property
    def overdue(self) -> bool:
        """Whether it has waited for long, by what its own turn takes."""
        return self.is_short_beside(self.waited)

    def is_short_beside(self, seconds: float) -> bool:
        """Whether its turn takes at most half as long."""
        return seconds >= 2 * self.usual

    def had_turn(self, spent: float) -> None:
        """Its turn is over, and took so many seconds."""
        self.clock += spent / self.weight
        self.usual = spent if self.usual == inf else self.usual + 0.5 * (spent - self.usual)
        self.waited = 0.0


@frozen(kw_only=True)
class ModelQueue:
    """What is asked of one model now.

    Args:
        id, kind: which model.
        running: requests that have had their first step.
        waiting: requests whose first step is still to come.
        most_waiting: how many may wait (``core.max_waiting``), ``None``: any number.
        rows: requests that have a place in its batch, ``None`` where its kind has none. One that runs may
            have left its row for a while: its reader does not read, or memory is short.
    """

    id: str
    kind: str
    running: int
    waiting: int
    most_waiting: int | None
    rows: int | None


@frozen(kw_only=True)
class SchedulerStatus:
    """What the loop is doing: the plugin whose step runs, since when (seconds), and how much waits.

    ``running_seconds`` without ``running``: the loop itself is at something, between two steps. ``patience``
    is how many seconds that step may take by what is known of it; ``None``: nothing is. ``died`` is what the
    loop last failed with, ``died_at`` when (``time.monotonic``); ``queues`` tells the models apart.
    """

    alive: bool
    running: str | None
    running_seconds: float
    tasks: int
    died: str | None
    died_at: float | None = None
    queues: tuple[ModelQueue, ...] = ()
    patience: float | None = None

    @property
    def hung(self) -> bool:
        """Whether the step that runs has taken far longer than it should."""
        return self.patience is not None and self.running_seconds > self.patience
