"""The asyncio handle of embedding models and rerankers."""

from __future__ import annotations

from collections.abc import Sequence

from ..handle import AsyncModelHandle
from ._shared import (
    DOCUMENT,
    QUERY,
    Embedder,
    ProgressReport,
    Ranges,
    Ranked,
    Texts,
    as_tuple,
    drain,
    ranking,
)
from ._vectors import Gathered, Vectors
from .outputs import Scores
from .requests import EmbedRequest, RankRequest


class AsyncEmbeddingHandle(Embedder, AsyncModelHandle):
    """The same for asyncio."""

    async def embed(
        self,
        texts: Texts,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        precision: str = "float32",
        batch_tokens: int | None = None,
        ranges: Ranges | None = None,
        progress: ProgressReport | None = None,
    ) -> Vectors:
        """See `EmbeddingHandle.embed`."""
        request = EmbedRequest(
            texts=as_tuple(texts),
            prompt=prompt,
            prompt_name=prompt_name,
            normalize=normalize,
            truncate_dim=truncate_dim,
            precision=precision,
            batch_tokens=batch_tokens,
            ranges=ranges,
        )
        gathered = Gathered(len(request.texts), int(self.info.get("dimension") or 0), request)
        async with self.stream(request) as events:
            async for event in events:
                drain((event,), gathered, progress, 0, len(request.texts))
        return gathered.vectors()

    async def embed_query(
        self, texts: Texts, *, normalize: bool | None = None, truncate_dim: int | None = None
    ) -> Vectors:
        """See `EmbeddingHandle.embed_query`."""
        prompt, name = self._prompt(QUERY)
        return await self.embed(
            texts, prompt=prompt, prompt_name=name, normalize=normalize, truncate_dim=truncate_dim
        )

    async def embed_document(
        self, texts: Texts, *, normalize: bool | None = None, truncate_dim: int | None = None
    ) -> Vectors:
        """See `EmbeddingHandle.embed_document`."""
        prompt, name = self._prompt(DOCUMENT)
        return await self.embed(
            texts, prompt=prompt, prompt_name=name, normalize=normalize, truncate_dim=truncate_dim
        )

    async def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_k: int | None = None,
        batch_tokens: int | None = None,
    ) -> tuple[Ranked, ...]:
        """See `EmbeddingHandle.rank`."""
        request = RankRequest(query=query, documents=as_tuple(documents), batch_tokens=batch_tokens)
        scores: dict[int, float] = {}
        async with self.stream(request) as events:
            async for event in events:
                if isinstance(event, Scores):
                    scores.update(zip(event.indices, event.scores, strict=True))
        return ranking(scores, request.documents, top_k)


__all__ = ["AsyncEmbeddingHandle"]
