"""Searching a corpus of vectors block by block: the products on the device, the best of each block kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
from mlxengine import Event, Finished, Hits, Metrics, SearchRequest
from mlxengine.contract.events import Array
from mlxengine.errors import InvalidParameterError

from ._pool import normalize

_CELLS = 1 << 22
"""Scores of one step: enough for a device to be busy, few enough that others wait little."""
_FEW = 8
"""Candidates of a block, in terms of what is kept, up to which they are gathered one by one."""

Host = np.ndarray[Any, Any]


def search(request: SearchRequest, on_gpu: bool) -> Iterator[Event | None]:
    """The events of a request; a block of the corpus is one step."""
    queries = mx.array(request.queries.numpy().astype(np.float32))
    count, kept = request.corpus.shape[0], min(request.top_k, request.corpus.shape[0])
    if request.similarity == "cosine":
        queries = normalize(queries)
    best = _Best(queries.shape[0], kept)
    width = queries.shape[1] if request.similarity == "manhattan" else 1
    rows = max(1, _CELLS // (max(1, queries.shape[0]) * width))
    for start in range(0, count if queries.shape[0] else 0, rows):
        block = mx.array(_rows(request.corpus, start, min(start + rows, count)))
        scores = _scores(queries, block, request.similarity)
        if on_gpu and kept < scores.shape[1]:
            # Few numbers come back from the device instead of all.
            order = mx.argpartition(-scores, kept - 1, axis=1)[:, :kept]
            found = np.array(mx.take_along_axis(scores, order, axis=1))
            best.add(found, np.array(order).astype(np.int64) + start)
        else:
            best.look(np.array(scores), start)
        yield None
    places, values = best.places, best.scores
    yield Hits(
        places=Array(data=places.tobytes(), shape=places.shape, dtype="int64"),
        scores=Array(data=values.tobytes(), shape=values.shape, dtype="float32"),
    )
    yield Finished(metrics=Metrics(extra=(("queries", float(len(places))), ("vectors", float(count)))))


def _rows(corpus: Any, start: int, stop: int) -> Host:
    try:
        rows: Host = np.ascontiguousarray(corpus[start:stop], dtype=np.float32)
    except (TypeError, ValueError, OSError) as error:
        raise InvalidParameterError(
            f"Rows {start} to {stop} of the corpus cannot be read as vectors: {error}."
        ) from error
    return rows


def _scores(queries: Any, block: Any, similarity: str) -> Any:
    """(queries, rows of the block), higher is more similar; queries of ``"cosine"`` have unit length."""
    if similarity == "manhattan":
        return -mx.sum(mx.abs(queries[:, None] - block[None]), axis=-1)
    if similarity == "cosine":
        block = normalize(block)
    products = queries @ block.T
    if similarity != "euclidean":
        return products
    squares = mx.sum(queries * queries, axis=1)[:, None] + mx.sum(block * block, axis=1)[None]
    return -mx.sqrt(mx.maximum(squares - 2 * products, 0))


class _Best:
    """The best scores of each query so far, and where they are; of equal ones the earlier place."""

    def __init__(self, queries: int, kept: int) -> None:
        self.scores: Host = np.zeros((queries, 0), dtype=np.float32)
        self.places: Host = np.zeros((queries, 0), dtype=np.int64)
        self._kept = kept

    def look(self, scores: Host, start: int) -> None:
        """Take note of all scores of a block that begins at a place."""
        most = self._kept
        if self.scores.shape[1] == self._kept and self._kept:
            # After the first blocks hardly any row is better than the worst that is kept.
            rows, columns = np.nonzero(scores > self.scores[:, -1:])
            counts = np.bincount(rows, minlength=len(scores))
            most = int(counts.max(initial=0))
            if most == 0:
                return
            if most <= _FEW * self._kept:
                # What fills up a row is ordered after everything, also after what is no number.
                slots = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
                found: Host = np.full((len(scores), most), np.nan, dtype=np.float32)
                places: Host = np.full(found.shape, np.iinfo(np.int64).max)
                found[rows, slots] = scores[rows, columns]
                places[rows, slots] = columns + start
                self.add(found, places)
                return
        most = min(most, self._kept, scores.shape[1])
        places = np.argpartition(-scores, most - 1, axis=1)[:, :most]
        # What has the score of the worst of these is as good as it: the earliest are taken.
        floor = np.take_along_axis(scores, places, axis=1).min(axis=1, keepdims=True)
        ties = (scores >= floor).sum(axis=1)
        for row in np.flatnonzero(ties > most):
            places[row] = np.lexsort((np.arange(scores.shape[1]), -scores[row]))[:most]
        self.add(np.take_along_axis(scores, places, axis=1), places.astype(np.int64) + start)

    def add(self, scores: Host, places: Host) -> None:
        """Take note of candidates, (queries, any number)."""
        scores = np.concatenate([self.scores, scores], axis=1)
        places = np.concatenate([self.places, places], axis=1)
        order = np.lexsort((places, -scores), axis=1)[:, : self._kept]
        self.scores = np.ascontiguousarray(np.take_along_axis(scores, order, axis=1))
        self.places = np.ascontiguousarray(np.take_along_axis(places, order, axis=1))


__all__ = ["search"]
