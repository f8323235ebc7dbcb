"""Loading a model, from a configuration to something that the scheduler can run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from . import _hub
from ._host import Host
from ._scheduler import Scheduler
from ._task import FutureSink, Task
from .configuration import ModelCard, ModelConfiguration
from .device import Device, DeviceBackend, mlx_backend
from .errors import CancelledError, InvalidParameterError, PluginContractError
from .events import Event, Progress
from .features import Features, Layer, Level
from .hookspecs import Claim, LoadContext, Loaded
from .plugins import PluginRecord

log = logging.getLogger("mlxengine.loader")
Report = Callable[[Event], None]


@frozen(kw_only=True)
class HubOptions:
    """How models are found and fetched: what ``InferenceEngine`` was given."""

    endpoint: str | None = None
    cache_dir: Path | None = None
    token: str | None = field(default=None, repr=False)
    offline: bool = False

    def arguments(self) -> dict[str, Any]:
        return {
            "endpoint": self.endpoint,
            "cache_dir": self.cache_dir,
            "token": self.token,
            "offline": self.offline,
        }


@define(eq=False, kw_only=True)
class LiveModel:
    """A loaded model and who holds it."""

    card: ModelCard
    configuration: ModelConfiguration
    record: PluginRecord
    claim: Claim
    loaded: Loaded
    features: Features
    holders: int = 0
    closed: bool = False
    tasks: set[Task] = field(factory=set, repr=False)


@define(eq=False, kw_only=True)
class PendingLoad:
    """A load that is under way, and how many callers wait for it (once ``counted``, they hold the model)."""

    future: Future[LiveModel] = field(factory=Future)
    cancelled: threading.Event = field(factory=threading.Event)
    waiters: int = 0
    counted: bool = False
    reports: list[Report] = field(factory=list)

    def report(self, event: Event) -> None:
        for report in list(self.reports):
            report(event)


class Loader:
    """Turns configurations into loaded models; one at a time builds, downloads go on beside it.

    Args:
        host: the plugins.
        scheduler: evaluates the weights, a slice between the steps of other models.
        options: where models come from.
        device: what this machine is.
    """

    def __init__(self, host: Host, scheduler: Scheduler, options: HubOptions) -> None:
        self._host = host
        self._scheduler = scheduler
        self._options = options
        self._building = threading.Lock()
        self._backend: DeviceBackend | None = None
        self._device: Device | None = None

    @property
    def backend(self) -> DeviceBackend | None:
        """mlx's back end, once a model that needs it was asked for."""
        return self._backend

    @property
    def device(self) -> Device:
        """What this machine is, looked up once."""
        if self._device is None:
            self._device = Device.detect()
        return self._device

    def load(
        self,
        configuration: ModelConfiguration,
        kinds: tuple[str, ...],
        verify: str | None,
        pending: PendingLoad,
    ) -> LiveModel:
        """Resolve, choose the plugin, fetch, build, evaluate."""
        cancelled = pending.cancelled.is_set
        pending.report(Progress(stage="resolve", done=0))
        card = _hub.resolve(configuration, **self._options.arguments())
        owner = self._host.owner(card, configuration.plugin)
        claim = owner.claim
        if kinds and claim.kind not in kinds:
            raise InvalidParameterError(
                f"{card.id} is a model of kind {claim.kind!r}, not {' or '.join(kinds)}.",
                hint="Use load(), which returns the handle for the model's kind.",
            )
        if claim.problem is not None:
            raise claim.problem
        backend = self._need_mlx() if claim.uses_mlx else None
        features = self._host.features.view(Layer(Level.LOAD, dict(configuration.features)))
        path = self._fetch(card, claim.files, pending, verify)
        context = LoadContext(
            path=path,
            configuration=configuration,
            features=features,
            device=self.device,
            report=pending.report,
            cancelled=cancelled,
            fetch=self.fetch_other,
        )
        with self._building:
            loaded = self._build(owner.record, card, context, backend)
            live = LiveModel(
                card=card,
                configuration=configuration,
                record=owner.record,
                claim=claim,
                loaded=loaded,
                features=features,
            )
            try:
                self._warm(live, cancelled)
            except BaseException:
                self._scheduler.call(lambda: free(live, self._backend)).result()
                raise
        return live

    def _need_mlx(self) -> DeviceBackend:
        with self._building:
            if self._backend is None:
                self._backend = self._scheduler.use(mlx_backend)
        return self._backend

    def _fetch(
        self, card: ModelCard, patterns: tuple[str, ...], pending: PendingLoad, verify: str | None = None
    ) -> Path:
        return _hub.fetch(
            card,
            patterns,
            **self._options.arguments(),
            report=pending.report,
            cancelled=pending.cancelled.is_set,
            verify=verify,
        )

    def fetch_other(self, ref: str, patterns: Any) -> Path:
        """Another repository or folder that a model needs (an adapter, a draft model)."""
        card = _hub.resolve(ModelConfiguration(id=ref), **self._options.arguments())
        return self._fetch(card, tuple(patterns), PendingLoad())

    def _build(
        self, record: PluginRecord, card: ModelCard, context: LoadContext, backend: DeviceBackend | None
    ) -> Loaded:
        context.report(Progress(stage="load", done=0))
        with ExitStack() as stack:
            if backend is not None:
                stack.enter_context(backend.loader_stream())
            loaded = self._host.call(record, "load_model", card=card, context=context)
        if not isinstance(loaded, Loaded):
            raise PluginContractError(
                f"load_model of {record.where} returned {type(loaded).__name__} for a model that it claimed.",
                plugin=record.name,
                distribution=record.distribution,
                hook="load_model",
            )
        return loaded

    def _warm(self, live: LiveModel, cancelled: Callable[[], bool]) -> None:
        sink = FutureSink()
        task = Task(
            group=live,
            record=live.record,
            start=lambda: iter(live.loaded.warm),
            sink=sink,
            answers=False,
            hook="load_model",
        )
        self._scheduler.submit(task)
        while True:
            try:
                sink.future.result(timeout=0.1)
                return
            except TimeoutError:
                if sink.future.done():
                    raise
                if cancelled():
                    self._scheduler.cancel(task)
                    sink.future.exception()
                    raise CancelledError("Loading was cancelled.") from None


def free(live: LiveModel, backend: DeviceBackend | None) -> None:
    """Close a model and give its memory back; on the scheduler's thread."""
    live.closed = True
    loaded, live.loaded = live.loaded, Loaded(model=None)
    if loaded.close is not None:
        try:
            loaded.close()
        except Exception as error:
            log.warning("Closing %s (plugin %s) raised %r", live.card.id, live.record.name, error)
    del loaded
    if backend is not None:
        backend.clear_cache()
