"""Loading a model, from a configuration to something that the scheduler can run."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import ChainMap
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from attrs import evolve, frozen

from .._hub_options import HubOptions
from .._memory.ledger import Ledger
from .._memory.live import LiveModel, PendingLoad, Report, free
from .._scheduling.scheduler import Scheduler
from .._scheduling.task import FutureSink, Task
from .._scheduling.threads import Threads, collect
from ..contract._core_features import most_waiting
from ..contract.events import Event, Progress, Waiting
from ..contract.features import Layer, Level
from ..contract.hookspecs import LoadContext, Loaded, RunContext
from ..errors import (
    CancelledError,
    FeatureUnavailableError,
    IncompatibleWeightsError,
    InsufficientMemoryError,
    InvalidParameterError,
    MLXEngineError,
    PluginError,
    UnsupportedArchitectureError,
)
from . import border
from .host import Host

if TYPE_CHECKING:
    from ..contract.configuration import ModelCard, ModelConfiguration
    from ..contract.device import Device, DeviceBackend
    from ..contract.plugins import Owner
    from ..contract.requests import Request

log = logging.getLogger("mlxengine.loader")
_LOOK = 0.02  # seconds between two looks at whether there is memory by now


@contextlib.contextmanager
def _others_named(owner: Owner) -> Iterator[None]:
    """Where a model's plugin cannot load it and another offers it too, say how to ask that one."""
    try:
        yield
    except (IncompatibleWeightsError, UnsupportedArchitectureError) as error:
        able = [(name, claim) for name, claim in owner.others if claim.problem is None]
        if able:
            name, claim = max(able, key=lambda item: item[1].fit)
            how = f"load(…, plugin={name!r}), or --plugin {name}"
            also = f"The plugin {name!r} offers it too ({claim.reason}): {how}."
            error.hint = f"{error.hint} {also}" if error.hint else also
        raise


@frozen(kw_only=True)
class _Held:
    """Bytes in use but for caches, and whether no request was running that could change them."""

    active: int
    alone: bool


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
        self.ledger = Ledger(lambda: self._allowed(budget), self.take_out, self.trim)
        self._scheduler = scheduler
        # mlx keeps something for every thread that ever computed, and that such a thread ends while others
        # free what it compiled is a deadlock: one thread builds all models and lasts as long as the engine.
        self._builder = Scheduler("mlxengine-builder")
        self._options = options
        self._building = threading.Lock()
        self.threads = Threads()
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
            from ..contract.device import Device

            self._device = Device.detect()
        return self._device

    def _allowed(self, budget: int | None) -> int | None:
        from ..contract.fit import allowed

        return allowed(self.device, budget)

    def shortage(self) -> str | None:
        """Why memory is short on this machine, or ``None``."""
        from .._machine.detect import shortage

        return shortage(self.device)

    def load(
        self,
        configuration: ModelConfiguration,
        handle: type | None,
        verify: str | None,
        pending: PendingLoad,
    ) -> LiveModel:
        """Resolve, choose the plugin, check that it can fit, fetch, and bring it into memory."""
        pending.report(Progress(stage="resolve", done=0))
        card = self.resolve(configuration, pending.cancelled.is_set)
        owner = self._host.owner(card, card.configuration.plugin, handle)
        claim = owner.claim
        if not self.gives(claim.kind, handle):
            assert handle is not None
            raise InvalidParameterError(
                f"{card.id} is a model of kind {claim.kind!r}, which has no {handle.__name__}.",
                hint="Use load(), which returns the handle for the model's kind.",
            )
        with _others_named(owner):
            return self._load(configuration, card, owner, pending, verify)

    def _load(
        self,
        configuration: ModelConfiguration,
        card: ModelCard,
        owner: Owner,
        pending: PendingLoad,
        verify: str | None,
    ) -> LiveModel:
        claim = owner.claim
        if claim.problem is not None:
            raise claim.problem
        if claim.uses_mlx:
            self._need_mlx()
        own = dict(configuration.features)
        features = self._host.features.view(Layer(Level.LOAD, own))
        features.registry.refuse_foreign(own, owner.record.name, claim.honours)
        most_waiting(features)  # refuses what is no number
        from .._memory.plan import plans

        kind = self._host.kind(claim.kind)
        ladder = plans(card, claim, kind, owner.record, configuration, features, self._within_budget())
        self.ledger.refuse_hopeless(card.id, ladder[-1].estimate.total)
        live = LiveModel(
            card=card,
            configuration=configuration,
            record=owner.record,
            claim=claim,
            ladder=ladder,
            plan=ladder[0],
            path=self._fetch(card, claim.files, pending.cancelled.is_set, pending.report, verify),
        )
        self.bring_in(live, pending)
        return live

    def gives(self, kind: str, handle: type | None) -> bool:
        """Whether models of a kind are loaded as such a handle; ``None`` stands for any."""
        return handle is None or self._host.gives(kind, handle)

    def resolve(self, configuration: ModelConfiguration, cancelled: Callable[[], bool]) -> ModelCard:
        """What can be found out about a model without fetching its weights.

        Raises:
            CancelledError: ``cancelled()`` became true; the hub is not waited for.
        """
        if self._options.mock:
            from .mock import NAME, mock_card

            return mock_card(evolve(configuration, plugin=NAME))
        from .. import _hub

        return _hub.resolve(configuration, **self._options.arguments(), cancelled=cancelled)

    def _within_budget(self) -> Device:
        """The device with no more free memory than the budget: plugins unpack weights by it."""
        sizes = [size for size in (self.device.free_memory, self.ledger.budget) if size is not None]
        return evolve(self.device, free_memory=min(sizes, default=None))

    def bring_in(self, live: LiveModel, pending: PendingLoad) -> None:
        """Reserve memory, build the model and evaluate its weights.

        Raises:
            InsufficientMemoryError: it does not fit beside what is busy.
            LoadError, PluginError, CancelledError: it cannot be loaded.
        """
        self._reserve(live, pending)
        began = time.monotonic()
        try:
            with self._building:
                before = self._held(start=True)
                live.loaded = loaded = self._build(live, pending)
                try:
                    self._warm(live, loaded, pending.cancelled.is_set)
                    self._set_up(live, loaded, pending.cancelled.is_set)
                except BaseException:
                    self._scheduler.run(lambda: free(live, self._backend))
                    raise
                after = self._held()
        except BaseException as error:
            self.ledger.release(pending)
            if not (live.plan.refusable and isinstance(error, FeatureUnavailableError)):
                raise
            log.info("%s cannot be loaded with less in this way: %s", live.card.id, error)
            from .._memory.plan import plans

            asked = live.ladder[0]
            live.ladder = plans(
                live.card,
                live.claim,
                self._host.kind(live.claim.kind),
                live.record,
                live.configuration,
                asked.features,
                asked.device,
                refused=True,
            )
            self.bring_in(live, pending)
            return
        live.capabilities = live.claim.capabilities | loaded.capabilities
        about = {} if live.plan.reason is None else {"degraded": live.plan.reason}
        live.info = MappingProxyType(ChainMap(about, cast(dict[str, Any], loaded.info)))
        if before is not None and after is not None:
            taken = after.active - before.active
            # What requests of other models allocate meanwhile cannot be told apart: then the estimate counts.
            if before.alone and after.alone and taken > 0:
                live.weights = taken
                self._record(live, before.active)
            elif live.weights is None:
                live.weights = live.predicted.weights
        self.ledger.settle(pending, live, live.need)
        live.crashes, live.last_used = 0, time.monotonic()
        live.load_seconds = live.last_used - began

    def _reserve(self, live: LiveModel, pending: PendingLoad) -> None:
        """Charge the budget with a plan that fits, waiting for memory as long as the load has patience."""
        refusal = self._refused(live, pending)
        if refusal is None:
            return
        if not pending.patience:
            raise refusal
        end = time.monotonic() + pending.patience
        turn = self.ledger.line.join(live.load_seconds)
        pending.report(Progress(stage="memory", done=0))
        try:
            while refusal is not None:
                if pending.cancelled.wait(_LOOK):
                    raise CancelledError("Loading was cancelled.")
                if self.ledger.line.first(turn):
                    refusal = self._refused(live, pending)
                if refusal is not None and time.monotonic() > end:
                    refusal.add_note(f"It waited for memory for {pending.patience:g} s.")
                    raise refusal
        finally:
            self.ledger.line.leave(turn)

    def _refused(self, live: LiveModel, pending: PendingLoad) -> InsufficientMemoryError | None:
        """Charge the budget with the first of the plans that fits, or say why none does."""
        refusal: InsufficientMemoryError | None = None
        for plan in live.ladder:
            live.plan = plan
            try:
                self.ledger.reserve(pending, live.card.id, live.need)
            except InsufficientMemoryError as error:
                refusal = refusal or error
                continue
            if plan.reason is not None:
                log.warning("Degraded: %s: %s", live.card.id, plan.reason, extra={"model": live.card.id})
            return None
        return refusal

    def _record(self, live: LiveModel, before: int) -> None:
        backend = self._backend
        assert backend is not None
        peak = self._scheduler.run(backend.memory).peak - before
        from .._memory import history

        history.record(
            live.card.id,
            live.claim.kind,
            self.device.backend,
            predicted=live.predicted.weights,
            weights=live.weights or 0,
            peak=peak,
            predicted_cache=live.predicted.cache,
            cache=None if live.loaded is None else live.loaded.cache,
        )

    def take_out(self, live: LiveModel, timeout: float | None = None) -> int | None:
        """End a model's requests and take it out of memory; the bytes that came back, if known.

        Raises:
            TimeoutError: a step went on for longer than ``timeout`` seconds; it is done after that step.
        """

        def end() -> int | None:
            ended = CancelledError(f"{live.card.id} was closed while the request was running.")
            self._scheduler.end_group(live, ended)
            if live.loaded is not None and not live.closed:
                try:
                    live.setup = tuple(live.loaded.setup())
                except PluginError as error:
                    live.setup = error
            return free(live, self._backend)

        return self._scheduler.run(end, timeout)

    def trim(self, live: LiveModel, most: int) -> None:
        """Let a model drop caches until they hold at most so many bytes."""

        def drop() -> None:
            if live.loaded is not None:
                try:
                    live.loaded.trim(most)
                except MLXEngineError as error:  # then an idle model goes instead
                    log.warning("The caches of %s stay: %s", live.card.id, error)
                if self._backend is not None:
                    self._backend.clear_cache()

        self._scheduler.run(drop)

    def _held(self, *, start: bool = False) -> _Held | None:
        backend = self._backend
        if backend is None:
            return None

        def read() -> _Held:
            # mlx counts what garbage still holds, and the peak is the process's since it was reset.
            collect()
            if start:
                backend.reset_peak()
            active = backend.memory().active - self.ledger.caches
            return _Held(active=active, alone=not self._scheduler.status().tasks)

        return self._scheduler.run(read)

    @property
    def builder(self) -> threading.Thread | None:
        """The thread that builds models."""
        return self._builder.thread

    def close(self, timeout: float = 1.0) -> None:
        """End the thread that builds models; a model that is still being built at exit is not waited for."""
        self._builder.close(timeout)

    def _need_mlx(self) -> None:
        from .._machine import mlx_backend

        with self._building:
            if self._backend is None:
                self._backend = backend = self._scheduler.use(mlx_backend)
                self._builder.use(lambda: backend)

    def _fetch(
        self,
        card: ModelCard,
        patterns: tuple[str, ...],
        cancelled: Callable[[], bool],
        report: Report | None = None,
        verify: str | None = None,
    ) -> Path:
        if self._options.mock:
            return Path(card.id)
        from .. import _hub

        return _hub.fetch(
            card,
            patterns,
            **self._options.arguments(),
            report=report,
            cancelled=cancelled,
            verify=verify,
        )

    def fetcher(
        self, cancelled: Callable[[], bool], report: Report | None = None
    ) -> Callable[[str, Sequence[str]], Path]:
        """What a plugin gets another repository or folder with (an adapter, a draft model) in a load."""
        from ..contract.configuration import ModelConfiguration

        def fetch(ref: str, patterns: Sequence[str]) -> Path:
            card = self.resolve(ModelConfiguration(id=ref), cancelled)
            return self._fetch(card, tuple(patterns), cancelled, report)

        return fetch

    def fetching(
        self, cancelled: Callable[[], bool]
    ) -> Callable[[str, Sequence[str]], Generator[Event | None, None, Path]]:
        """The same in a request, on a thread of its own: the scheduler's must not wait for a hub."""

        def fetch(ref: str, patterns: Sequence[str]) -> Generator[Event | None, None, Path]:
            found: Future[Path] = Future()
            given_up = threading.Event()
            get = self.fetcher(lambda: given_up.is_set() or cancelled())

            def work() -> None:
                try:
                    found.set_result(get(ref, patterns))
                except BaseException as error:
                    found.set_exception(error)

            self.threads.start(work, name="mlxengine-fetch")
            try:
                while not found.done():
                    yield Waiting(until=found)
            finally:
                given_up.set()
            return found.result()

        return fetch

    def _build(self, live: LiveModel, pending: PendingLoad) -> Loaded:
        pending.report(Progress(stage="load", done=0))
        context = LoadContext(
            path=live.path,
            configuration=live.plan.configuration,
            features=live.features,
            device=live.plan.device,
            report=pending.report,
            cancelled=pending.cancelled.is_set,
            fetch=self.fetcher(pending.cancelled.is_set, pending.report),
            cache_room=self.ledger.cache_room,
            reserved=live.predicted.cache,
        )

        def build() -> object:
            with ExitStack() as stack:
                if live.claim.uses_mlx and self._backend is not None:
                    stack.enter_context(self._backend.loader_stream())
                return self._host.call(live.record, "load_model", card=live.card, context=context)

        return border.loaded(live.record, self._builder.run(build))

    def _warm(self, live: LiveModel, loaded: Loaded, cancelled: Callable[[], bool]) -> None:
        task = Task(
            group=live,
            record=live.record,
            start=lambda: iter(loaded.warm),
            sink=FutureSink(),
            answers=False,
            hook="load_model",
        )
        self._finish(task, cancelled)

    def _set_up(self, live: LiveModel, loaded: Loaded, cancelled: Callable[[], bool]) -> None:
        """Run again what requests had set up when the model was evicted; a request must not miss it."""
        if isinstance(live.setup, PluginError):
            raise live.setup
        context = RunContext(features=live.features, cancelled=cancelled, fetch=self.fetching(cancelled))
        for request in live.setup:

            def start(request: Request = request) -> Any:
                return self._host.call(
                    live.record, "generate", model=loaded.model, request=request, context=context
                )

            self._finish(Task(group=live, record=live.record, start=start, sink=FutureSink()), cancelled)

    def _finish(self, task: Task, cancelled: Callable[[], bool]) -> None:
        """Run a task to its end on the scheduler."""
        sink = task.sink
        assert isinstance(sink, FutureSink)
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
