"""The engine for asyncio: the same engine underneath, read without blocking the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ._memory.live import LiveModel, Report
from .contract.configuration import ModelConfiguration
from .engine import InferenceEngine, closing_beside
from .handle import AsyncModelHandle

if TYPE_CHECKING:
    from typing import Unpack

    from .contract.loading import LoadOptions
    from .pictures.handle import AsyncImageHandle
    from .text.handle import AsyncTextHandle
    from .vectors.handle import AsyncEmbeddingHandle

H = TypeVar("H", bound=AsyncModelHandle)


class AsyncInferenceEngine:
    """`InferenceEngine` for asyncio; takes the same arguments.

    ``engine.sync`` is the engine underneath, for what does not wait (features, registry, plugins).
    """

    def __init__(self, **options: Any) -> None:
        self.sync = InferenceEngine(**options)

    async def load(
        self,
        model: str | Path | ModelConfiguration,
        *,
        plugin: str | None = None,
        features: Mapping[str, object] | None = None,
        verify: str | None = None,
        warm_up: bool = False,
        on_progress: Report | None = None,
    ) -> AsyncModelHandle:
        """See `InferenceEngine.load`. Cancelling the task cancels the load."""
        found: AsyncModelHandle = await self._load(
            None, model, plugin, features, verify, on_progress, warm_up=warm_up
        )
        return found

    async def load_as(
        self, handle: type[H], model: str | Path | ModelConfiguration, **options: Unpack[LoadOptions]
    ) -> H:
        """See `InferenceEngine.load_as`; ``handle`` is the kind's handle for asyncio."""
        found = await self._load(handle, model, **options)
        assert isinstance(found, handle)
        return found

    async def load_text(
        self, model: str | Path | ModelConfiguration, **options: Unpack[LoadOptions]
    ) -> AsyncTextHandle:
        """See `InferenceEngine.load_text`."""
        from .text.handle import AsyncTextHandle

        return await self.load_as(AsyncTextHandle, model, **options)

    async def load_embeddings(
        self, model: str | Path | ModelConfiguration, **options: Unpack[LoadOptions]
    ) -> AsyncEmbeddingHandle:
        """See `InferenceEngine.load_embeddings`."""
        from .vectors.handle import AsyncEmbeddingHandle

        return await self.load_as(AsyncEmbeddingHandle, model, **options)

    async def load_images(
        self, model: str | Path | ModelConfiguration, **options: Unpack[LoadOptions]
    ) -> AsyncImageHandle:
        """See `InferenceEngine.load_images`."""
        from .pictures.handle import AsyncImageHandle

        return await self.load_as(AsyncImageHandle, model, **options)

    async def _load(
        self,
        handle: type | None,
        model: str | Path | ModelConfiguration,
        plugin: str | None = None,
        features: Mapping[str, object] | None = None,
        verify: str | None = None,
        on_progress: Report | None = None,
        *,
        warm_up: bool = False,
    ) -> Any:
        pending = self.sync._start_load(handle, model, plugin, features, verify, on_progress)
        try:
            loading = asyncio.wrap_future(pending.future)
            loading.add_done_callback(_looked_at)
            live = await asyncio.shield(loading)
            if warm_up:
                await self._warmed_up(live)
        except BaseException:
            self.sync._pool.give_up(pending)
            raise
        return self.sync._handle(live, "async_handle")

    async def _warmed_up(self, live: LiveModel) -> None:
        done, cancel = self.sync._start_warming_up(live)
        try:
            warming = asyncio.wrap_future(done)
            warming.add_done_callback(_looked_at)
            await asyncio.shield(warming)
        except BaseException:
            cancel()
            raise

    async def close(self) -> None:
        """See `InferenceEngine.close`."""
        await asyncio.to_thread(self.sync.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with closing_beside(error):
            await self.close()


def _looked_at(loading: asyncio.Future[Any]) -> None:
    """Nobody waits for a load that was cancelled; asyncio would complain that nobody asked how it ended."""
    if not loading.cancelled():
        loading.exception()


__all__ = ["AsyncInferenceEngine"]
