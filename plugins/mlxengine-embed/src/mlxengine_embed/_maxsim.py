"""MaxSim on the device: a block of documents at a time, padded to its longest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlxengine import Event, Finished, MaxSimRequest, Similarities
from mlxengine.contract.events import Array

_CELLS = 1 << 24
"""Dot products of one step."""


def maxsim(request: MaxSimRequest) -> Iterator[Event | None]:
    """The events of a request; a block of documents is one step."""
    queries, _ = _padded(request.queries)
    # A query's padding is all zeros, so it finds nothing: 0 is added.
    flat = queries.reshape(-1, queries.shape[-1]) if queries.size else None
    for start, stop in _blocks(request.documents, max(1, queries.shape[0] * queries.shape[1])):
        documents, real = _padded(request.documents[start:stop])
        if flat is None or not documents.size:
            scores: Any = np.zeros((len(request.queries), stop - start), dtype=np.float32)
        else:
            products = flat @ documents.reshape(-1, documents.shape[-1]).T
            products = products.reshape(*queries.shape[:2], *documents.shape[:2])
            products = mx.where(real[None, None], products, -mx.inf)
            best = mx.max(products, axis=-1)
            best = mx.where(mx.any(real, axis=1)[None, None], best, 0)
            scores = np.array(mx.sum(best, axis=1))
        yield Similarities(
            start=start, scores=Array(data=scores.tobytes(), shape=scores.shape, dtype="float32")
        )
    yield Finished()


def _blocks(documents: Sequence[Array], width: int) -> Iterator[tuple[int, int]]:
    """Runs of documents whose dot products, padding included, are not too many for a step."""
    start = longest = 0
    for place, matrix in enumerate(documents):
        longest = max(longest, matrix.shape[0])
        if place > start and (place - start + 1) * longest * width > _CELLS:
            yield start, place
            start, longest = place, matrix.shape[0]
    if documents:
        yield start, len(documents)


def _padded(matrices: Sequence[Array]) -> tuple[Any, Any]:
    """(texts, longest, size) fp32, and which of the places are real."""
    lengths = [matrix.shape[0] for matrix in matrices]
    longest, size = max(lengths, default=0), max((matrix.shape[1] for matrix in matrices), default=0)
    found: Any = np.zeros((len(matrices), longest, size), dtype=np.float32)
    for row, matrix in enumerate(matrices):
        found[row, : lengths[row]] = matrix.numpy()
    real = np.arange(longest) < np.array(lengths, dtype=np.int64)[:, None]
    return mx.array(found), mx.array(real)


__all__ = ["maxsim"]
