"""The models that are loaded or being loaded, and who holds them."""

from __future__ import annotations

import logging
import threading

from attrs import frozen

from ._live import LiveModel, Loader, PendingLoad, Report, free
from ._scheduler import Scheduler
from .configuration import ModelConfiguration
from .errors import CancelledError, EngineClosedError

log = logging.getLogger("mlxengine.loader")


@frozen
class LoadKey:
    """What makes two loads the same one."""

    configuration: ModelConfiguration
    kinds: tuple[str, ...]
    verify: str | None


class ModelPool:
    """Shares one loaded model among all who ask for the same configuration, and frees it after the last.

    Args:
        loader: does the loading, on threads of this pool.
        scheduler: frees models between the steps of others.
    """

    def __init__(self, loader: Loader, scheduler: Scheduler) -> None:
        self._loader = loader
        self._scheduler = scheduler
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._by_configuration: dict[ModelConfiguration, LiveModel] = {}
        self._live: set[LiveModel] = set()
        self._pending: dict[LoadKey, PendingLoad] = {}
        self._closed = False

    def live(self) -> tuple[LiveModel, ...]:
        """The models that are loaded now."""
        with self._lock:
            return tuple(self._live)

    def start(self, key: LoadKey, report: Report | None) -> PendingLoad:
        """Begin a load, or join one; the caller waits for its future, or calls `give_up`.

        Raises:
            EngineClosedError: the pool was closed.
        """
        with self._lock:
            if self._closed:
                raise EngineClosedError("The engine is closed.")
            pending = self._pending.get(key)
            if pending is None:
                pending = PendingLoad()
                live = self._by_configuration.get(key.configuration)
                if (
                    live is not None
                    and key.verify is None
                    and live.claim.kind in (key.kinds or live.claim.kind)
                ):
                    live.holders += 1
                    pending.counted = True
                    pending.future.set_result(live)
                    return pending
                self._pending[key] = pending
                thread = threading.Thread(
                    target=self._run, args=(key, pending), name="mlxengine-loader", daemon=True
                )
                self._threads.add(thread)
                thread.start()
            pending.waiters += 1
            if report is not None:
                pending.reports.append(report)
        return pending

    def _run(self, key: LoadKey, pending: PendingLoad) -> None:
        try:
            self._load(key, pending)
        finally:
            if self._loader.backend is not None:
                self._loader.backend.end_thread()
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _load(self, key: LoadKey, pending: PendingLoad) -> None:
        try:
            live = self._loader.load(key.configuration, key.kinds, key.verify, pending)
        except BaseException as error:
            with self._lock:
                self._pending.pop(key, None)
            pending.future.set_exception(error)
            return
        with self._lock:
            self._pending.pop(key, None)
            keep = pending.waiters > 0 and not self._closed
            if keep:
                live.holders, pending.counted = pending.waiters, True
                self._live.add(live)
                self._by_configuration[key.configuration] = live
        if keep:
            pending.future.set_result(live)
        else:
            self._free(live)
            pending.future.set_exception(CancelledError("Loading was cancelled."))

    def give_up(self, pending: PendingLoad) -> None:
        """One caller stops waiting: nobody left cancels the load, a finished one is released."""
        with self._lock:
            pending.waiters -= 1
            counted = pending.counted
            if pending.waiters <= 0 and not counted:
                pending.cancelled.set()
        if counted:
            self.release(pending.future.result())

    def release(self, live: LiveModel) -> None:
        """One holder less; the last one frees the model."""
        with self._lock:
            live.holders -= 1
            if live.holders > 0 or live not in self._live:
                return
            self._live.discard(live)
            self._by_configuration = {
                key: value for key, value in self._by_configuration.items() if value is not live
            }
        self._free(live)

    def _free(self, live: LiveModel) -> None:
        live.closed = True
        self._scheduler.call(lambda: self._free_now(live)).result()

    def _free_now(self, live: LiveModel) -> None:
        ended = CancelledError(f"{live.card.id} was closed while the request was running.")
        self._scheduler.end_group(live, ended)
        free(live, self._loader.backend)

    def close(self) -> None:
        """Cancel every load and free every model."""
        with self._lock:
            self._closed = True
            pending, threads = list(self._pending.values()), list(self._threads)
        for item in pending:
            item.cancelled.set()
        for thread in threads:
            thread.join()
        with self._lock:
            lives = list(self._live)
            self._live.clear()
            self._by_configuration.clear()
        for live in lives:
            self._free(live)

    def abandon(self) -> None:
        """The same without waiting for threads, when the interpreter exits."""
        for item in list(self._pending.values()):
            item.cancelled.set()
