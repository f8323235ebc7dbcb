"""Handles of embedding models and rerankers."""

from __future__ import annotations

from collections.abc import Iterable

from .events import Array, Embeddings
from .model import AsyncModelHandle, ModelHandle
from .replies import Result
from .requests import EmbedRequest


class EmbeddingHandle(ModelHandle):
    """A loaded embedding model."""

    def embed(self, texts: str | Iterable[str]) -> Array:
        """One vector a text, shape (texts, dimension), float32."""
        return _gather(self.run(EmbedRequest(texts=(texts,) if isinstance(texts, str) else tuple(texts))))


class AsyncEmbeddingHandle(AsyncModelHandle):
    """The same for asyncio."""

    async def embed(self, texts: str | Iterable[str]) -> Array:
        """One vector a text, shape (texts, dimension), float32."""
        request = EmbedRequest(texts=(texts,) if isinstance(texts, str) else tuple(texts))
        return _gather(await self.run(request))


def _gather(result: Result) -> Array:
    parts = [event for event in result.events if isinstance(event, Embeddings) and event.vectors is not None]
    rows: dict[int, bytes] = {}
    dimension, dtype = 0, "float32"
    for event in parts:
        assert event.vectors is not None
        dimension, dtype = event.vectors.shape[-1], event.vectors.dtype
        data = bytes(event.vectors.data)
        width = len(data) // len(event.indices)
        for place, index in enumerate(event.indices):
            rows[index] = data[place * width : (place + 1) * width]
    joined = b"".join(rows[index] for index in sorted(rows))
    return Array(data=joined, shape=(len(rows), dimension), dtype=dtype)


__all__ = ["AsyncEmbeddingHandle", "EmbeddingHandle"]
