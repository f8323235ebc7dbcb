"""The models that are loaded or being loaded, and who holds them."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from attrs import frozen

from .._memory.caretaker import Caretaker
from .._memory.live import LiveModel, PendingLoad, Report
from .._scheduling.scheduler import Scheduler
from .._scheduling.task import Task
from .._scheduling.threads import forked, refuse_fork
from ..errors import (
    CancelledError,
    EngineClosedError,
    InsufficientMemoryError,
    MLXEngineError,
    PluginCrashedError,
    QueueFullError,
)
from .loader import Loader
from .outcomes import Outcomes
from .statistics import Statistics

if TYPE_CHECKING:
    from ..contract.configuration import ModelConfiguration

log = logging.getLogger("mlxengine.memory")

# A model whose requests crashed so often in a row is loaded afresh for the next one.
_CRASHES = 3
_DRAINING = 0.02  # seconds between two looks at whether requests still run


@frozen
class LoadKey:
    """What makes two loads the same one."""

    configuration: ModelConfiguration
    handle: type | None
    verify: str | None


class ModelPool:
    """Shares one loaded model among all who ask for the same configuration, and frees it after the last.

    Args:
        loader: does the loading, on threads of this pool.
        scheduler: runs requests.
        idle_ttl: seconds after its last request that a model stays in memory unless its load says otherwise;
            ``None``: for ever.
    """

    def __init__(self, loader: Loader, scheduler: Scheduler, idle_ttl: float | None = None) -> None:
        self._loader = loader
        self._scheduler = scheduler
        self._idle_ttl = idle_ttl
        self._process = os.getpid()
        self.ledger = loader.ledger
        self.outcomes = Outcomes()
        self.statistics = Statistics()
        self._lock = threading.Lock()
        self._by_configuration: dict[ModelConfiguration, LiveModel] = {}
        self._live: set[LiveModel] = set()
        self._pending: dict[LoadKey, PendingLoad] = {}
        self._waiting: dict[LiveModel, list[Task]] = {}
        self._loads: list[PendingLoad] = []
        self._closed = False
        self.ledger.line.moved = self._go_on
        self._caretaker = Caretaker(self.ledger, self.live, self.loads, loader.shortage)
        self._cared_for = False

    def live(self) -> tuple[LiveModel, ...]:
        """The models that are loaded now."""
        with self._lock:
            return tuple(self._live)

    def loads(self) -> tuple[PendingLoad, ...]:
        """The loads that are under way, those of evicted models too."""
        with self._lock:
            return tuple(self._loads)

    @contextmanager
    def _listed(self, pending: PendingLoad) -> Iterator[None]:
        pending.reports.append(lambda _: self.changed())
        with self._lock:
            self._loads.append(pending)
        try:
            yield
        finally:
            with self._lock:
                self._loads.remove(pending)
            self.changed()

    def start(self, key: LoadKey, report: Report | None, patience: float = 0) -> PendingLoad:
        """Begin a load, or join one; the caller waits for its future, or calls `give_up`.

        ``patience``: seconds that it may wait for memory.

        Raises:
            EngineClosedError: the pool was closed.
        """
        refuse_fork(self._process)
        with self._lock:
            if self._closed:
                raise EngineClosedError("The engine is closed.")
            if not self._cared_for:
                self._spawn(self._caretaker.run)
                self._cared_for = True
            pending = self._pending.get(key)
            if pending is None:
                pending = PendingLoad(id=key.configuration.id)
                live = self._by_configuration.get(key.configuration)
                if (
                    live is not None
                    and key.verify is None
                    and self._loader.gives(live.claim.kind, key.handle)
                ):
                    live.holders += 1
                    pending.counted = True
                    pending.future.set_result(live)
                    return pending
                self._spawn(self._load, key, pending)
                self._pending[key] = pending
            pending.waiters += 1
            pending.patience = max(pending.patience, patience)
            if report is not None:
                pending.reports.append(report)
        return pending

    def changed(self) -> None:
        """What other processes are told has changed."""
        self._caretaker.changed()

    def _spawn(self, work: Callable[..., None], *arguments: object) -> None:
        """Start a thread that `close` waits for; with the lock held."""
        self._loader.threads.start(partial(work, *arguments), name="mlxengine-loader")

    def _load(self, key: LoadKey, pending: PendingLoad) -> None:
        try:
            with self._listed(pending):
                live = self._loader.load(key.configuration, key.handle, key.verify, pending)
        except BaseException as error:
            with self._lock:
                self._drop(pending)
            pending.end(error)
            return
        live.idle_ttl, live.patience = self._idle_ttl, pending.patience
        with self._lock:
            self._drop(pending)
            keep = pending.waiters > 0 and not self._closed
            if keep:
                live.holders, pending.counted = pending.waiters, True
                self._live.add(live)
                self._by_configuration[key.configuration] = live
        self.changed()
        if keep:
            pending.end(live)
        else:
            try:
                self._free(live)
            except EngineClosedError:  # `close` could not wait; garbage takes the model
                self.ledger.release(live)
            pending.end(CancelledError("Loading was cancelled."))

    def give_up(self, pending: PendingLoad) -> None:
        """One caller stops waiting: nobody left cancels the load, a finished one is released."""
        with self._lock:
            pending.waiters -= 1
            counted = pending.counted
            if pending.waiters <= 0 and not counted:
                self._drop(pending)  # who asks from now on begins anew
                pending.cancelled.set()
        if counted:
            self.release(pending.future.result())

    def _drop(self, pending: PendingLoad) -> None:
        """Nobody joins this load any more; with the lock held."""
        self._pending = {key: other for key, other in self._pending.items() if other is not pending}

    def release(self, live: LiveModel, drain: float = 0) -> None:
        """One holder less, once what runs now has ended or ``drain`` seconds are over; the last frees it."""
        if forked(self._process):
            return
        deadline = time.monotonic() + drain
        running = list(live.tasks) if drain else []
        try:
            while any(task in live.tasks for task in running) and time.monotonic() < deadline:
                if self._closed or live.closed:
                    break
                time.sleep(_DRAINING)
        finally:  # after Ctrl-C too: nobody could release it later
            self._let_go(live)

    def _let_go(self, live: LiveModel) -> None:
        with self._lock:
            live.holders -= 1
            if live.holders > 0 or live not in self._live or self._closed:
                return
            self._live.discard(live)
            self._forget(live)
        self._free(live)

    def drain(self, seconds: float, over: Callable[[], bool]) -> None:
        """Wait until no request runs, so many seconds have gone, or it is ``over``."""
        deadline = time.monotonic() + seconds
        while any(live.tasks for live in self.live()) and time.monotonic() < deadline and not over():
            time.sleep(_DRAINING)

    def evict(self, live: LiveModel) -> bool:
        """Take a model out of memory for its holder; whether it is out now, and nothing brings it back."""
        self.ledger.evict(live, "because its holder asked for it")
        self.changed()
        return live.evicted and not (live.tasks or live.returning)

    def stop(self, live: LiveModel) -> None:
        """Free a model whoever holds it; its requests end with `CancelledError`, its handles are closed."""
        with self._lock:
            if live not in self._live:
                return
            live.holders = 0
            self._live.discard(live)
            self._forget(live)
        self._free(live)

    def _forget(self, live: LiveModel) -> None:
        kept = {key: value for key, value in self._by_configuration.items() if value is not live}
        self._by_configuration = kept

    def _free(self, live: LiveModel, timeout: float | None = None) -> None:
        live.closed = True
        for task in list(live.held):
            task.finish(CancelledError(f"{live.card.id} was closed while the request waited."))
        self._loader.take_out(live, timeout)
        self.ledger.release(live)
        self.changed()

    # -- running ---------------------------------------------------------------------------------------

    def submit(self, live: LiveModel, task: Task, bound: int | None = None) -> None:
        """Run a request on a model; one that is evicted is loaded first.

        Raises:
            EngineClosedError: the engine was closed.
            QueueFullError: ``bound`` requests wait already.
        """
        task.on_begin = self.changed
        task.on_done = lambda error: self._done(live, task, error)
        if live.crashes >= _CRASHES:
            self.ledger.evict(live, f"after {live.crashes} crashes in a row")
        try:
            free = self.ledger.use(live, task, bound)
        except QueueFullError as error:
            self.statistics.record(live, task, error)
            raise
        self.changed()
        if task.has_deadline:
            self._scheduler.heed(task)
        if free:
            self._enter(live, task)
        elif not self.ledger.line:  # who waited has left in the meantime
            self._go_on()

    def _go_on(self) -> None:
        """Let the requests go on that stood back for a load which has its memory now, or gave up."""
        for live in self.live():
            with suppress(IndexError):  # others call this too
                while True:
                    self._let_in(live, live.held.popleft())

    def _let_in(self, live: LiveModel, task: Task) -> None:
        try:
            self._enter(live, task)
        except MLXEngineError as error:
            task.finish(error)

    def _enter(self, live: LiveModel, task: Task) -> None:
        """Hand a request to the scheduler, or to the load that brings its model back."""
        with self._lock:
            if self._closed:
                raise EngineClosedError("The engine is closed.")
            # Whoever comes while it is brought back waits too: what requests set up is not there yet.
            if live in self._waiting:
                self._waiting[live].append(task)
                return
            if live.evicted:
                try:
                    self._spawn(self._revive, live)
                except InsufficientMemoryError:
                    live.tasks.discard(task)
                    raise
                self._waiting[live], live.returning = [task], True
                return
        self._scheduler.submit(task)

    def _done(self, live: LiveModel, task: Task, error: BaseException | None) -> None:
        live.tasks.discard(task)
        with suppress(ValueError):
            live.held.remove(task)
        live.last_used = time.monotonic()
        live.crashes = live.crashes + 1 if isinstance(error, PluginCrashedError) else 0
        if task.answers:
            self.outcomes.record(error)
            self.statistics.record(live, task, error)
        self.changed()

    def _revive(self, live: LiveModel) -> None:
        error: BaseException | None = None
        try:
            pending = PendingLoad(id=live.card.id, patience=live.patience)
            with self._listed(pending):
                self._loader.bring_in(live, pending)
            if live.closed:
                self._free(live)
        except BaseException as problem:
            error = problem
        with self._lock:
            tasks, live.returning = self._waiting.pop(live), False
        for task in tasks:
            if error is not None:
                task.finish(error)
            else:
                self._scheduler.submit(task)

    def aside(self, live: LiveModel, then: Callable[[], None], *, relieve: bool) -> None:
        """Call a function on a thread of its own; with ``relieve``, when caches and idle models are gone."""

        def work() -> None:
            try:
                if relieve:
                    gone = self.ledger.relieve(live)
                    log.warning("Memory ran out under %s; %d bytes were let go", live.card.id, gone)
            finally:
                then()

        with self._lock:
            if not self._closed:
                self._spawn(work)
                return
        then()

    def close(self, timeout: float) -> list[threading.Thread]:
        """Cancel every load and free every model.

        Returns:
            The threads that a plugin has kept for longer than ``timeout`` seconds; empty if all is well.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            self._closed = True
            pending = list(self._pending.values())
        self._caretaker.stop()
        for item in pending:
            item.cancelled.set()
        if left := self._loader.threads.wait(deadline):
            return left
        with self._lock:
            self._by_configuration.clear()
        for live in self.live():
            try:
                self._free(live, max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                return [thread for thread in (self._scheduler.thread,) if thread is not None]
            with self._lock:
                self._live.discard(live)
        return []

    def leave(self, error: BaseException) -> None:
        """Tell whoever waits, now that `close` could not; what is in memory goes if the plugin comes back."""
        self._scheduler.tell_all(error)
        with self._lock:
            pending, waiting = list(self._pending.values()), list(self._waiting.values())
        for item in pending:
            item.end(error)
        for task in [task for tasks in waiting for task in list(tasks)]:
            task.finish(error)
        for live in self.live():
            live.closed = True
            self._scheduler.call(partial(self._free, live))

    def abandon(self) -> None:
        """The same without waiting for threads, when the interpreter exits."""
        self._caretaker.stop()
        for item in list(self._pending.values()):
            item.cancelled.set()
