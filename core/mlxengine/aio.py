"""The engine for asyncio: the same engine underneath, read without blocking the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ._memory.live import LiveModel, Report
from .contract import kinds
from .contract.configuration import ModelConfiguration
from .contract.kinds import async_handle_type
from .engine import InferenceEngine, closing_beside
from .handle import AsyncModelHandle
from .text.handle import AsyncTextHandle

if TYPE_CHECKING:
    from .pictures.handle import AsyncImageHandle
    from .vectors.handle import AsyncEmbeddingHandle


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
        live = await self._load(model, (), plugin, features, verify, on_progress, warm_up=warm_up)
        return async_handle_type(live.claim.kind)(self.sync, live)

    async def load_text(
        self,
        model: str | Path | ModelConfiguration,
        *,
        plugin: str | None = None,
        features: Mapping[str, object] | None = None,
        verify: str | None = None,
        warm_up: bool = False,
        on_progress: Report | None = None,
    ) -> AsyncTextHandle:
        """See `InferenceEngine.load_text`."""
        live = await self._load(model, kinds.TEXT, plugin, features, verify, on_progress, warm_up=warm_up)
        return AsyncTextHandle(self.sync, live)

    async def load_embeddings(
        self,
        model: str | Path | ModelConfiguration,
        *,
        plugin: str | None = None,
        features: Mapping[str, object] | None = None,
        verify: str | None = None,
        on_progress: Report | None = None,
    ) -> AsyncEmbeddingHandle:
        """See `InferenceEngine.load_embeddings`."""
        from .vectors.handle import AsyncEmbeddingHandle

        live = await self._load(model, kinds.EMBED, plugin, features, verify, on_progress)
        return AsyncEmbeddingHandle(self.sync, live)

    async def load_images(
        self,
        model: str | Path | ModelConfiguration,
        *,
        plugin: str | None = None,
        features: Mapping[str, object] | None = None,
        verify: str | None = None,
        on_progress: Report | None = None,
    ) -> AsyncImageHandle:
        """See `InferenceEngine.load_images`."""
        from .pictures.handle import AsyncImageHandle

        live = await self._load(model, kinds.IMAGE, plugin, features, verify, on_progress)
        return AsyncImageHandle(self.sync, live)

    async def _load(
        self,
        model: str | Path | ModelConfiguration,
        wanted: tuple[str, ...],
        plugin: str | None,
        features: Mapping[str, object] | None,
        verify: str | None,
        on_progress: Report | None,
        *,
        warm_up: bool = False,
    ) -> LiveModel:
        pending = self.sync._start_load(model, wanted, plugin, features, verify, on_progress)
        try:
            loading = asyncio.wrap_future(pending.future)
            loading.add_done_callback(_looked_at)
            live = await asyncio.shield(loading)
            if warm_up:
                await self._warmed_up(live)
            return live
        except BaseException:
            self.sync._pool.give_up(pending)
            raise

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
