"""Handles of embedding models and rerankers.

What a handle knows of its model comes from ``handle.info``: a plugin that serves the kind ``"embed"`` says
there ``dimension``, ``prompts`` (name to text) and ``similarity`` (``"cosine"``, ``"dot"``, ``"euclidean"``
or ``"manhattan"``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, Unpack, overload

from ..contract.events import Array
from ..handle import AsyncModelHandle, ModelHandle
from ._shared import (
    DOCUMENT,
    ITERATOR_CHUNK,
    QUERY,
    Embedder,
    EmbedOptions,
    ProgressReport,
    Ranked,
    Ranking,
    RankOptions,
    Texts,
    VectorOptions,
    embed_request,
    piecewise,
)
from ._vectors import Gathered, TokenVectors, Vectors
from .requests import EmbedRequest


class EmbeddingHandle(Embedder, ModelHandle):
    """A loaded embedding model (`embed`, `similarity`) or reranker (`rank`)."""

    @overload
    def embed(
        self,
        texts: Texts,
        *,
        output: Literal["pooled"] = "pooled",
        progress: ProgressReport | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Vectors: ...

    @overload
    def embed(
        self,
        texts: Texts,
        *,
        output: Literal["tokens"],
        progress: ProgressReport | None = None,
        **options: Unpack[EmbedOptions],
    ) -> TokenVectors: ...

    @overload
    def embed(
        self,
        texts: Iterator[str],
        *,
        output: Literal["pooled", "tokens"] = "pooled",
        progress: ProgressReport | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Iterator[Array]: ...

    def embed(
        self,
        texts: Texts | Iterator[str],
        *,
        output: str = "pooled",
        progress: ProgressReport | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Vectors | TokenVectors | Iterator[Array]:
        """Vectors of texts.

        Args:
            texts: a text, a sequence of texts, or an iterator of texts. An iterator is read as its vectors
                are taken, so a corpus need not fit in memory. The token ids of each, as the model's tokenizer
                makes them, may stand for texts; no prompt is put before them.
            output: ``"pooled"``, or ``"tokens"`` for one vector a token.
            progress: called with how many texts are done, and of how many.
            prompt: put before every text, as it is; ``""`` leaves out the model's default prompt.
            prompt_name: one of the model's own prompts.
            normalize: scale vectors to unit length; ``None`` does what the repository says.
            truncate_dim: keep the first dimensions only.
            precision: ``"float32"``, ``"float16"``, ``"int8"``, ``"uint8"``, ``"binary"``, ``"ubinary"``.
            batch_tokens: most padded tokens in one step; ``None`` lets the plugin choose.
            ranges: (lowest, highest) of each dimension for ``"int8"`` and ``"uint8"``; needed with an
                iterator, else taken from the texts.

        Returns:
            `Vectors` of shape (texts, dimension), also for a single text; `TokenVectors`; or for an iterator
            an iterator of one `Array` a text, in order.

        Raises:
            InvalidParameterError: an argument is unknown or out of range, or a text is not a ``str``.
            UnsupportedInputError: the model is a reranker.
        """
        if isinstance(texts, Iterator):
            return self._rows(texts, piecewise(output, options), progress)
        request = embed_request(texts, output, options)
        return self._gather(self._gathering(request, progress, total=len(request.texts))).whole()

    def embed_query(
        self, texts: Texts, *, progress: ProgressReport | None = None, **options: Unpack[VectorOptions]
    ) -> Vectors:
        """`embed` with the model's prompt for queries, or none if it has none."""
        return self.embed(texts, progress=progress, **self._with_prompt(QUERY, options))

    def embed_document(
        self, texts: Texts, *, progress: ProgressReport | None = None, **options: Unpack[VectorOptions]
    ) -> Vectors:
        """`embed` with the model's prompt for documents, or none if it has none."""
        return self.embed(texts, progress=progress, **self._with_prompt(DOCUMENT, options))

    def similarity(self, left: Any, right: Any = None, *, progress: ProgressReport | None = None) -> Array:
        """How similar rows of two matrices are, by the model's own similarity function.

        Args:
            left: texts, or vectors (count, dimension).
            right: texts or vectors; ``None`` compares ``left`` with itself.
            progress: called with how many texts are done, and of how many.

        Returns:
            float32 of shape (rows of ``left``, rows of ``right``); higher is more similar.

        Raises:
            InvalidParameterError: a side is neither, or the lengths differ. (numpy must be installed.)
        """
        sides, texts = self._compared(left, right, progress)
        for place, gathered in texts:
            sides[place] = self._gather(gathered).vectors()
        return self._similarity(sides)

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_k: int | None = None,
        progress: ProgressReport | None = None,
        **options: Unpack[RankOptions],
    ) -> tuple[Ranked, ...]:
        """The documents by relevance to the query, best first (cross-encoders).

        Args:
            query: the query.
            documents: what to rank.
            top_k: how many to return; ``None`` returns all.
            progress: called with how many documents are done, and of how many.
            prompt: put before the query, as it is; ``""`` leaves out the model's default prompt.
            prompt_name: one of the model's own prompts.
            batch_tokens: most padded tokens in one step.

        Raises:
            InvalidParameterError: ``top_k`` is below 1, or a text is not a ``str``.
            UnsupportedInputError: the model makes vectors, not scores.
        """
        ranking = Ranking(query, documents, top_k=top_k, progress=progress, options=options)
        with self.stream(ranking.request) as events:
            for event in events:
                ranking.add(event)
        return ranking.best()

    def _gather(self, gathered: Gathered) -> Gathered:
        with self.stream(gathered.request) as events:
            for event in events:
                gathered.add(event)
        return gathered

    def _rows(
        self,
        texts: Iterator[str],
        request_of: Callable[[Sequence[str]], EmbedRequest],
        progress: ProgressReport | None,
    ) -> Iterator[Array]:
        done = 0
        while piece := tuple(islice(texts, ITERATOR_CHUNK)):
            yield from self._gather(self._gathering(request_of(piece), progress, done)).rows()
            done += len(piece)


class AsyncEmbeddingHandle(Embedder, AsyncModelHandle):
    """A loaded embedding model (`embed`, `similarity`) or reranker (`rank`), for asyncio.

    Cancelling the task that waits cancels the request.
    """

    @overload
    async def embed(
        self,
        texts: Texts,
        *,
        output: Literal["pooled"] = "pooled",
        progress: ProgressReport | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Vectors: ...

    @overload
    async def embed(
        self,
        texts: Texts,
        *,
        output: Literal["tokens"],
        progress: ProgressReport | None = None,
        **options: Unpack[EmbedOptions],
    ) -> TokenVectors: ...

    @overload
    async def embed(
        self,
        texts: Iterator[str] | AsyncIterator[str],
        *,
        output: Literal["pooled", "tokens"] = "pooled",
        progress: ProgressReport | None = None,
        **options: Unpack[EmbedOptions],
    ) -> AsyncIterator[Array]: ...

    async def embed(
        self,
        texts: Texts | Iterator[str] | AsyncIterator[str],
        *,
        output: str = "pooled",
        progress: ProgressReport | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Vectors | TokenVectors | AsyncIterator[Array]:
        """Vectors of texts; the arguments are those of `EmbeddingHandle.embed`.

        An iterator may be asynchronous too: ``async for vector in await model.embed(texts)``. A plain one is
        read on the event loop, 2,048 texts at a time, so it should not wait for anything.

        Returns:
            `Vectors` of shape (texts, dimension), also for a single text; `TokenVectors`; or for an iterator
            an asynchronous iterator of one `Array` a text, in order.

        Raises:
            InvalidParameterError: an argument is unknown or out of range, or a text is not a ``str``.
            UnsupportedInputError: the model is a reranker.
        """
        if isinstance(texts, Iterator | AsyncIterator):
            return self._rows(texts, piecewise(output, options), progress)
        request = embed_request(texts, output, options)
        return (await self._gather(self._gathering(request, progress, total=len(request.texts)))).whole()

    async def embed_query(
        self, texts: Texts, *, progress: ProgressReport | None = None, **options: Unpack[VectorOptions]
    ) -> Vectors:
        """`embed` with the model's prompt for queries, or none if it has none."""
        return await self.embed(texts, progress=progress, **self._with_prompt(QUERY, options))

    async def embed_document(
        self, texts: Texts, *, progress: ProgressReport | None = None, **options: Unpack[VectorOptions]
    ) -> Vectors:
        """`embed` with the model's prompt for documents, or none if it has none."""
        return await self.embed(texts, progress=progress, **self._with_prompt(DOCUMENT, options))

    async def similarity(
        self, left: Any, right: Any = None, *, progress: ProgressReport | None = None
    ) -> Array:
        """How similar rows of two matrices are, by the model's own similarity function; reckoned on a thread.

        Args:
            left: texts, or vectors (count, dimension).
            right: texts or vectors; ``None`` compares ``left`` with itself.
            progress: called with how many texts are done, and of how many.

        Returns:
            float32 of shape (rows of ``left``, rows of ``right``); higher is more similar.

        Raises:
            InvalidParameterError: a side is neither, or the lengths differ. (numpy must be installed.)
        """
        import asyncio

        sides, texts = self._compared(left, right, progress)
        for place, gathered in texts:
            sides[place] = (await self._gather(gathered)).vectors()
        return await asyncio.to_thread(self._similarity, sides)

    async def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_k: int | None = None,
        progress: ProgressReport | None = None,
        **options: Unpack[RankOptions],
    ) -> tuple[Ranked, ...]:
        """The documents by relevance to the query, best first (cross-encoders).

        The arguments are those of `EmbeddingHandle.rank`.

        Raises:
            InvalidParameterError: ``top_k`` is below 1, or a text is not a ``str``.
            UnsupportedInputError: the model makes vectors, not scores.
        """
        ranking = Ranking(query, documents, top_k=top_k, progress=progress, options=options)
        async with self.stream(ranking.request) as events:
            async for event in events:
                ranking.add(event)
        return ranking.best()

    async def _gather(self, gathered: Gathered) -> Gathered:
        async with self.stream(gathered.request) as events:
            async for event in events:
                gathered.add(event)
        return gathered

    async def _rows(
        self,
        texts: Iterator[str] | AsyncIterator[str],
        request_of: Callable[[Sequence[str]], EmbedRequest],
        progress: ProgressReport | None,
    ) -> AsyncIterator[Array]:
        done = 0
        async for piece in _pieces(texts):
            gathered = await self._gather(self._gathering(request_of(piece), progress, done))
            for row in gathered.rows():
                yield row
            done += len(piece)


async def _pieces(texts: Iterator[str] | AsyncIterator[str]) -> AsyncIterator[Sequence[str]]:
    """The texts, as many at a time as make one request."""
    if isinstance(texts, Iterator):
        while piece := tuple(islice(texts, ITERATOR_CHUNK)):
            yield piece
        return
    waiting: list[str] = []
    async for text in texts:
        waiting.append(text)
        if len(waiting) == ITERATOR_CHUNK:
            yield tuple(waiting)
            waiting.clear()
    if waiting:
        yield tuple(waiting)


__all__ = [
    "AsyncEmbeddingHandle",
    "EmbedOptions",
    "EmbeddingHandle",
    "Ranked",
    "TokenVectors",
    "VectorOptions",
    "Vectors",
]
