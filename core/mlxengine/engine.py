"""The engine: loads models of any kind and runs their requests fairly on one device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import attrs

from ._engine.base import EngineBase
from ._engine.pool import LoadKey
from ._memory.live import LiveModel, PendingLoad, Report
from ._scheduling.channel import Channel
from ._scheduling.faults import running, stuck
from ._scheduling.recovery import RecoveringSink
from ._scheduling.task import FutureSink, Task
from ._scheduling.threads import forked, refuse_fork
from .contract._core_features import DEGRADE
from .contract.features import Features, Layer, Level
from .contract.hookspecs import RunContext
from .errors import (
    CancelledError,
    EngineClosedError,
    InvalidParameterError,
    MLXEngineError,
    ModelClosedError,
    UnsupportedInputError,
)

if TYPE_CHECKING:
    from typing import Unpack

    from .contract.configuration import ModelConfiguration
    from .contract.loading import LoadOptions
    from .contract.requests import Request
    from .handle import ModelHandle
    from .pictures.handle import ImageHandle
    from .text.handle import TextHandle
    from .vectors.handle import EmbeddingHandle

H = TypeVar("H", bound="ModelHandle")


class InferenceEngine(EngineBase):
    """Loads models and runs their requests. Use it as a context manager, or call `close`.

    What is left out comes from the environment and the configuration file.

    Args:
        backend: ``"mlx"``, or ``"mock"`` for the mock back end, which `Kind.mock` says what to make for.
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
        close_timeout: seconds that `close`, and leaving the ``with`` block, wait for a step that has begun.

    Raises:
        InvalidParameterError, UnknownFeatureError, FeatureUnavailableError: a bad argument or flag.
        ConfigurationError: the configuration file cannot be read.
    """

    # -- loading -------------------------------------------------------------------------------------

    def load(
        self,
        model: str | Path | ModelConfiguration,
        *,
        plugin: str | None = None,
        features: Mapping[str, object] | None = None,
        verify: str | None = None,
        warm_up: bool = False,
        on_progress: Report | None = None,
    ) -> ModelHandle:
        """Load a model and return the handle for its kind.

        A model that is loaded already with the same configuration is shared.

        Args:
            model: ``"org/name"``, ``"org/name@revision"``, a folder, a GGUF file, or a configuration.
            plugin: the plugin that must serve it.
            features: feature flags for this model.
            verify: ``"deep"`` hashes every file again before it is loaded.
            warm_up: run what serving will run for the first time, where the plugin offers that: on a device
                that compiles for each new size (CUDA) the first users do not wait for it then. Requests of
                this model and others go on meanwhile.
            on_progress: called with events of the download and the load, on another thread. If it raises,
                that is logged and it is not called again; the load goes on.

        Raises:
            ConfigurationError, ResolutionError, DownloadError, PluginError, LoadError: as they say.
            EngineClosedError: the engine was closed.
        """
        live = self._load(None, model, plugin, features, verify, on_progress, warm_up=warm_up)
        found: ModelHandle = self._handle(live)
        return found

    def load_as(
        self, handle: type[H], model: str | Path | ModelConfiguration, **options: Unpack[LoadOptions]
    ) -> H:
        """Like `load`, for a model whose kind has this handle: ``engine.load_as(SpeechHandle, "org/name")``.

        Raises:
            InvalidParameterError: the model is of a kind that has another one, found before it is fetched.
        """
        found = self._handle(self._load(handle, model, **options))
        assert isinstance(found, handle)
        return found

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
        start = self._start_load
        live = self._switch.to(lambda: start(None, model, plugin, features, None, on_progress))
        found: ModelHandle = self._handle(live)
        return found

    def load_text(self, model: str | Path | ModelConfiguration, **options: Unpack[LoadOptions]) -> TextHandle:
        """`load_as` for a model that answers in text."""
        from .text.handle import TextHandle

        return self.load_as(TextHandle, model, **options)

    def load_embeddings(
        self, model: str | Path | ModelConfiguration, **options: Unpack[LoadOptions]
    ) -> EmbeddingHandle:
        """`load_as` for a model that makes vectors."""
        from .vectors.handle import EmbeddingHandle

        return self.load_as(EmbeddingHandle, model, **options)

    def load_images(
        self, model: str | Path | ModelConfiguration, **options: Unpack[LoadOptions]
    ) -> ImageHandle:
        """`load_as` for a model that makes pictures."""
        from .pictures.handle import ImageHandle

        return self.load_as(ImageHandle, model, **options)

    def _handle(self, live: LiveModel, which: str = "handle") -> Any:
        """What the caller gets for a model that it holds; one that has no handle is given up."""
        try:
            return self._host.kind(live.claim.kind).find(which)(self, live)
        except BaseException:
            self._release(live)
            raise

    def _load(
        self,
        handle: type | None,
        model: str | Path | ModelConfiguration,
        plugin: str | None = None,
        features: Mapping[str, object] | None = None,
        verify: str | None = None,
        on_progress: Report | None = None,
        *,
        warm_up: bool = False,
    ) -> LiveModel:
        pending = self._start_load(handle, model, plugin, features, verify, on_progress)
        try:
            live = pending.future.result()
            if warm_up:
                self._warmed_up(live)
            return live
        except BaseException:
            self._pool.give_up(pending)
            raise

    def _warmed_up(self, live: LiveModel) -> None:
        done, cancel = self._start_warming_up(live)
        try:
            done.result()
        except BaseException:
            cancel()
            raise

    def _start_warming_up(self, live: LiveModel) -> tuple[Future[None], Callable[[], None]]:
        """Warm a model up beside whatever runs; its end, and the way to cancel it."""

        def begin() -> Any:
            loaded = live.loaded
            return iter(() if loaded is None or loaded.warm_up is None else loaded.warm_up())

        sink = FutureSink()
        task = Task(group=live, record=live.record, start=begin, sink=sink, answers=False, hook="warm_up")
        self._pool.submit(live, task)
        return sink.future, lambda: self._scheduler.cancel(task)

    def _start_load(
        self,
        handle: type | None,
        model: str | Path | ModelConfiguration,
        plugin: str | None = None,
        features: Mapping[str, object] | None = None,
        verify: str | None = None,
        on_progress: Report | None = None,
    ) -> PendingLoad:
        if verify not in (None, "deep"):
            raise InvalidParameterError(f"verify={verify!r} is not known.", hint='Write verify="deep".')
        configuration = self._configure(model)
        if plugin is not None:
            configuration = attrs.evolve(configuration, plugin=plugin)
        if features:
            merged = {**dict(configuration.features), **features}
            configuration = attrs.evolve(configuration, features=tuple(sorted(merged.items())))
        return self._pool.start(LoadKey(configuration, handle, verify), on_progress)

    # -- running -------------------------------------------------------------------------------------

    def _open(self, live: LiveModel, request: Request, closed: bool) -> tuple[Channel, Callable[[], None]]:
        """Put a request on the scheduler; the channel it is read from, and the way to cancel it."""
        refuse_fork(self._process)
        if self._closed:
            raise EngineClosedError("The engine is closed.")
        if closed or live.closed:
            raise ModelClosedError(f"The handle of {live.card.id} is closed.")
        from .contract.requests import Request

        if not isinstance(request, Request):
            raise InvalidParameterError(f"A request is a Request, found {type(request).__name__}.")

        def features() -> Features:
            # Asked again when the request begins: an evicted model may come back with other flags.
            own = Layer(Level.CALL, dict(request.features))
            return live.features.over(own) if request.features else live.features

        def begin() -> Any:
            context = RunContext(
                features=features(),
                budget_ms=self._budget,
                cancelled=lambda: current[0].cancelled,
                fetch=self._loader.fetcher(lambda: self._closed or current[0].cancelled),
            )
            return self._generate(live, request, context)

        features()
        channel = Channel(self._queue_size, self._scheduler.nudge)
        current: list[Task] = []

        def submit() -> None:
            task = Task(
                group=live,
                record=live.record,
                start=begin,
                sink=sink,
                cancelled=any(earlier.cancelled for earlier in current),
            )
            current[:] = [task]
            self._pool.submit(live, task)

        sink = RecoveringSink(
            channel,
            submit,
            lambda then, relieve: self._pool.aside(live, then, relieve=relieve),
            relieves=live.features.get(DEGRADE),
        )
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
        """Cancel every request and load, free every model, end every thread. May be called twice.

        Raises:
            PluginContractError: a plugin's step has not returned within ``close_timeout`` seconds; whoever
                waited for anything got the same error, and its thread is left behind.
        """
        if self._closed:
            return
        self._closed = True
        if forked(self._process):
            self._finalizer.detach()  # threads and models are the parent's
            return
        left = self._pool.close(self._close_timeout)
        if not left:
            self._finalizer()
            return
        self._finalizer.detach()
        found = [running(thread) for thread in (*left, self._scheduler.thread, self._loader.builder)]
        longest = max((item for item in found if item), key=lambda item: item.seconds, default=None)
        error = stuck(longest, self._close_timeout)
        self._pool.leave(error)
        self._scheduler.close(0)
        self._loader.close(0)
        raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with closing_beside(error):
            self.close()


@contextmanager
def closing_beside(error: BaseException | None) -> Iterator[None]:
    """What closing has to say must not hide why the ``with`` block was left: it becomes a note on that."""
    try:
        yield
    except MLXEngineError as problem:
        if error is None:
            raise
        error.add_note(str(problem))


__all__ = ["InferenceEngine"]
