"""The engine for asyncio: the same engine underneath, read without blocking the event loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from .engine import InferenceEngine, closing_beside

if TYPE_CHECKING:
    from typing import Unpack

    from ._memory.live import LiveModel
    from .contract.configuration import ModelCard, ModelConfiguration
    from .contract.fit import FitReport
    from .contract.hookspecs import Workload
    from .contract.loading import EngineOptions, LoadOptions
    from .contract.plugins import Owner
    from .handle import AsyncModelHandle
    from .memory import MemoryReport
    from .pictures.handle import AsyncImageHandle
    from .text.handle import AsyncTextHandle
    from .vectors.handle_async import AsyncEmbeddingHandle

H = TypeVar("H", bound="AsyncModelHandle")
T = TypeVar("T")


class AsyncInferenceEngine:
    """`InferenceEngine` for asyncio; takes the same arguments, and has a coroutine for all that waits.

    ``engine.sync`` is the engine underneath, for what does not wait (features, registry, plugins, status).
    """

    def __init__(self, **options: Unpack[EngineOptions]) -> None:
        self.sync = InferenceEngine(**options)

    async def load(
        self, model: str | Path | ModelConfiguration, **options: Unpack[LoadOptions]
    ) -> AsyncModelHandle:
        """Load a model and return the handle for its kind, as `InferenceEngine.load` does.

        Cancelling the task cancels the load.
        """
        found: AsyncModelHandle = self.sync._handle(
            await self._load(None, model, options), options, "async_handle"
        )
        return found

    async def load_as(
        self, handle: type[H], model: str | Path | ModelConfiguration, **options: Unpack[LoadOptions]
    ) -> H:
        """Like `load`, for a model whose kind has this handle for asyncio.

        Raises:
            InvalidParameterError: the model is of a kind that has another one, found before it is fetched.
        """
        found = self.sync._handle(await self._load(handle, model, options), options, "async_handle")
        assert isinstance(found, handle)
        return found

    async def switch(
        self, model: str | Path | ModelConfiguration, **options: Unpack[LoadOptions]
    ) -> AsyncModelHandle:
        """Replace the model that the last `switch` loaded: stop its requests, free it, `load` this one.

        Of several calls at once the last wins; the others end with `CancelledError`. Cancelling the task
        cancels the load; the model before it is gone then.
        """
        live = await self._switched(model, options)
        try:
            await self._warmed_up(live, options)
        except BaseException:
            self.sync._release(live)
            raise
        found: AsyncModelHandle = self.sync._handle(live, options, "async_handle")
        return found

    async def load_text(
        self, model: str | Path | ModelConfiguration, **options: Unpack[LoadOptions]
    ) -> AsyncTextHandle:
        """`load_as` for a model that answers in text."""
        from .text.handle import AsyncTextHandle

        return await self.load_as(AsyncTextHandle, model, **options)

    async def load_embeddings(
        self, model: str | Path | ModelConfiguration, **options: Unpack[LoadOptions]
    ) -> AsyncEmbeddingHandle:
        """`load_as` for a model that makes vectors."""
        from .vectors.handle_async import AsyncEmbeddingHandle

        return await self.load_as(AsyncEmbeddingHandle, model, **options)

    async def load_images(
        self, model: str | Path | ModelConfiguration, **options: Unpack[LoadOptions]
    ) -> AsyncImageHandle:
        """`load_as` for a model that makes pictures."""
        from .pictures.handle import AsyncImageHandle

        return await self.load_as(AsyncImageHandle, model, **options)

    async def _load(
        self, handle: type | None, model: str | Path | ModelConfiguration, options: LoadOptions
    ) -> LiveModel:
        pending = self.sync._start_load(handle, model, options)
        try:
            live = await _ended(pending.future)
            await self._warmed_up(live, options)
            return live
        except BaseException:
            self.sync._pool.give_up(pending)
            raise

    async def _warmed_up(self, live: LiveModel, options: LoadOptions) -> None:
        if not options.get("warm_up"):
            return
        done, cancel = self.sync._start_warming_up(live)
        try:
            await _ended(done)
        except BaseException:
            cancel()
            raise

    async def _switched(self, model: str | Path | ModelConfiguration, options: LoadOptions) -> LiveModel:
        engine, given_up = self.sync, Future[None]()
        key = engine._wish(None, model, options)

        def switch() -> LiveModel:
            live = engine._switch.to(lambda: engine._start(key, options), given_up)
            if given_up.done():
                engine._release(live)
            return live

        try:
            return await asyncio.to_thread(switch)
        finally:
            given_up.set_result(None)

    # -- what there is -------------------------------------------------------------------------------

    async def resolve(self, model: str | Path | ModelConfiguration) -> ModelCard:
        """What can be found out about a model without fetching its weights.

        Raises:
            ResolutionError, ConfigurationError: it cannot be found or read.
        """
        gone = threading.Event()
        try:
            return await asyncio.to_thread(self.sync._resolve, model, gone.is_set)
        finally:
            gone.set()

    async def explain(self, model: str | Path | ModelConfiguration | ModelCard) -> Owner:
        """Which plugin would serve a model, why, and what the others said.

        Raises:
            NoPluginForModelError, AmbiguousModelError: nobody would, or two would equally well.
        """
        return await asyncio.to_thread(self.sync.explain, await self._card(model))

    async def fit(
        self, model: str | Path | ModelConfiguration | ModelCard, workload: Workload | None = None
    ) -> FitReport:
        """Whether a model fits this device; the arguments are those of `InferenceEngine.fit`.

        Raises:
            ResolutionError: the model cannot be found, or no plugin serves it.
            InvalidParameterError: the workload is one of another kind.
        """
        return await asyncio.to_thread(self.sync.fit, await self._card(model), workload)

    async def reckon(self, model: str | Path | ModelConfiguration | ModelCard) -> int | None:
        """Bytes that a model would need, by its plugin; ``None`` where it is not on this machine."""
        return await asyncio.to_thread(self.sync.reckon, model)

    async def memory(self) -> MemoryReport:
        """What is reserved, what is really held, and what was evicted; waits for one step at most."""
        return await asyncio.to_thread(self.sync.memory)

    async def _card(self, model: str | Path | ModelConfiguration | ModelCard) -> ModelCard:
        from .contract.configuration import ModelCard

        return model if isinstance(model, ModelCard) else await self.resolve(model)

    # -- closing -------------------------------------------------------------------------------------

    async def close(self, drain: float = 0) -> None:
        """Cancel every request and load, free every model, end every thread. May be called twice.

        Args:
            drain: seconds that requests may go on before; ``math.inf`` waits for all. New requests and loads
                get `EngineClosedError` meanwhile, and ``close()`` from elsewhere ends the waiting.

        Raises:
            InvalidParameterError: ``drain`` is no number from 0 on.
            PluginContractError: a plugin's step has not returned within ``close_timeout`` seconds.
        """
        await asyncio.to_thread(self.sync.close, drain)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with closing_beside(error):
            await self.close()


async def _ended(work: Future[T]) -> T:
    """Wait for what goes on elsewhere; whoever is cancelled meanwhile leaves it as it is."""
    waiting = asyncio.wrap_future(work)
    waiting.add_done_callback(_looked_at)
    return await asyncio.shield(waiting)


def _looked_at(waiting: asyncio.Future[T]) -> None:
    """Nobody waits for what was cancelled; asyncio would complain that nobody asked how it ended."""
    if not waiting.cancelled():
        waiting.exception()


__all__ = ["AsyncInferenceEngine"]
