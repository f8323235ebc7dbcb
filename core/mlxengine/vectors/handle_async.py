"""The handle of embedding models and rerankers for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, Unpack, overload

from ..contract.events import Array
from ..handle import AsyncModelHandle
from ._search import Pair, Search, SearchResults, check_count, pairs_of
from ._shared import (
    ITERATOR_CHUNK,
    Embedder,
    EmbedOptions,
    Input,
    Predicting,
    PredictOptions,
    ProgressReport,
    Ranked,
    Ranking,
    RankOptions,
    Texts,
    VectorOptions,
    embed_request,
    piecewise,
    side_of,
)
from ._sparse import SparseVectors
from ._vectors import Gathered, Predictions, TokenVectors, Vectors
from .outputs import SparseVector
from .requests import EmbedRequest


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
        texts: Texts,
        *,
        output: Literal["sparse"],
        progress: ProgressReport | None = None,
        **options: Unpack[EmbedOptions],
    ) -> SparseVectors: ...

    @overload
    async def embed(
        self,
        texts: Iterator[Input] | AsyncIterator[Input],
        *,
        output: Literal["pooled", "tokens"] = "pooled",
        progress: ProgressReport | None = None,
        **options: Unpack[EmbedOptions],
    ) -> AsyncIterator[Array]: ...

    @overload
    async def embed(
        self,
        texts: Iterator[Input] | AsyncIterator[Input],
        *,
        output: Literal["sparse"],
        progress: ProgressReport | None = None,
        **options: Unpack[EmbedOptions],
    ) -> AsyncIterator[SparseVector]: ...

    async def embed(
        self,
        texts: Texts | Iterator[Input] | AsyncIterator[Input],
        *,
        output: str = "pooled",
        progress: ProgressReport | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Vectors | TokenVectors | SparseVectors | AsyncIterator[Any]:
        """Vectors of texts; the arguments are those of `EmbeddingHandle.embed`.

        An iterator may be asynchronous too: ``async for vector in await model.embed(texts)``. A plain one is
        read on the event loop, 2,048 texts at a time, so it should not wait for anything.

        Returns:
            `Vectors` of shape (texts, dimension), also for a single text; `TokenVectors`; `SparseVectors`; or
            for an iterator an asynchronous iterator of one `Array` (`SparseVector`) a text, in order.

        Raises:
            InvalidParameterError: an argument is unknown or out of range, or a text is not a ``str``.
            UnsupportedInputError: the model is a reranker.
        """
        if isinstance(texts, Iterator | AsyncIterator):
            return self._rows(texts, piecewise(output, self._for_task(options)), progress)
        request = embed_request(texts, output, self._for_task(options))
        return (await self._gather(self._gathering(request, progress, total=len(request.texts)))).whole()

    async def embed_query(
        self, texts: Texts, *, progress: ProgressReport | None = None, **options: Unpack[VectorOptions]
    ) -> Vectors:
        """`embed` with the model's prompt for queries, or none if it has none."""
        return await self.embed(texts, progress=progress, **self._with_task("query", options))

    async def embed_document(
        self, texts: Texts, *, progress: ProgressReport | None = None, **options: Unpack[VectorOptions]
    ) -> Vectors:
        """`embed` with the model's prompt for documents, or none if it has none."""
        return await self.embed(texts, progress=progress, **self._with_task("document", options))

    async def similarity(
        self, left: Any, right: Any = None, *, progress: ProgressReport | None = None
    ) -> Array:
        """How similar rows of two matrices are, by the model's own similarity function; reckoned on a thread.

        Args:
            left: texts, vectors (count, dimension), sparse vectors, or token vectors (of queries).
            right: the same; ``None`` compares ``left`` with itself.
            progress: called with how many texts are done, and of how many.

        Returns:
            float32 of shape (rows of ``left``, rows of ``right``); higher is more similar.

        Raises:
            InvalidParameterError: a side is neither, or the lengths differ. (numpy must be installed.)
        """
        import asyncio

        sides, texts = self._compared(left, right, progress)
        for place, gathered in texts:
            sides[place] = (await self._gather(gathered)).whole()
        if (late := self._late(sides)) is None:
            return await asyncio.to_thread(self._similarity, sides)
        async with self.stream(late.request) as events:
            async for event in events:
                late.add(event)
        return late.whole()

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

    async def similarity_pairwise(
        self, left: Any, right: Any, *, progress: ProgressReport | None = None
    ) -> Array:
        """How similar rows are to the same rows of another matrix, by the model's own function.

        The arguments are those of `EmbeddingHandle.similarity_pairwise`; it is reckoned on a thread.
        """
        import asyncio

        sides, texts = self._compared(left, side_of(right), progress)
        for place, gathered in texts:
            sides[place] = (await self._gather(gathered)).whole()
        return await asyncio.to_thread(self._pairwise, sides)

    async def semantic_search(
        self, queries: Any, corpus: Any, *, top_k: int = 10, progress: ProgressReport | None = None
    ) -> SearchResults:
        """The most similar of a corpus; the arguments are those of `EmbeddingHandle.semantic_search`."""
        wanted, stored = side_of(queries), side_of(corpus)
        if isinstance(wanted, tuple):
            wanted = (await self.embed_query(wanted)).numpy()
        if isinstance(stored, tuple):
            stored = (await self.embed_document(stored)).numpy()
        return await self._search(wanted, stored, top_k, progress)

    async def paraphrase_mining(
        self,
        texts: Any,
        *,
        top_k: int = 100,
        max_pairs: int = 500_000,
        progress: ProgressReport | None = None,
    ) -> tuple[Pair, ...]:
        """The most similar pairs; the arguments are those of `EmbeddingHandle.paraphrase_mining`."""
        most, others = check_count(max_pairs, "max_pairs"), check_count(top_k, "top_k")
        vectors = side_of(texts)
        if isinstance(vectors, tuple):
            vectors = (await self.embed(vectors)).numpy()
        return pairs_of(await self._search(vectors, vectors, others + 1, progress), others, most)

    async def _search(
        self, queries: Any, corpus: Any, top_k: int, progress: ProgressReport | None
    ) -> SearchResults:
        search = Search(queries, corpus, top_k=top_k, similarity=self._function(), progress=progress)
        for request in search.requests():
            async with self.stream(request) as events:
                async for event in events:
                    search.add(event)
        return search.results()

    async def predict(
        self,
        pairs: Iterable[Sequence[str]],
        *,
        progress: ProgressReport | None = None,
        **options: Unpack[PredictOptions],
    ) -> Predictions:
        """The scores of pairs of texts; the arguments are those of `EmbeddingHandle.predict`.

        Raises:
            InvalidParameterError: an argument is unknown, or an item is not a pair of texts.
            UnsupportedInputError: the model makes vectors, not scores.
        """
        labels = self.info.get("labels") or ()
        found = Predicting(pairs, labels=labels, progress=progress, options=options)
        async with self.stream(found.request) as events:
            async for event in events:
                found.add(event)
        return found.whole()

    async def _gather(self, gathered: Gathered) -> Gathered:
        async with self.stream(gathered.request) as events:
            async for event in events:
                gathered.add(event)
        return gathered

    async def _rows(
        self,
        texts: Iterator[Input] | AsyncIterator[Input],
        request_of: Callable[[Sequence[Input]], EmbedRequest],
        progress: ProgressReport | None,
    ) -> AsyncIterator[Any]:
        done = 0
        async for piece in _pieces(texts):
            gathered = await self._gather(self._gathering(request_of(piece), progress, done))
            for row in gathered.rows():
                yield row
            done += len(piece)


async def _pieces(texts: Iterator[Input] | AsyncIterator[Input]) -> AsyncIterator[Sequence[Input]]:
    """The texts, as many at a time as make one request."""
    if isinstance(texts, Iterator):
        while piece := tuple(islice(texts, ITERATOR_CHUNK)):
            yield piece
        return
    waiting: list[Input] = []
    async for text in texts:
        waiting.append(text)
        if len(waiting) == ITERATOR_CHUNK:
            yield tuple(waiting)
            waiting.clear()
    if waiting:
        yield tuple(waiting)


__all__ = ["AsyncEmbeddingHandle"]
