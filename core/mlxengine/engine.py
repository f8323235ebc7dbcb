"""The engine: loads models of any kind and runs their requests fairly on one device."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import attrs

from . import _hub, kinds
from ._channel import Channel
from ._config import feature_layers, load_settings
from ._host import Host
from ._ledger import parse_bytes
from ._live import LiveModel, PendingLoad, Report
from ._loader import HubOptions, Loader
from ._pool import LoadKey, ModelPool
from ._recovery import RecoveringSink
from ._scheduler import Scheduler, SchedulerStatus
from ._switch import Switch
from ._task import Task
from .configuration import ModelCard, ModelConfiguration
from .device import Device
from .errors import (
    CancelledError,
    EngineClosedError,
    InvalidParameterError,
    ModelClosedError,
    UnsupportedInputError,
)
from .features import MOCK, FeatureRegistry, Layer, Level
from .fit import FitReport, fit
from .health import Health
from .hookspecs import RunContext
from .kinds import handle_type
from .memory import MemoryReport
from .model import ModelHandle, TextHandle
from .plugins import Owner, PluginRecord
from .requests import Request

if TYPE_CHECKING:
    from .embeddings import EmbeddingHandle
    from .images import ImageHandle
    from .registry import ModelRegistry


log = logging.getLogger("mlxengine.engine")


class InferenceEngine:
    """Loads models and runs their requests. Use it as a context manager, or call `close`.

    What is left out comes from the environment and the configuration file.

    Args:
        backend: ``"mlx"``, or ``"mock"`` for the mock back end (`mlxengine.testing.mock`).
        plugins: plugin objects, or ``(name, object)`` pairs, instead of the installed entry points.
        distributions: which distribution provides an entry-point name that several claim.
        features: feature flags for everything that this engine loads.
        endpoint, cache_dir, token, offline: how the hub is reached; ``None`` is huggingface_hub's own
            default (``HF_ENDPOINT``, ``HF_HOME``, the stored token, ``HF_HUB_OFFLINE``).
        memory_budget: what all models may take together, in bytes or as ``"8GB"``; ``None`` is what the
            device recommends. What does not fit is refused, idle models are evicted to make room.
        idle_ttl: seconds after its last request that a model is evicted; ``None`` keeps it. The next
            request of an evicted model loads it again.
        queue_size: events that may wait for one reader before its request pauses.
        step_budget_ms: how long one step of a request should take at most; what cannot be cut
            (a denoising step) may take longer.

    Raises:
        InvalidParameterError, UnknownFeatureError, FeatureUnavailableError: a bad argument or flag.
        ConfigurationError: the configuration file cannot be read.
    """

    def __init__(
        self,
        *,
        backend: str = "mlx",
        plugins: Sequence[object] | None = None,
        distributions: Mapping[str, str] | None = None,
        features: Mapping[str, object] | None = None,
        endpoint: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | None = None,
        offline: bool | None = None,
        memory_budget: int | str | None = None,
        idle_ttl: float | None = None,
        queue_size: int = 64,
        step_budget_ms: float = 100.0,
    ) -> None:
        if queue_size < 1 or step_budget_ms <= 0:
            raise InvalidParameterError("queue_size must be at least 1 and step_budget_ms positive.")
        if idle_ttl is not None and not idle_ttl > 0:
            raise InvalidParameterError(f"idle_ttl={idle_ttl!r} must be a positive number of seconds.")
        if backend not in ("mlx", "mock"):
            raise InvalidParameterError(f"backend={backend!r} is not known.", hint='Write "mlx" or "mock".')
        self._settings = settings = load_settings()
        own = Layer(Level.ENGINE, dict(features or {}))
        chosen = {**settings.distributions, **(distributions or {})}
        self._host = Host(plugins, distributions=chosen, layers=(own, *feature_layers(settings)))
        self._host.features.check()
        hub = settings.hub
        offline = hub.offline if offline is None else offline
        self._options = HubOptions(
            endpoint=endpoint or hub.endpoint,
            cache_dir=Path(cache_dir) if cache_dir is not None else hub.cache_dir,
            token=token,
            offline=_hub.offline_by_default() if offline is None else offline,
            mock=backend == "mock" or self._host.features.view().get(MOCK),
        )
        if self._options.mock:
            from .testing import mock

            self.register(mock.MockPlugin(), mock.NAME)
        self._queue_size = queue_size
        self._budget = step_budget_ms
        self._scheduler = Scheduler()
        self._loader = Loader(self._host, self._scheduler, self._options, parse_bytes(memory_budget))
        self._pool = ModelPool(self._loader, self._scheduler, idle_ttl)
        self._switch = Switch(self._pool)
        self._registry: ModelRegistry | None = None
        self._closed = False
        # Ends the scheduler's thread in order when the interpreter exits or nobody holds the engine.
        self._finalizer = weakref.finalize(self, _shut_down, self._scheduler, self._pool)

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
    def registry(self) -> ModelRegistry:
        """The known models: the plugins' and the configuration file's, and those registered at run time."""
        if self._registry is None:
            from .registry import build_registry

            self._registry = build_registry(self._host.models(), self._settings.models)
        return self._registry

    @property
    def device(self) -> Device:
        """What this machine is."""
        return self._loader.device

    @property
    def models(self) -> tuple[ModelCard, ...]:
        """The cards of the models that are loaded now."""
        return tuple(live.card for live in self._pool.live())

    @property
    def mock(self) -> bool:
        """Whether the mock back end serves everything."""
        return self._options.mock

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
        return self._loader.resolve(self._configure(model))

    def explain(self, model: str | Path | ModelConfiguration | ModelCard) -> Owner:
        """Which plugin would serve a model, why, and what the others said.

        Raises:
            NoPluginForModelError, AmbiguousModelError: nobody would, or two would equally well.
        """
        card = model if isinstance(model, ModelCard) else self.resolve(model)
        return self._host.owner(card, card.configuration.plugin)

    def fit(
        self,
        model: str | Path | ModelConfiguration | ModelCard,
        *,
        context_length: int | None = None,
        batch: int = 1,
        size: tuple[int, int] | None = None,
        kv_bits: int | None = None,
    ) -> FitReport:
        """Whether a model fits this device, with the arithmetic; nothing but its description is fetched.

        Raises:
            ResolutionError: the model cannot be found, or no plugin serves it.
        """
        card = model if isinstance(model, ModelCard) else self.resolve(model)
        return fit(
            card,
            self.explain(card).claim,
            self.device,
            context_length=context_length,
            batch=batch,
            size=size,
            kv_bits=kv_bits,
            budget=self._pool.ledger.budget,
        )

    def status(self) -> SchedulerStatus:
        """What the scheduler is doing now; never waits."""
        return self._scheduler.status()

    def memory(self) -> MemoryReport:
        """What is reserved, what is really held, and what was evicted; waits for one step at most."""
        return self._pool.report()

    def health(self) -> Health:
        """Whether the engine works, by what really ran last; never waits."""
        return self._pool.outcomes.health(self._scheduler.status())

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
        return handle_type(live.claim.kind)(self, live)

    def switch(
        self,
        model: str | Path | ModelConfiguration,
        *,
        plugin: str | None = None,
        features: Mapping[str, object] | None = None,
        on_progress: Report | None = None,
    ) -> ModelHandle:
        """Replace the model that the last `switch` loaded: stop its requests, free it, load this one.

        Of several calls at once the last wins; the others end with `CancelledError`.
        """
        live = self._switch.to(lambda: self._start_load(model, (), plugin, features, None, on_progress))
        return handle_type(live.claim.kind)(self, live)

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
        return TextHandle(self, self._load(model, kinds.TEXT, plugin, features, verify, on_progress))

    def load_embeddings(
        self,
        model: str | Path | ModelConfiguration,
        *,
        plugin: str | None = None,
        features: Mapping[str, object] | None = None,
        verify: str | None = None,
        on_progress: Report | None = None,
    ) -> EmbeddingHandle:
        """Like `load`, for an embedding model.

        Raises:
            InvalidParameterError: the model is of another kind.
        """
        from .embeddings import EmbeddingHandle

        return EmbeddingHandle(self, self._load(model, kinds.EMBED, plugin, features, verify, on_progress))

    def load_images(
        self,
        model: str | Path | ModelConfiguration,
        *,
        plugin: str | None = None,
        features: Mapping[str, object] | None = None,
        verify: str | None = None,
        on_progress: Report | None = None,
    ) -> ImageHandle:
        """Like `load`, for an image-generation model.

        Raises:
            InvalidParameterError: the model is of another kind.
        """
        from .images import ImageHandle

        return ImageHandle(self, self._load(model, kinds.IMAGE, plugin, features, verify, on_progress))

    def _load(
        self,
        model: str | Path | ModelConfiguration,
        wanted: tuple[str, ...],
        plugin: str | None,
        features: Mapping[str, object] | None,
        verify: str | None,
        on_progress: Report | None,
    ) -> LiveModel:
        pending = self._start_load(model, wanted, plugin, features, verify, on_progress)
        try:
            return pending.future.result()
        except BaseException:
            self._pool.give_up(pending)
            raise

    def _start_load(
        self,
        model: str | Path | ModelConfiguration,
        wanted: tuple[str, ...],
        plugin: str | None,
        features: Mapping[str, object] | None,
        verify: str | None,
        on_progress: Report | None,
    ) -> PendingLoad:
        if verify not in (None, "deep"):
            raise InvalidParameterError(f"verify={verify!r} is not known.", hint='Write verify="deep".')
        configuration = self._configure(model)
        if plugin is not None:
            configuration = attrs.evolve(configuration, plugin=plugin)
        if features:
            merged = {**dict(configuration.features), **features}
            configuration = attrs.evolve(configuration, features=tuple(sorted(merged.items())))
        return self._pool.start(LoadKey(configuration, wanted, verify), on_progress)

    def _configure(self, model: str | Path | ModelConfiguration) -> ModelConfiguration:
        if isinstance(model, ModelConfiguration):
            return self._choose(model)
        if not isinstance(model, str | Path):
            raise InvalidParameterError(
                f"A model is a str, a Path or a ModelConfiguration, found {type(model).__name__}."
            )
        name, _, revision = str(model).partition("@")
        known = None if isinstance(model, Path) else self.registry.get(name)
        if known is not None:
            return attrs.evolve(known, revision=revision or known.revision)
        return self._choose(ModelConfiguration(id=str(model)))

    def _choose(self, configuration: ModelConfiguration) -> ModelConfiguration:
        """What ``auto:kind`` stands for here; any other configuration as it is."""
        kind = configuration.ref.auto
        if kind is None:
            return configuration
        found = self.registry.recommend(kind, self.device, checked_only=True)
        log.info("auto:%s is %s: %s", kind, found.model.id, found.reason)
        return found.model

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
            cancelled=lambda: current[0].cancelled,
            fetch=self._loader.fetch_other,
        )
        channel = Channel(self._queue_size, self._scheduler.nudge)
        current: list[Task] = []

        def submit() -> None:
            task = Task(
                group=live,
                record=live.record,
                start=lambda: self._generate(live, request, context),
                sink=sink,
            )
            current[:] = [task]
            self._pool.submit(live, task)

        sink = RecoveringSink(channel, submit)
        submit()
        scheduler = self._scheduler
        return channel, lambda: scheduler.cancel(current[0])

    def _generate(self, live: LiveModel, request: Request, context: RunContext) -> Any:
        if live.closed or live.loaded is None:
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
        if not self._closed:
            self._pool.release(live)

    def close(self) -> None:
        """Cancel every request and load, free every model, end every thread. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._pool.close()
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _shut_down(scheduler: Scheduler, pool: ModelPool) -> None:
    pool.abandon()
    scheduler.close()


__all__ = ["InferenceEngine"]
