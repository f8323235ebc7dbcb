"""Handles of embedding models and rerankers.

What a handle knows of its model comes from ``handle.info``: a plugin that serves the kind ``"embed"`` says
there ``dimension``, ``prompts`` (name to text), ``labels`` (a classifier's, in order) and
``similarity`` (``"cosine"``, ``"dot"``, ``"euclidean"``
or ``"manhattan"``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, Unpack, overload

from ..contract.events import Array
from ..handle import ModelHandle
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
        texts: Texts,
        *,
        output: Literal["sparse"],
        progress: ProgressReport | None = None,
        **options: Unpack[EmbedOptions],
    ) -> SparseVectors: ...

    @overload
    def embed(
        self,
        texts: Iterator[Input],
        *,
        output: Literal["pooled", "tokens"] = "pooled",
        progress: ProgressReport | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Iterator[Array]: ...

    @overload
    def embed(
        self,
        texts: Iterator[Input],
        *,
        output: Literal["sparse"],
        progress: ProgressReport | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Iterator[SparseVector]: ...

    def embed(
        self,
        texts: Texts | Iterator[Input],
        *,
        output: str = "pooled",
        progress: ProgressReport | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Vectors | TokenVectors | SparseVectors | Iterator[Any]:
        """Vectors of texts.

        Args:
            texts: a text, a sequence of texts, or an iterator of texts. An iterator is read as its vectors
                are taken, so a corpus need not fit in memory. The token ids of each, as the model's tokenizer
                makes them, may stand for texts; no prompt is put before them. Models that see take pictures
                (`mlxengine.ImagePart`) too, alone or among texts.
            output: ``"pooled"``, ``"tokens"`` for one vector a token, or ``"sparse"`` for a weight of each
                term of the vocabulary (SPLADE).
            task: ``"query"`` or ``"document"``: the texts get the model's prompt for it, and whatever else a
                model does to the one and not to the other.
            progress: called with how many texts are done, and of how many.
            prompt: put before every text, as it is; ``""`` leaves out the model's default prompt.
            prompt_name: one of the model's own prompts.
            normalize: scale vectors to unit length; ``None`` does what the repository says.
            truncate_dim: keep the first dimensions only; of sparse vectors the heaviest terms.
            precision: ``"float32"``, ``"float16"``, ``"int8"``, ``"uint8"``, ``"binary"``, ``"ubinary"``.
            batch_tokens: most padded tokens in one step; ``None`` lets the plugin choose.
            ranges: (lowest, highest) of each dimension for ``"int8"`` and ``"uint8"``; needed with an
                iterator, else taken from the texts.

        Returns:
            `Vectors` of shape (texts, dimension), also for a single text; `TokenVectors`; `SparseVectors`; or
            for an iterator an iterator of one `Array` (`SparseVector`) a text, in order.

        Raises:
            InvalidParameterError: an argument is unknown or out of range, or a text is not a ``str``.
            UnsupportedInputError: the model is a reranker, or does not see, or a picture cannot be read.
        """
        if isinstance(texts, Iterator):
            return self._rows(texts, piecewise(output, self._for_task(options)), progress)
        request = embed_request(texts, output, self._for_task(options))
        return self._gather(self._gathering(request, progress, total=len(request.texts))).whole()

    def embed_query(
        self, texts: Texts, *, progress: ProgressReport | None = None, **options: Unpack[VectorOptions]
    ) -> Vectors:
        """`embed` with the model's prompt for queries, or none if it has none."""
        return self.embed(texts, progress=progress, **self._with_task("query", options))

    def embed_document(
        self, texts: Texts, *, progress: ProgressReport | None = None, **options: Unpack[VectorOptions]
    ) -> Vectors:
        """`embed` with the model's prompt for documents, or none if it has none."""
        return self.embed(texts, progress=progress, **self._with_task("document", options))

    def similarity(self, left: Any, right: Any = None, *, progress: ProgressReport | None = None) -> Array:
        """How similar rows of two matrices are, by the model's own similarity function.

        Args:
            left: texts, vectors (count, dimension), sparse vectors, or token vectors (of queries).
            right: the same; ``None`` compares ``left`` with itself.
            progress: called with how many texts are done, and of how many.

        Returns:
            float32 of shape (rows of ``left``, rows of ``right``); higher is more similar.

        Raises:
            InvalidParameterError: a side is neither, or the lengths differ. (numpy must be installed.)
        """
        sides, texts = self._compared(left, right, progress)
        for place, gathered in texts:
            sides[place] = self._gather(gathered).whole()
        if (late := self._late(sides)) is None:
            return self._similarity(sides)
        with self.stream(late.request) as events:
            for event in events:
                late.add(event)
        return late.whole()

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

    def similarity_pairwise(self, left: Any, right: Any, *, progress: ProgressReport | None = None) -> Array:
        """How similar each row of one matrix is to the same row of another, by the model's own function.

        Args:
            left: texts, or vectors (count, dimension); of a model that makes one vector a text.
            right: as many texts or vectors.
            progress: called with how many texts are done, and of how many.

        Returns:
            float32 of shape (count,); higher is more similar.

        Raises:
            InvalidParameterError: a side is neither, or the shapes differ. (numpy must be installed.)
        """
        sides, texts = self._compared(left, side_of(right), progress)
        for place, gathered in texts:
            sides[place] = self._gather(gathered).whole()
        return self._pairwise(sides)

    def semantic_search(
        self, queries: Any, corpus: Any, *, top_k: int = 10, progress: ProgressReport | None = None
    ) -> SearchResults:
        """The most similar vectors of a corpus, by the model's function, reckoned on the device in blocks.

        Args:
            queries: texts, which get the model's prompt for queries, or vectors (count, dimension).
            corpus: vectors (count, dimension), a memory-mapped numpy array too, which is then read a block at
                a time; or texts, which get the prompt for documents.
            top_k: how many for each query.
            progress: called with how many queries are done, and of how many.

        Raises:
            InvalidParameterError: a side is neither, or the lengths differ. (numpy must be installed.)
        """
        wanted, stored = side_of(queries), side_of(corpus)
        if isinstance(wanted, tuple):
            wanted = (self.embed_query(wanted)).numpy()
        if isinstance(stored, tuple):
            stored = (self.embed_document(stored)).numpy()
        return self._search(wanted, stored, top_k, progress)

    def paraphrase_mining(
        self,
        texts: Any,
        *,
        top_k: int = 100,
        max_pairs: int = 500_000,
        progress: ProgressReport | None = None,
    ) -> tuple[Pair, ...]:
        """The most similar pairs among texts (or vectors), best first, each once.

        Args:
            texts: texts, or vectors (count, dimension), a memory-mapped numpy array too.
            top_k: how many others each is paired with at most.
            max_pairs: how many pairs to return at most.
            progress: called with how many are compared, and of how many.

        Raises:
            InvalidParameterError: an argument is out of range. (numpy must be installed.)
        """
        most, others = check_count(max_pairs, "max_pairs"), check_count(top_k, "top_k")
        vectors = side_of(texts)
        if isinstance(vectors, tuple):
            vectors = (self.embed(vectors)).numpy()
        return pairs_of(self._search(vectors, vectors, others + 1, progress), others, most)

    def _search(
        self, queries: Any, corpus: Any, top_k: int, progress: ProgressReport | None
    ) -> SearchResults:
        search = Search(queries, corpus, top_k=top_k, similarity=self._function(), progress=progress)
        for request in search.requests():
            with self.stream(request) as events:
                for event in events:
                    search.add(event)
        return search.results()

    def predict(
        self,
        pairs: Iterable[Sequence[str]],
        *,
        progress: ProgressReport | None = None,
        **options: Unpack[PredictOptions],
    ) -> Predictions:
        """The scores of pairs of texts (cross-encoders), as the model's repository makes them of its logits.

        Args:
            pairs: two texts each.
            progress: called with how many pairs are done, and of how many.
            activation: ``"identity"`` (logits), ``"sigmoid"``, ``"softmax"``; ``None`` as the model has it.
            prompt: put before the first text of each; ``""`` leaves out the model's default prompt.
            prompt_name: one of the model's own prompts.
            batch_tokens: most padded tokens in one step.

        Raises:
            InvalidParameterError: an argument is unknown, or an item is not a pair of texts.
            UnsupportedInputError: the model makes vectors, not scores.
        """
        labels = self.info.get("labels") or ()
        found = Predicting(pairs, labels=labels, progress=progress, options=options)
        with self.stream(found.request) as events:
            for event in events:
                found.add(event)
        return found.whole()

    def _gather(self, gathered: Gathered) -> Gathered:
        with self.stream(gathered.request) as events:
            for event in events:
                gathered.add(event)
        return gathered

    def _rows(
        self,
        texts: Iterator[Input],
        request_of: Callable[[Sequence[Input]], EmbedRequest],
        progress: ProgressReport | None,
    ) -> Iterator[Any]:
        done = 0
        while piece := tuple(islice(texts, ITERATOR_CHUNK)):
            yield from self._gather(self._gathering(request_of(piece), progress, done)).rows()
            done += len(piece)


__all__ = [
    "EmbedOptions",
    "EmbeddingHandle",
    "Pair",
    "PredictOptions",
    "Predictions",
    "RankOptions",
    "Ranked",
    "SearchResults",
    "SparseVectors",
    "TokenVectors",
    "VectorOptions",
    "Vectors",
]
