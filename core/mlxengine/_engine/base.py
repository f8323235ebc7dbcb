"""What an engine is made of, and what it can say about itself."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from .._hub_options import HubOptions
from .._scheduling.scheduler import Scheduler
from .._scheduling.task import SchedulerStatus
from .._units import parse_bytes
from ..contract._core_features import MOCK
from ..contract.features import FeatureRegistry, Layer, Level
from ..contract.plugins import Owner, PluginRecord
from ..errors import InvalidParameterError, MLXEngineError
from .figures import Figures
from .host import Host
from .loader import Loader
from .pool import ModelPool
from .switch import Switch

if TYPE_CHECKING:
    from typing import Unpack

    from ..contract.configuration import ModelCard, ModelConfiguration
    from ..contract.device import Device
    from ..contract.fit import FitReport
    from ..contract.hookspecs import Workload
    from ..contract.kinds import Kind
    from ..contract.loading import EngineOptions
    from ..health import Health
    from ..memory import LoadUnderWay, MemoryReport
    from ..metrics import ModelMetrics
    from ..registry import ModelRegistry


log = logging.getLogger("mlxengine.engine")


class EngineBase:
    """Construction and introspection; `InferenceEngine` says what each option is."""

    def __init__(self, **options: Unpack[EngineOptions]) -> None:
        # Imported here, or they would double what `from mlxengine import InferenceEngine` takes.
        from .. import _hub
        from .._config import feature_layers, load_settings
        from ..contract._convert import only
        from ..contract.loading import EngineOptions, check_idle_ttl

        only(options, EngineOptions)
        backend, idle_ttl = options.get("backend", "mlx"), options.get("idle_ttl")
        queue_size, step_budget_ms = options.get("queue_size", 64), options.get("step_budget_ms", 100.0)
        close_timeout = options.get("close_timeout", 10.0)
        if queue_size < 1 or step_budget_ms <= 0:
            raise InvalidParameterError("queue_size must be at least 1 and step_budget_ms positive.")
        if not close_timeout > 0:
            raise InvalidParameterError(
                f"close_timeout={close_timeout!r} must be a positive number of seconds."
            )
        check_idle_ttl(idle_ttl)
        if backend not in ("mlx", "mock"):
            raise InvalidParameterError(f"backend={backend!r} is not known.", hint='Write "mlx" or "mock".')
        self._settings = settings = load_settings()
        own = Layer(Level.ENGINE, dict(options.get("features") or {}))
        chosen = {**settings.distributions, **(options.get("distributions") or {})}
        layers = (own, *feature_layers(settings))
        self._host = Host(options.get("plugins"), distributions=chosen, layers=layers, off=settings.off)
        self._host.features.check()
        hub = settings.hub
        cache_dir, offline = options.get("cache_dir"), options.get("offline")
        offline = hub.offline if offline is None else offline
        self._options = HubOptions(
            endpoint=options.get("endpoint") or hub.endpoint,
            cache_dir=Path(cache_dir) if cache_dir is not None else hub.cache_dir,
            token=_hub.checked_token(options.get("token"), "token="),
            offline=_hub.offline_by_default() if offline is None else offline,
            mock=backend == "mock" or self._host.features.view().get(MOCK),
        )
        if self._options.mock:
            from . import mock

            self.register(mock.MockPlugin(lambda: self.kinds, self._host.features), mock.NAME)
        self._queue_size = queue_size
        self._budget = step_budget_ms
        self._scheduler = Scheduler()
        self._loader = Loader(
            self._host, self._scheduler, self._options, parse_bytes(options.get("memory_budget"))
        )
        self._pool = ModelPool(self._loader, self._scheduler, idle_ttl)
        self._figures = Figures(self._pool, self._loader, self._scheduler)
        self._switch = Switch(self._pool)
        self._registry: ModelRegistry | None = None
        self._process = os.getpid()
        self._close_timeout = close_timeout
        self._closed = self._draining = False
        # Ends the scheduler's thread in order when the interpreter exits or nobody holds the engine.
        self._finalizer = weakref.finalize(
            self, _shut_down, self._scheduler, self._loader, self._pool, close_timeout
        )

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
    def kinds(self) -> Mapping[str, Kind]:
        """The kinds of model by name: core's own first, then those that the plugins list."""
        return self._host.kinds

    @property
    def registry(self) -> ModelRegistry:
        """The known models: the plugins' and the configuration file's, and those registered at run time."""
        if self._registry is None:
            from ..registry import build_registry

            self._registry = build_registry(self._host.models(), self._settings.models, self.kinds)
        return self._registry

    @property
    def device(self) -> Device:
        """What this machine is."""
        return self._loader.device

    @property
    def models(self) -> tuple[ModelCard, ...]:
        """The cards of the models that are loaded; one that was evicted meanwhile is among them."""
        return tuple(live.card for live in self._pool.live())

    @property
    def loads(self) -> tuple[LoadUnderWay, ...]:
        """The models that are being loaded now, with their progress; never waits."""
        return self._figures.under_way()

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
        return self._resolve(model, lambda: False)

    def _resolve(self, model: str | Path | ModelConfiguration, cancelled: Callable[[], bool]) -> ModelCard:
        return self._loader.resolve(self._configure(model), lambda: self._closed or cancelled())

    def explain(self, model: str | Path | ModelConfiguration | ModelCard) -> Owner:
        """Which plugin would serve a model, why, and what the others said.

        Raises:
            NoPluginForModelError, AmbiguousModelError: nobody would, or two would equally well.
        """
        card = self._card(model)
        return self._host.owner(card, card.configuration.plugin)

    def fit(
        self, model: str | Path | ModelConfiguration | ModelCard, workload: Workload | None = None
    ) -> FitReport:
        """Whether a model fits this device, with the arithmetic; nothing but its description is fetched.

        Args:
            model: which one.
            workload: what it is to do, a value of its kind's own class (`TextWorkload` …); ``None`` is the
                usual. The back end and the free memory are filled in.

        Raises:
            ResolutionError: the model cannot be found, or no plugin serves it.
            InvalidParameterError: the workload is one of another kind.
        """
        from ..contract.fit import fit

        card = self._card(model)
        claim = self.explain(card).claim
        kind = self._host.kind(claim.kind)
        return fit(card, claim, kind, self.device, workload, budget=self._pool.ledger.budget)

    def reckon(self, model: str | Path | ModelConfiguration | ModelCard) -> int | None:
        """Bytes that a model would need, by its plugin; ``None`` where it is not on this machine."""
        from .. import _hub
        from ..contract.configuration import ModelCard

        try:
            if not isinstance(model, ModelCard):
                options = {**self._options.arguments(), "offline": True}
                model = _hub.resolve(self._configure(model), **options)
            return self.fit(model).needed
        except MLXEngineError:
            return None

    def status(self) -> SchedulerStatus:
        """What the scheduler is doing now; never waits."""
        return attrs.evolve(self._scheduler.status(), queues=self._figures.queues())

    def memory(self) -> MemoryReport:
        """What is reserved, what is really held, and what was evicted; waits for one step at most."""
        return self._figures.report()

    def metrics(self) -> tuple[ModelMetrics, ...]:
        """What was counted of the requests that are over, by model; never waits."""
        return self._pool.statistics.report()

    def health(self) -> Health:
        """Whether the engine works, by what really ran last; never waits."""
        return self._figures.health()

    def _card(self, model: str | Path | ModelConfiguration | ModelCard) -> ModelCard:
        from ..contract.configuration import ModelCard

        return model if isinstance(model, ModelCard) else self.resolve(model)

    def _configure(self, model: str | Path | ModelConfiguration) -> ModelConfiguration:
        from ..contract.configuration import ModelConfiguration

        if isinstance(model, ModelConfiguration):
            return self._choose(model)
        if not isinstance(model, str | Path):
            raise InvalidParameterError(
                f"A model is a str, a Path or a ModelConfiguration, found {type(model).__name__}."
            )
        name, _, revision = str(model).partition("@")
        known = None if isinstance(model, Path) else self._known(name)
        if known is not None:
            return attrs.evolve(known, revision=revision or known.revision)
        return self._choose(ModelConfiguration(id=str(model)))

    def _choose(self, configuration: ModelConfiguration) -> ModelConfiguration:
        """What ``auto:kind`` stands for here; any other configuration as it is."""
        kind = configuration.ref.auto
        if kind is None:
            return configuration
        found = self.registry.recommend(kind, self.device, checked_only=True, reckon=self.reckon)
        log.info("auto:%s is %s: %s", kind, found.model.id, found.reason)
        return self._known(found.model.id) or found.model

    def _known(self, name: str) -> ModelConfiguration | None:
        """What the registry has of this name, as a request; nobody else's entries are built for it.

        A context length that a plugin lists is a fact about the model, not a wish, and the checkpoint itself
        knows better.
        """
        if self._registry is not None:
            from ..registry import Origin

            known = self._registry.get(name)
            if known is None or self._registry.entry(name).origin is not Origin.PLUGIN:
                return known
        else:
            key = name.strip().casefold()
            own = (item for item in self._settings.models if item.id.partition("@")[0].casefold() == key)
            if (found := next(own, None)) is not None:
                return found
            known = self._host.find_model(name.strip())
        return None if known is None else attrs.evolve(known, context_length=None)


def _shut_down(scheduler: Scheduler, loader: Loader, pool: ModelPool, timeout: float) -> None:
    pool.abandon()
    scheduler.close(timeout)
    loader.close()


__all__ = ["EngineBase"]
