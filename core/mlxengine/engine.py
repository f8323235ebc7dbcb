"""The engine: loads models of any kind and runs their requests fairly on one device."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import attrs

from . import _hub
from ._channel import Channel
from ._host import Host, Owner, PluginRecord
from ._live import HubOptions, LiveModel, Loader, PendingLoad, Report, free
from ._scheduler import Scheduler, SchedulerStatus, Task
from .configuration import ModelCard, ModelConfiguration
from .device import Device
from .errors import (
    CancelledError,
    EngineClosedError,
    InvalidParameterError,
    ModelClosedError,
    UnsupportedInputError,
)
from .features import FeatureRegistry, Layer, Level
from .hookspecs import RunContext
from .model import ModelHandle, TextHandle
from .requests import Request

TEXT_KINDS = ("llm", "vlm")


@runtime_checkable
class LLMEngine(Protocol):
    """What any engine offers: loading a model and getting rid of everything again."""

    def load(self, model: str | Path | ModelConfiguration) -> ModelHandle:
        """Load a model and return the handle for its kind."""
        ...

    def close(self) -> None:
        """Stop everything and free every model."""
        ...


class InferenceEngine:
    """Loads models and runs their requests. Use it as a context manager, or call `close`.

    Args:
        plugins: plugin objects, or ``(name, object)`` pairs, instead of the installed entry points.
        distributions: which distribution provides an entry-point name that several claim.
        features: feature flags for everything that this engine loads.
        endpoint, cache_dir, token, offline: how the hub is reached; ``None`` is huggingface_hub's own
            default (``HF_ENDPOINT``, ``HF_HOME``, the stored token, ``HF_HUB_OFFLINE``).
        queue_size: events that may wait for one reader before its request pauses.
        step_budget_ms: how long one step of a request should take at most; what cannot be cut
            (a denoising step) may take longer.

    Raises:
        InvalidParameterError, UnknownFeatureError, FeatureUnavailableError: a bad argument or flag.
    """

    def __init__(
        self,
        *,
        plugins: Sequence[object] | None = None,
        distributions: Mapping[str, str] | None = None,
        features: Mapping[str, object] | None = None,
        endpoint: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | None = None,
        offline: bool | None = None,
        queue_size: int = 64,
        step_budget_ms: float = 100.0,
    ) -> None:
        if queue_size < 1 or step_budget_ms <= 0:
            raise InvalidParameterError("queue_size must be at least 1 and step_budget_ms positive.")
        self._options = HubOptions(
            endpoint=endpoint,
            cache_dir=Path(cache_dir) if cache_dir is not None else None,
            token=token,
            offline=_hub.offline_by_default() if offline is None else offline,
        )
        own = Layer(Level.ENGINE, dict(features or {}))
        self._host = Host(plugins, distributions=distributions, layers=(own, *_outer_layers()))
        self._host.features.check(own)
        self._queue_size = queue_size
        self._budget = step_budget_ms
        self._scheduler = Scheduler()
        self._loader = Loader(self._host, self._scheduler, self._options)
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="mlxengine-loader")
        self._lock = threading.Lock()
        self._live: dict[Any, LiveModel] = {}
        self._pending: dict[Any, PendingLoad] = {}
        self._closed = False
        # Ends the scheduler's thread in order when the interpreter exits or nobody holds the engine.
        self._finalizer = weakref.finalize(self, _shut_down, self._scheduler, self._pool, self._pending)

    # -- what there is -------------------------------------------------------------------------------

    @property
    def plugins(self) -> tuple[PluginRecord, ...]:
        """Every plugin that was found, those set aside included (their ``error`` says why)."""
        return tuple(self._host.records)

    @property
    def features(self) -> FeatureRegistry:
        """All feature flags; ``features.explain(name)`` says everything about one."""
        return self._host.features

    @property
    def device(self) -> Device:
        """What this machine is."""
        return self._loader.device

    @property
    def models(self) -> tuple[ModelCard, ...]:
        """The cards of the models that are loaded now."""
        with self._lock:
            return tuple(live.card for live in self._live.values())

    @property
    def closed(self) -> bool:
        """Whether the engine was closed."""
        return self._closed

    def register(self, plugin: object, name: str) -> None:
        """Add a plugin to this engine; models that are loaded keep the one that serves them.

        Raises:
            PluginError: it does not keep the contract.
        """
        record = self._host.register(plugin, name)
        if record.error is not None:
            raise record.error

    def resolve(self, model: str | Path | ModelConfiguration) -> ModelCard:
        """What can be found out about a model without fetching its weights.

        Raises:
            ResolutionError, ConfigurationError: it cannot be found or read.
        """
        return _hub.resolve(self._configure(model), **self._options.arguments())

    def explain(self, model: str | Path | ModelConfiguration | ModelCard) -> Owner:
        """Which plugin would serve a model, why, and what the others said.

        Raises:
            NoPluginForModelError, AmbiguousModelError: nobody would, or two would equally well.
        """
        card = model if isinstance(model, ModelCard) else self.resolve(model)
        return self._host.owner(card, card.configuration.plugin)

    def status(self) -> SchedulerStatus:
        """What the scheduler is doing now; never waits."""
        return self._scheduler.status()

    # -- loading -------------------------------------------------------------------------------------

    def load(
        self,
        model: str | Path | ModelConfiguration,
        *,
        plugin: str | None = None,
        features: Mapping[str, object] | None = None,
        verify: str | None = None,
        on_progress: Report | None = None,
    ) -> ModelHandle:
        """Load a model and return the handle for its kind.

        A model that is loaded already with the same configuration is shared.

        Args:
            model: ``"org/name"``, ``"org/name@revision"``, a folder, a GGUF file, or a configuration.
            plugin: the plugin that must serve it.
            features: feature flags for this model.
            verify: ``"deep"`` hashes every file again before it is loaded.
            on_progress: called with events of the download and the load, on another thread.

        Raises:
            ConfigurationError, ResolutionError, DownloadError, PluginError, LoadError: as they say.
            EngineClosedError: the engine was closed.
        """
        live = self._load(model, (), plugin, features, verify, on_progress)
        return (TextHandle if live.claim.kind in TEXT_KINDS else ModelHandle)(self, live)

    def load_text(
        self,
        model: str | Path | ModelConfiguration,
        *,
        plugin: str | None = None,
        features: Mapping[str, object] | None = None,
        verify: str | None = None,
        on_progress: Report | None = None,
    ) -> TextHandle:
        """Like `load`, for a language or vision-language model.

        Raises:
            InvalidParameterError: the model is of another kind.
        """
        return TextHandle(self, self._load(model, TEXT_KINDS, plugin, features, verify, on_progress))

    def _load(
        self,
        model: str | Path | ModelConfiguration,
        kinds: tuple[str, ...],
        plugin: str | None,
        features: Mapping[str, object] | None,
        verify: str | None,
        on_progress: Report | None,
    ) -> LiveModel:
        pending = self._start_load(model, kinds, plugin, features, verify, on_progress)
        try:
            return pending.future.result()
        except BaseException:
            self._give_up(pending)
            raise

    def _start_load(
        self,
        model: str | Path | ModelConfiguration,
        kinds: tuple[str, ...],
        plugin: str | None,
        features: Mapping[str, object] | None,
        verify: str | None,
        on_progress: Report | None,
    ) -> PendingLoad:
        """Begin (or join) a load; every caller that is counted in ``waiters`` becomes a holder."""
        if verify not in (None, "deep"):
            raise InvalidParameterError(f"verify={verify!r} is not known.", hint='Write verify="deep".')
        configuration = self._configure(model)
        if plugin is not None:
            configuration = attrs.evolve(configuration, plugin=plugin)
        if features:
            merged = {**dict(configuration.features), **features}
            configuration = attrs.evolve(configuration, features=tuple(sorted(merged.items())))
        key = (configuration, verify)
        with self._lock:
            if self._closed:
                raise EngineClosedError("The engine is closed.")
            pending = self._pending.get(key)
            if pending is None:
                pending = PendingLoad()
                live = self._live.get(key[0])
                if live is not None and (not kinds or live.claim.kind in kinds) and verify is None:
                    live.holders += 1
                    pending.counted = True
                    pending.future.set_result(live)
                    return pending
                self._pending[key] = pending
                self._pool.submit(self._run_load, key, kinds, pending)
            pending.waiters += 1
            if on_progress is not None:
                pending.reports.append(on_progress)
        return pending

    def _run_load(
        self, key: tuple[ModelConfiguration, str | None], kinds: tuple[str, ...], pending: PendingLoad
    ) -> None:
        try:
            live = self._loader.load(key[0], kinds, key[1], pending)
        except BaseException as error:
            with self._lock:
                self._pending.pop(key, None)
            pending.future.set_exception(error)
            return
        with self._lock:
            self._pending.pop(key, None)
            live.holders, pending.counted = pending.waiters, True
            keep = live.holders > 0 and not self._closed
            if keep:
                self._live[key[0]] = live
        if keep:
            pending.future.set_result(live)
        else:
            self._free(live)
            pending.future.set_exception(CancelledError("Loading was cancelled."))

    def _give_up(self, pending: PendingLoad) -> None:
        """One caller stops waiting: for a load that is over, its share of the model is released."""
        with self._lock:
            pending.waiters -= 1
            counted = pending.counted
            if pending.waiters <= 0 and not counted:
                pending.cancelled.set()
        if counted:
            self._release(pending.future.result())

    def _configure(self, model: str | Path | ModelConfiguration) -> ModelConfiguration:
        if isinstance(model, ModelConfiguration):
            configuration = model
        elif isinstance(model, str | Path):
            configuration = ModelConfiguration(id=str(model))
        else:
            raise InvalidParameterError(
                f"A model is a str, a Path or a ModelConfiguration, found {type(model).__name__}."
            )
        return configuration

    # -- running -------------------------------------------------------------------------------------

    def _open(self, live: LiveModel, request: Request, closed: bool) -> tuple[Channel, Callable[[], None]]:
        """Put a request on the scheduler; the channel it is read from, and the way to cancel it."""
        if self._closed:
            raise EngineClosedError("The engine is closed.")
        if closed or live.closed:
            raise ModelClosedError(f"The handle of {live.card.id} is closed.")
        if not isinstance(request, Request):
            raise InvalidParameterError(f"A request is a Request, found {type(request).__name__}.")
        context = RunContext(
            features=live.features.over(Layer(Level.CALL, dict(request.features)))
            if request.features
            else live.features,
            budget_ms=self._budget,
            cancelled=lambda: task.cancelled,
            fetch=self._loader.fetch_other,
        )
        channel = Channel(self._queue_size, self._scheduler.nudge)
        task = Task(
            group=live, record=live.record, start=lambda: self._generate(live, request, context), sink=channel
        )
        self._scheduler.submit(task)
        scheduler = self._scheduler
        return channel, lambda: scheduler.cancel(task)

    def _generate(self, live: LiveModel, request: Request, context: RunContext) -> Any:
        if live.closed:
            raise CancelledError(f"{live.card.id} was closed before the request began.")
        iterator = self._host.call(
            live.record, "generate", model=live.loaded.model, request=request, context=context
        )
        if iterator is None:
            raise UnsupportedInputError(
                f"{live.card.id} (plugin {live.record.name}) does not take a {type(request).__name__}."
            )
        return iterator

    # -- closing -------------------------------------------------------------------------------------

    def _release(self, live: LiveModel) -> None:
        with self._lock:
            live.holders -= 1
            if live.holders > 0 or live.closed:
                return
            live.closed = True
            for key, value in list(self._live.items()):
                if value is live:
                    del self._live[key]
        if not self._closed:
            self._free(live)

    def _free(self, live: LiveModel) -> None:
        future: Future[None] = self._scheduler.call(lambda: self._free_now(live))
        future.result()

    def _free_now(self, live: LiveModel) -> None:
        self._scheduler.end_group(
            live, CancelledError(f"{live.card.id} was closed while the request was running.")
        )
        free(live, self._loader.backend)

    def close(self) -> None:
        """Cancel every request and load, free every model, end every thread. May be called twice."""
        with self._lock:
            already, self._closed = self._closed, True
            pending = list(self._pending.values())
            lives = list(self._live.values())
            self._live.clear()
        if already:
            return
        for item in pending:
            item.cancelled.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for item in pending:
            if not item.future.done():
                item.future.set_exception(EngineClosedError("The engine was closed."))
        for live in lives:
            self._free(live)
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _outer_layers() -> tuple[Layer, ...]:
    from ._config import feature_layers

    return feature_layers()


def _shut_down(scheduler: Scheduler, pool: ThreadPoolExecutor, pending: dict[Any, PendingLoad]) -> None:
    for item in list(pending.values()):
        item.cancelled.set()
    pool.shutdown(wait=False, cancel_futures=True)
    scheduler.close()


__all__ = ["TEXT_KINDS", "InferenceEngine", "LLMEngine"]
