"""Handles of embedding models and rerankers.

What a handle knows of its model comes from ``handle.info``: a plugin that serves the kind ``"embed"`` says
there ``dimension``, ``prompts`` (name to text) and ``similarity`` (``"cosine"``, ``"dot"``, ``"euclidean"``
or ``"manhattan"``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Literal, overload

from attrs import evolve

from ..contract.events import Array
from ..errors import InvalidParameterError
from ..handle import ModelHandle
from ._handle_async import AsyncEmbeddingHandle
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
from ._vectors import Gathered, TokenVectors, Vectors, similarity_of
from .outputs import Scores
from .requests import EmbedRequest, RankRequest

ITERATOR_CHUNK = 2048
"""Texts of an iterator that make one request."""


class EmbeddingHandle(Embedder, ModelHandle):
    """A loaded embedding model (`embed`, `similarity`) or reranker (`rank`)."""

    @overload
    def embed(
        self,
        texts: Texts,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        precision: str = "float32",
        output: Literal["pooled"] = "pooled",
        batch_tokens: int | None = None,
        ranges: Ranges | None = None,
        progress: ProgressReport | None = None,
    ) -> Vectors: ...

    @overload
    def embed(
        self,
        texts: Texts,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        precision: str = "float32",
        output: Literal["tokens"],
        batch_tokens: int | None = None,
        ranges: Ranges | None = None,
        progress: ProgressReport | None = None,
    ) -> TokenVectors: ...

    @overload
    def embed(
        self,
        texts: Iterator[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        precision: str = "float32",
        output: Literal["pooled", "tokens"] = "pooled",
        batch_tokens: int | None = None,
        ranges: Ranges | None = None,
        progress: ProgressReport | None = None,
    ) -> Iterator[Array]: ...

    def embed(
        self,
        texts: Texts | Iterator[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        precision: str = "float32",
        output: str = "pooled",
        batch_tokens: int | None = None,
        ranges: Ranges | None = None,
        progress: ProgressReport | None = None,
    ) -> Vectors | TokenVectors | Iterator[Array]:
        """Vectors of texts.

        Args:
            texts: a text, a sequence of texts, or an iterator of texts. An iterator is read as its vectors
                are taken, so a corpus need not fit in memory.
            prompt: put before every text, as it is; ``""`` leaves out the model's default prompt.
            prompt_name: one of the model's own prompts.
            normalize: scale vectors to unit length; ``None`` does what the repository says.
            truncate_dim: keep the first dimensions only.
            precision: ``"float32"``, ``"float16"``, ``"int8"``, ``"uint8"``, ``"binary"``, ``"ubinary"``.
            output: ``"pooled"``, or ``"tokens"`` for one vector a token.
            batch_tokens: most padded tokens in one step; ``None`` lets the plugin choose.
            ranges: (lowest, highest) of each dimension for ``"int8"`` and ``"uint8"``; needed with an
                iterator, else taken from the texts.
            progress: called with how many texts are done, and of how many.

        Returns:
            `Vectors` of shape (texts, dimension), also for a single text; `TokenVectors`; or for an iterator
            an iterator of one `Array` a text, in order.

        Raises:
            InvalidParameterError: an argument is out of range, or a text is not a ``str``.
            UnsupportedInputError: the model is a reranker.
        """
        template = EmbedRequest(
            texts=(),
            prompt=prompt,
            prompt_name=prompt_name,
            normalize=normalize,
            truncate_dim=truncate_dim,
            precision=precision,
            output=output,
            batch_tokens=batch_tokens,
            ranges=ranges,
        )
        if isinstance(texts, Iterator):
            return self._embed_iterator(texts, template, progress)
        request = evolve(template, texts=as_tuple(texts))
        gathered = self._gather(request, progress, 0, len(request.texts))
        return gathered.tokens() if output == "tokens" else gathered.vectors()

    def embed_query(
        self,
        texts: Texts,
        *,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        precision: str = "float32",
        batch_tokens: int | None = None,
        ranges: Ranges | None = None,
        progress: ProgressReport | None = None,
    ) -> Vectors:
        """`embed` with the model's prompt for queries, or none if it has none."""
        prompt, prompt_name = self._prompt(QUERY)
        return self.embed(
            texts,
            prompt=prompt,
            prompt_name=prompt_name,
            normalize=normalize,
            truncate_dim=truncate_dim,
            precision=precision,
            batch_tokens=batch_tokens,
            ranges=ranges,
            progress=progress,
        )

    def embed_document(
        self,
        texts: Texts,
        *,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        precision: str = "float32",
        batch_tokens: int | None = None,
        ranges: Ranges | None = None,
        progress: ProgressReport | None = None,
    ) -> Vectors:
        """`embed` with the model's prompt for documents, or none if it has none."""
        prompt, prompt_name = self._prompt(DOCUMENT)
        return self.embed(
            texts,
            prompt=prompt,
            prompt_name=prompt_name,
            normalize=normalize,
            truncate_dim=truncate_dim,
            precision=precision,
            batch_tokens=batch_tokens,
            ranges=ranges,
            progress=progress,
        )

    def similarity(self, left: Any, right: Any = None) -> Array:
        """How similar rows of two matrices are, by the model's own similarity function.

        Args:
            left: texts, or vectors (count, dimension).
            right: texts or vectors; ``None`` compares ``left`` with itself.

        Returns:
            float32 of shape (rows of ``left``, rows of ``right``); higher is more similar.

        Raises:
            InvalidParameterError: the vectors' lengths differ. (numpy must be installed.)
        """
        first = self._matrix(left)
        second = first if right is None else self._matrix(right)
        return similarity_of(first, second, str(self.info.get("similarity") or "cosine"))

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_k: int | None = None,
        batch_tokens: int | None = None,
        progress: ProgressReport | None = None,
    ) -> tuple[Ranked, ...]:
        """The documents by relevance to the query, best first (cross-encoders).

        Args:
            query: the query.
            documents: what to rank.
            top_k: how many to return; ``None`` returns all.
            batch_tokens: most padded tokens in one step.
            progress: called with how many documents are done, and of how many.

        Raises:
            UnsupportedInputError: the model makes vectors, not scores.
        """
        request = RankRequest(query=query, documents=as_tuple(documents), batch_tokens=batch_tokens)
        scores: dict[int, float] = {}
        with self.stream(request) as events:
            for event in events:
                if isinstance(event, Scores):
                    scores.update(zip(event.indices, event.scores, strict=True))
                    if progress is not None:
                        progress(len(scores), len(request.documents))
        return ranking(scores, request.documents, top_k)

    def _matrix(self, value: Any) -> Any:
        texts = isinstance(value, str) or (
            isinstance(value, list | tuple) and bool(value) and isinstance(value[0], str)
        )
        if texts:
            value = self.embed(value)
        return value.numpy() if isinstance(value, Array) else value

    def _gather(
        self, request: EmbedRequest, progress: ProgressReport | None, before: int, total: int | None
    ) -> Gathered:
        gathered = Gathered(len(request.texts), int(self.info.get("dimension") or 0), request)
        with self.stream(request) as events:
            drain(events, gathered, progress, before, total)
        return gathered

    def _embed_iterator(
        self, texts: Iterator[str], template: EmbedRequest, progress: ProgressReport | None
    ) -> Iterator[Array]:
        if template.precision in ("int8", "uint8") and template.ranges is None:
            raise InvalidParameterError(
                f"precision={template.precision!r} of an iterator needs the range of each dimension first.",
                hint="Give ranges=(lowest, highest), taken from the float32 vectors of a sample.",
            )
        return self._rows(texts, template, progress)

    def _rows(
        self, texts: Iterator[str], template: EmbedRequest, progress: ProgressReport | None
    ) -> Iterator[Array]:
        done = 0
        while chunk := tuple(islice(texts, ITERATOR_CHUNK)):
            gathered = self._gather(evolve(template, texts=chunk), progress, done, None)
            done += len(chunk)
            yield from gathered.rows()


__all__ = ["AsyncEmbeddingHandle", "EmbeddingHandle", "Ranked", "TokenVectors", "Vectors"]
