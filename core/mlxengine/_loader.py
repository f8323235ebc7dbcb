"""Loading a model, from a configuration to something that the scheduler can run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen

from ._faults import broken
from ._host import Host
from ._ledger import Ledger
from ._live import LiveModel, PendingLoad
from ._scheduler import Scheduler
from ._task import FutureSink, Task
from ._threads import collect
from .configuration import ModelCard, ModelConfiguration
from .errors import CancelledError, InvalidParameterError
from .events import Progress
from .features import Layer, Level
from .hookspecs import Claim, LoadContext, Loaded, MemoryEstimate, Workload

if TYPE_CHECKING:
    from .device import Device, DeviceBackend

log = logging.getLogger("mlxengine.loader")


@frozen(kw_only=True)
class HubOptions:
    """How models are found and fetched: what ``InferenceEngine`` was given.

    ``mock`` finds and fetches nothing: the mock plugin serves whatever is named.
    """

    endpoint: str | None = None
    cache_dir: Path | None = None
    token: str | None = field(default=None, repr=False)
    offline: bool = False
    mock: bool = False

    def arguments(self) -> dict[str, Any]:
        return {
            "endpoint": self.endpoint,
            "cache_dir": self.cache_dir,
            "token": self.token,
            "offline": self.offline,
        }


class Loader:
    """Turns configurations into loaded models; one at a time builds, downloads go on beside it.

    Args:
        host: the plugins.
        scheduler: evaluates the weights, a slice between the steps of other models.
        options: where models come from.
        budget: bytes that all models may take; ``None`` is what the device recommends.
    """

    def __init__(
        self, host: Host, scheduler: Scheduler, options: HubOptions, budget: int | None = None
    ) -> None:
        self._host = host
        self.ledger = Ledger(lambda: budget or self.device.working_set, self.take_out)
        self._scheduler = scheduler
        # mlx keeps something for every thread that ever computed, and that such a thread ends while others
        # free what it compiled is a deadlock: one thread builds all models and lasts as long as the engine.
        self._builder = Scheduler("mlxengine-builder")
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
            from .device import Device

            self._device = Device.detect()
        return self._device

    def load(
        self,
        configuration: ModelConfiguration,
        kinds: tuple[str, ...],
        verify: str | None,
        pending: PendingLoad,
    ) -> LiveModel:
        """Resolve, choose the plugin, check that it can fit, fetch, and bring it into memory."""
        pending.report(Progress(stage="resolve", done=0))
        card = self.resolve(configuration)
        owner = self._host.owner(card, card.configuration.plugin, kinds)
        claim = owner.claim
        if kinds and claim.kind not in kinds:
            raise InvalidParameterError(
                f"{card.id} is a model of kind {claim.kind!r}, not {' or '.join(kinds)}.",
                hint="Use load(), which returns the handle for the model's kind.",
            )
        if claim.problem is not None:
            raise claim.problem
        if claim.uses_mlx:
            self._need_mlx()
        features = self._host.features.view(Layer(Level.LOAD, dict(configuration.features)))
        predicted = self.estimate(card, claim)
        self.ledger.refuse_hopeless(card.id, predicted.total)
        live = LiveModel(
            card=card,
            configuration=configuration,
            record=owner.record,
            claim=claim,
            features=features,
            path=self._fetch(card, claim.files, pending, verify),
            predicted=predicted,
        )
        self.bring_in(live, pending)
        return live

    def resolve(self, configuration: ModelConfiguration) -> ModelCard:
        """What can be found out about a model without fetching its weights."""
        if self._options.mock:
            from .testing.mock import NAME, mock_card

            return mock_card(evolve(configuration, plugin=NAME))
        from . import _hub

        return _hub.resolve(configuration, **self._options.arguments())

    def estimate(self, card: ModelCard, claim: Claim) -> MemoryEstimate:
        """What the plugin says that the model needs here, for its usual workload."""
        from .fit import estimate

        device = self.device
        return estimate(card, claim, Workload(backend=device.backend, free_memory=device.free_memory))

    def bring_in(self, live: LiveModel, pending: PendingLoad) -> None:
        """Reserve memory, build the model and evaluate its weights.

        Raises:
            InsufficientMemoryError: it does not fit beside what is busy.
            LoadError, PluginError, CancelledError: it cannot be loaded.
        """
        self.ledger.reserve(pending, live.card.id, live.need)
        try:
            with self._building:
                before = self._held(start=True)
                live.loaded = loaded = self._build(live, pending)
                try:
                    self._warm(live, loaded, pending.cancelled.is_set)
                except BaseException:
                    self._scheduler.run(lambda: free(live, self._backend))
                    raise
                after = self._held()
        except BaseException:
            self.ledger.release(pending)
            raise
        live.capabilities = live.claim.capabilities | loaded.capabilities
        live.info = MappingProxyType(dict(loaded.info))
        if before is not None and after is not None:
            taken = after - before
            # Requests of other models allocate meanwhile: a figure that cannot be is not believed.
            likely = 0 < taken < 2 * max(live.predicted.weights, 1)
            live.weights = taken if likely or live.weights is None else live.weights
        if before is not None and live.weights is not None:
            self._record(live, before)
        self.ledger.settle(pending, live, live.need)
        live.crashes, live.last_used = 0, time.monotonic()

    def _record(self, live: LiveModel, before: int) -> None:
        backend = self._backend
        assert backend is not None
        peak = self._scheduler.run(backend.memory).peak - before
        from . import _history

        _history.record(
            live.card.id,
            live.claim.kind,
            self.device.backend,
            predicted=live.predicted.weights,
            weights=live.weights or 0,
            peak=peak,
        )

    def take_out(self, live: LiveModel) -> int | None:
        """End a model's requests and take it out of memory; the bytes that came back, if known."""

        def end() -> int | None:
            ended = CancelledError(f"{live.card.id} was closed while the request was running.")
            self._scheduler.end_group(live, ended)
            return free(live, self._backend)

        return self._scheduler.run(end)

    def _held(self, *, start: bool = False) -> int | None:
        backend = self._backend
        if backend is None:
            return None

        def read() -> int:
            # mlx counts what garbage still holds, and the peak is the process's since it was reset.
            collect()
            if start:
                backend.reset_peak()
            return backend.memory().active

        return self._scheduler.run(read)

    def close(self) -> None:
        """End the thread that builds models; a model that is still being built at exit is not waited for."""
        self._builder.close(timeout=1.0)

    def _need_mlx(self) -> None:
        from .device import mlx_backend

        with self._building:
            if self._backend is None:
                self._backend = backend = self._scheduler.use(mlx_backend)
                self._builder.use(lambda: backend)

    def _fetch(
        self, card: ModelCard, patterns: tuple[str, ...], pending: PendingLoad, verify: str | None = None
    ) -> Path:
        if self._options.mock:
            return Path(card.id)
        from . import _hub

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
        card = self.resolve(ModelConfiguration(id=ref))
        return self._fetch(card, tuple(patterns), PendingLoad())

    def _build(self, live: LiveModel, pending: PendingLoad) -> Loaded:
        pending.report(Progress(stage="load", done=0))
        context = LoadContext(
            path=live.path,
            configuration=live.configuration,
            features=live.features,
            device=self.device,
            report=pending.report,
            cancelled=pending.cancelled.is_set,
            fetch=self.fetch_other,
        )

        def build() -> object:
            with ExitStack() as stack:
                if live.claim.uses_mlx and self._backend is not None:
                    stack.enter_context(self._backend.loader_stream())
                return self._host.call(live.record, "load_model", card=live.card, context=context)

        loaded = self._builder.run(build)
        if not isinstance(loaded, Loaded):
            what = f"returned {type(loaded).__name__} for a model that it claimed"
            raise broken(live.record, "load_model", what)
        return loaded

    def _warm(self, live: LiveModel, loaded: Loaded, cancelled: Callable[[], bool]) -> None:
        sink = FutureSink()
        task = Task(
            group=live,
            record=live.record,
            start=lambda: iter(loaded.warm),
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


def free(live: LiveModel, backend: DeviceBackend | None) -> int | None:
    """Take a model out of memory; on the scheduler's thread. Returns the bytes that came back."""
    before = backend.memory().active if backend is not None else 0
    loaded, live.loaded = live.loaded, None
    if loaded is not None and loaded.close is not None:
        try:
            loaded.close()
        except Exception as error:
            log.warning("Closing %s (plugin %s) raised %r", live.card.id, live.record.name, error)
    del loaded
    if backend is None:
        return None
    # Models are full of reference cycles; what they hold must go now, not at some later collection.
    collect()
    backend.clear_cache()
    return before - backend.memory().active
