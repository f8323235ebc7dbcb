"""The engine: loads models of any kind and runs their requests fairly on one device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from ._engine.serving import Serving
from ._memory.live import LiveModel
from ._scheduling.faults import running, stuck
from ._scheduling.threads import forked
from .contract.loading import check_drain
from .errors import MLXEngineError

if TYPE_CHECKING:
    from typing import Unpack

    from .contract.configuration import ModelConfiguration
    from .contract.loading import LoadOptions
    from .handle import ModelHandle
    from .pictures.handle import ImageHandle
    from .text.handle import TextHandle
    from .vectors.handle import EmbeddingHandle

H = TypeVar("H", bound="ModelHandle")


class InferenceEngine(Serving):
    """Loads models and runs their requests. Use it as a context manager, or call `close`.

    What is left out comes from the environment and the configuration file, or is the value in brackets.

    Args:
        backend: ``"mlx"``, or ``"mock"`` for the mock back end, which `Kind.mock` says what to make for.
        plugins: plugin objects, or ``(name, object)`` pairs, instead of the installed entry points.
        distributions: which distribution provides an entry-point name that several claim.
        features: feature flags for everything that this engine loads.
        endpoint, cache_dir, token, offline: how the hub is reached; ``None`` is huggingface_hub's own
            default (``HF_ENDPOINT``, ``HF_HOME``, the stored token, ``HF_HUB_OFFLINE``).
        memory_budget: what all models may take together, in bytes or as ``"8GB"``; ``None`` is what the
            device recommends. What does not fit is refused, idle models are evicted to make room.
        idle_ttl: seconds after its last request that a model is evicted, unless its load says otherwise;
            ``None`` keeps it. The next request of an evicted model loads it again.
        queue_size: events that may wait for one reader before its request pauses (64).
        step_budget_ms: how long one step of a request should take at most (100); what cannot be cut
            (a denoising step) may take longer.
        close_timeout: seconds that `close`, and leaving the ``with`` block, wait for a step that has begun
            (10).

    Raises:
        InvalidParameterError, UnknownFeatureError, FeatureUnavailableError: a bad argument or flag.
        ConfigurationError: the configuration file cannot be read.
    """

    # -- loading -------------------------------------------------------------------------------------

    def load(self, model: str | Path | ModelConfiguration, **options: Unpack[LoadOptions]) -> ModelHandle:
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
            idle_ttl: the engine's ``idle_ttl`` for this model; ``None`` keeps it. It counts for all who share
                the model, and a handle can change it.
            wait_for_memory: seconds that the load may wait, in order, until memory is free that requests to
                other models keep busy, and any later one that brings this model back; 0 refuses at once. Once
                it has waited for as long as it takes itself, new requests to those models stand back for it.
            on_progress: called with events of the download and the load, on another thread. If it raises,
                that is logged and it is not called again; the load goes on.

        Raises:
            ConfigurationError, ResolutionError, DownloadError, PluginError, LoadError: as they say.
            EngineClosedError: the engine was closed.
        """
        found: ModelHandle = self._handle(self._load(None, model, options), options)
        return found

    def load_as(
        self, handle: type[H], model: str | Path | ModelConfiguration, **options: Unpack[LoadOptions]
    ) -> H:
        """Like `load`, for a model whose kind has this handle: ``engine.load_as(SpeechHandle, "org/name")``.

        Raises:
            InvalidParameterError: the model is of a kind that has another one, found before it is fetched.
        """
        found = self._handle(self._load(handle, model, options), options)
        assert isinstance(found, handle)
        return found

    def switch(self, model: str | Path | ModelConfiguration, **options: Unpack[LoadOptions]) -> ModelHandle:
        """Replace the model that the last `switch` loaded: stop its requests, free it, `load` this one.

        Of several calls at once the last wins; the others end with `CancelledError`.
        """
        key = self._wish(None, model, options)
        live = self._switch.to(lambda: self._start(key, options))
        try:
            self._warmed_up(live, options)
        except BaseException:
            self._release(live)
            raise
        found: ModelHandle = self._handle(live, options)
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

    def _load(
        self, handle: type | None, model: str | Path | ModelConfiguration, options: LoadOptions
    ) -> LiveModel:
        pending = self._start_load(handle, model, options)
        try:
            live = pending.future.result()
            self._warmed_up(live, options)
            return live
        except BaseException:
            self._pool.give_up(pending)
            raise

    def _warmed_up(self, live: LiveModel, options: LoadOptions) -> None:
        if not options.get("warm_up"):
            return
        done, cancel = self._start_warming_up(live)
        try:
            done.result()
        except BaseException:
            cancel()
            raise

    # -- closing -------------------------------------------------------------------------------------

    def close(self, drain: float = 0) -> None:
        """Cancel every request and load, free every model, end every thread. May be called twice.

        Args:
            drain: seconds that requests may go on before; ``math.inf`` waits for all. New requests and loads
                get `EngineClosedError` meanwhile, and ``close()`` from elsewhere ends the waiting.

        Raises:
            InvalidParameterError: ``drain`` is no number from 0 on.
            PluginContractError: a plugin's step has not returned within ``close_timeout`` seconds; whoever
                waited for anything got the same error, and its thread is left behind.
        """
        check_drain(drain)
        if drain and not self._closed and not forked(self._process):
            self._draining = True
            self._pool.drain(drain, lambda: self._closed)
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
