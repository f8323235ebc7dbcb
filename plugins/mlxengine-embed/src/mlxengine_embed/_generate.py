"""Serving requests: windows of texts, sorted by length into batches, one batch a step."""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from attrs import define
from mlxengine import (
    Embeddings,
    EmbedRequest,
    Event,
    Finished,
    ImagePart,
    MaxSimRequest,
    Metrics,
    PredictRequest,
    RankRequest,
    Request,
    RunContext,
    SearchRequest,
    SparseEmbeddings,
    SparseVector,
    TokenUsage,
)
from mlxengine.contract.events import Array
from mlxengine.errors import InvalidParameterError, UnsupportedInputError
from mlxengine.vectors.outputs import Scores

from . import features
from ._batches import plan_batches
from ._checks import check_pictures, check_texts, prompt_of, validated
from ._m3 import lexical
from ._maxsim import maxsim
from ._model import EmbeddingModel, RankModel
from ._precision import NEEDS_RANGES, quantize, ranges_of
from ._search import search
from ._tokenize import Tokens

WINDOW = 4096
"""Texts that are tokenized and sorted together; bounds what a request holds at a time."""
_PIECE = 256
"""Texts that are tokenized in one step."""

Host = np.ndarray[Any, Any]
_Batch = tuple[tuple[int, ...], list[Tokens]]
"""Places in the request, and what is read there."""


def serve(model: object, request: Request, context: RunContext) -> Iterator[Event | None] | None:
    """The events of a request, ``None`` for a type that is not this plugin's.

    Raises:
        InvalidParameterError, UnsupportedInputError: the request cannot be served.
    """
    if isinstance(request, EmbedRequest):
        if not isinstance(model, EmbeddingModel):
            raise UnsupportedInputError(
                f"{getattr(model, 'id', 'This model')} is a reranker: it makes scores, not vectors.",
                hint="Use rank(query, documents), or load an embedding model.",
            )
        check_pictures(model, request, context)
        return _embed(model, validated(model, request), context)
    if isinstance(request, SearchRequest):
        return search(request, on_gpu=mx.default_device().type == mx.DeviceType.gpu)
    if isinstance(request, MaxSimRequest):
        return maxsim(request)
    if isinstance(request, RankRequest | PredictRequest):
        if not isinstance(model, RankModel):
            raise UnsupportedInputError(
                f"{getattr(model, 'id', 'This model')} is not a cross-encoder.",
                hint="Compare vectors with similarity(), or load a reranker such as BAAI/bge-reranker-base.",
            )
        if isinstance(request, RankRequest):
            return _score(model, _ranking(model, request), context)
        return _score(model, request, context)
    return None


def _ranking(model: RankModel, request: RankRequest) -> PredictRequest:
    """The pairs of a query with each document."""
    check_texts(request.documents, "documents")
    check_texts((request.query,), "query")
    if model.labels != 1:
        raise UnsupportedInputError(
            f"{model.id} has {model.labels} labels: its scores are no order of documents.",
            hint="Use predict([(query, document), …]), which gives a score for each label.",
        )
    return PredictRequest(
        pairs=[(request.query, document) for document in request.documents],
        prompt=request.prompt,
        prompt_name=request.prompt_name,
        batch_tokens=request.batch_tokens,
    )


@define
class _Count:
    """What `Finished` reports."""

    texts: int = 0
    tokens: int = 0
    padded: int = 0
    batches: int = 0
    truncated: int = 0

    def add(self, batch: Sequence[Tokens]) -> None:
        lengths = [len(tokens.ids) for tokens in batch]
        self.texts += len(batch)
        self.tokens += sum(lengths)
        self.padded += len(batch) * max(lengths)
        self.batches += 1
        self.truncated += sum(tokens.truncated for tokens in batch)

    def finished(self) -> Finished:
        share = 1 - self.tokens / self.padded if self.padded else 0.0
        extra = (
            ("texts", float(self.texts)),
            ("batches", float(self.batches)),
            ("truncated", float(self.truncated)),
            ("padding_share", share),
        )
        return Finished(usage=TokenUsage(prompt_tokens=self.tokens), metrics=Metrics(extra=extra))


def _budget(
    model: EmbeddingModel | RankModel, request: EmbedRequest | PredictRequest, context: RunContext
) -> int:
    if not context.features.get(features.BATCH):
        return 1
    return request.batch_tokens or model.batch_tokens


def _embed(model: EmbeddingModel, request: EmbedRequest, context: RunContext) -> Iterator[Event | None]:
    if model.query_weights is not None and (request.task or model.recipe.default_task) == "query":
        yield from _looked_up(model, request, model.query_weights)
        return
    count = _Count()
    budget = _budget(model, request, context)
    start = 0
    if request.prompt and not model.recipe.include_prompt:
        start = model.tokenizer.prompt_length(request.prompt)
    held: list[tuple[tuple[int, ...], Host, tuple[int, ...]]] = []
    ranges = None if request.ranges is None else np.asarray(request.ranges, dtype=np.float32)
    calibrate = request.precision in NEEDS_RANGES and ranges is None
    if ranges is not None and ranges.shape != (2, request.truncate_dim or model.dimension):
        raise InvalidParameterError(
            f"ranges must be (lowest, highest) of {request.truncate_dim or model.dimension} dimensions."
        )
    for found in _ahead(model, request, _read(model, request, budget), start):
        if not isinstance(found, tuple):
            yield found
            continue
        (indices, rows), computed = found
        count.add(rows)
        truncated = tuple(place for place, row in zip(indices, rows, strict=True) if row.truncated)
        if request.output == "tokens":
            yield _token_event(model, request, computed, rows, indices, truncated)
            continue
        vectors = np.array(computed)
        if request.output == "sparse":
            sparse = _sparse_vectors(*_weighed(model, vectors, rows), request.truncate_dim)
            yield SparseEmbeddings(indices=indices, vectors=sparse, truncated=truncated)
            continue
        if calibrate:
            held.append((indices, vectors, truncated))
            yield None
        else:
            yield _event(indices, quantize(vectors, request.precision, ranges), truncated)
    if held:
        # The range of each dimension is that of all texts of the request, as it is for sentence-transformers.
        ranges = ranges_of(np.concatenate([vectors for _, vectors, _ in held]))
        for indices, vectors, truncated in held:
            yield _event(indices, quantize(vectors, request.precision, ranges), truncated)
    yield count.finished()


def _looked_up(model: EmbeddingModel, request: EmbedRequest, weights: Host) -> Iterator[Event | None]:
    """Sparse vectors without an encoder: each token that is there has its own weight, however often it is."""
    assert model.terms is not None
    reader, count = model.reader("query"), _Count()
    for first in range(0, len(request.texts), _PIECE):
        piece = request.texts[first : first + _PIECE]
        texts = [(request.prompt or "") + item for item in piece if isinstance(item, str)]
        if texts:
            found = yield from reader.beside(functools.partial(reader.encode_plain, texts))
        else:
            found = [np.array(ids, dtype=np.int32) for ids in piece]
        present = (np.unique(ids[weights[ids] != 0]) for ids in found)
        count.add([Tokens(ids=ids) for ids in found])
        weighed = ((terms, weights[terms]) for terms in present)
        vectors = _sparse_vectors(weighed, model.terms.words, request.truncate_dim)
        yield SparseEmbeddings(indices=tuple(range(first, first + len(piece))), vectors=vectors)
    yield count.finished()


def _tokens(
    model: EmbeddingModel, piece: Sequence[str | tuple[int, ...]], request: EmbedRequest
) -> Generator[Event | None, None, list[Tokens]]:
    """The tokens of texts with the prompt before each, or of what is tokens already."""
    texts = [(request.prompt or "") + item for item in piece if isinstance(item, str)]
    if texts:
        found = yield from model.reader(request.task).encoding(texts)
        return [model.filled(item, request.task) for item in found]
    return [Tokens(ids=np.array(ids, dtype=np.int32)) for ids in piece]


def _read(model: EmbeddingModel, request: EmbedRequest, budget: int) -> Iterator[_Batch | Event | None]:
    """The batches of a request, each with its places in it: those of texts, then those of pictures."""
    pictures = [(place, item) for place, item in enumerate(request.texts) if isinstance(item, ImagePart)]
    texts = [(place, item) for place, item in enumerate(request.texts) if not isinstance(item, ImagePart)]
    for first in range(0, len(texts), WINDOW):
        tokens: list[Tokens] = []
        window = texts[first : first + WINDOW]
        for offset in range(0, len(window), _PIECE):
            if offset:
                yield None
            piece = [item for _, item in window[offset : offset + _PIECE]]
            tokens += yield from _tokens(model, piece, request)
        for batch in plan_batches([len(item.ids) for item in tokens], budget):
            yield tuple(window[index][0] for index in batch), [tokens[index] for index in batch]
    if not pictures:
        return
    assert model.eye is not None
    size = max(1, budget // len(model.eye.ids))
    for first in range(0, len(pictures), size):
        several = pictures[first : first + size]
        looked = yield from model.tokenizer.beside(functools.partial(model.eye.look, several))
        yield tuple(place for place, _ in several), looked


def _ahead(
    model: EmbeddingModel,
    request: EmbedRequest,
    batches: Iterator[_Batch | Event | None],
    start: int,
) -> Iterator[tuple[_Batch, Any] | Event | None]:
    """The batches with their results; the device computes one while the next is prepared."""
    waiting: tuple[_Batch, Any] | None = None
    task = model.task(request)
    for batch in batches:
        if not isinstance(batch, tuple):
            yield batch
            continue
        rows = batch[1]
        if request.output == "tokens":
            computed = model.token_vectors(rows, task, unit=request.normalize, size=request.truncate_dim)
        elif request.output == "sparse":
            computed = model.sparse(rows, task)
        else:
            computed = model.vectors(
                rows, task, start=start, unit=request.normalize, size=request.truncate_dim
            )
        mx.async_eval(computed)  # type: ignore[no-untyped-call]
        if waiting is not None:
            yield waiting
        waiting = (batch, computed)
    if waiting is not None:
        yield waiting


def _event(indices: tuple[int, ...], vectors: Host, truncated: tuple[int, ...]) -> Embeddings:
    return Embeddings(indices=indices, vectors=_array(vectors), truncated=truncated)


def _token_event(
    model: EmbeddingModel,
    request: EmbedRequest,
    computed: Any,
    rows: Sequence[Tokens],
    indices: tuple[int, ...],
    truncated: tuple[int, ...],
) -> Embeddings:
    hidden = np.array(computed)[:, :, : request.truncate_dim]
    if request.normalize:
        hidden = hidden / np.maximum(np.linalg.norm(hidden, axis=-1, keepdims=True), 1e-12)
    kept = (
        row[: len(item.ids)][model.kept(item, request.task)] for row, item in zip(hidden, rows, strict=True)
    )
    arrays = tuple(_array(quantize(row, request.precision)) for row in kept)
    return Embeddings(indices=indices, tokens=arrays, truncated=truncated)


def _weighed(
    model: EmbeddingModel, weights: Host, rows: Sequence[Tokens]
) -> tuple[Iterator[tuple[Host, Host]], Sequence[str]]:
    """What `_sparse_vectors` takes, of weights (rows, terms), or (rows, tokens) of BGE-M3."""
    if model.terms is not None:
        return ((np.flatnonzero(row), row[row != 0]) for row in weights), model.terms.words
    assert model.unused is not None
    unused = model.unused
    found = (lexical(row[: len(item.ids)], item.ids, unused) for row, item in zip(weights, rows, strict=True))
    return found, model.words


def _sparse_vectors(
    weighed: Iterable[tuple[Host, Host]], words: Sequence[str], most: int | None
) -> tuple[SparseVector, ...]:
    """Of each text its terms, ascending, and their weights; of more than ``most`` the heaviest, of equal ones
    the earlier.
    """
    found = []
    for terms, weights in weighed:
        if most is not None and len(terms) > most:
            kept = np.sort(np.argsort(-weights, kind="stable")[:most])
            terms, weights = terms[kept], weights[kept]
        found.append(
            SparseVector(
                terms=_array(terms.astype(np.int32)),
                weights=_array(weights),
                words=tuple(words[term] for term in terms.tolist()),
                size=len(words),
            )
        )
    return tuple(found)


def _array(values: Host) -> Array:
    return Array(data=values.tobytes(), shape=values.shape, dtype=values.dtype.name)


def _score(model: RankModel, request: PredictRequest, context: RunContext) -> Iterator[Event | None]:
    count, budget = _Count(), _budget(model, request, context)
    prompt = prompt_of(model, request) or ""
    for first in range(0, len(request.pairs), WINDOW):
        window = request.pairs[first : first + WINDOW]
        tokens: list[Tokens] = []
        for offset in range(0, len(window), _PIECE):
            if offset:
                yield None
            tokens += yield from model.encoding(window[offset : offset + _PIECE], prompt)
        for batch in plan_batches([len(item.ids) for item in tokens], budget):
            rows = [tokens[place] for place in batch]
            count.add(rows)
            scores = np.array(model.scores(rows, request.activation)).ravel().tolist()
            indices = tuple(first + place for place in batch)
            yield Scores(indices=indices, scores=tuple(scores), labels=model.labels)
    yield count.finished()


__all__ = ["WINDOW", "serve"]
