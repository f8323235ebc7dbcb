"""Searching among vectors: what is asked, a block of queries at a time, and what is made of the answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import evolve, frozen

from ..contract.events import Array, Event
from ..errors import InvalidParameterError
from ._shared import ProgressReport, check_progress
from ._vectors import as_matrix
from .outputs import Hits
from .requests import SearchRequest

_QUERIES = 1024
"""Queries of one request: what their scores take of memory is bounded by it."""


@frozen(kw_only=True)
class SearchResults:
    """The most similar vectors of a corpus for each query, best first.

    Args:
        places: int64 (queries, k), positions in the corpus.
        scores: float32 of the same shape, higher is more similar.
    """

    places: Array
    scores: Array

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[tuple[tuple[int, float], ...]]:
        """For each query its (place, score) pairs."""
        for places, scores in zip(self.places.numpy().tolist(), self.scores.numpy().tolist(), strict=True):
            yield tuple(zip(places, scores, strict=True))


@frozen(kw_only=True)
class Pair:
    """Two texts and how similar they are; ``left`` is the earlier one's position."""

    score: float
    left: int
    right: int


class Search:
    """The requests of a search, and what their events amount to.

    Args:
        queries, corpus: matrices of vectors; the corpus is only ever read a slice at a time.
        top_k, similarity: see `SearchRequest`.
        progress: called with how many queries are done, and of how many.
    """

    def __init__(
        self, queries: Any, corpus: Any, *, top_k: int, similarity: str, progress: ProgressReport | None
    ) -> None:
        check_progress(progress)
        for side in (queries, corpus):
            if isinstance(side, list):  # sparse or token vectors: nothing else is one here
                as_matrix(side)
        self._queries, self._progress = queries, progress
        self._hits: list[Hits] = []
        self._template = SearchRequest(
            queries=_host(queries[:0]), corpus=corpus, top_k=top_k, similarity=similarity
        )

    def requests(self) -> Iterator[SearchRequest]:
        """One request for each block of queries; each is to be answered before the next is taken."""
        for start in range(0, len(self._queries), _QUERIES):
            yield evolve(self._template, queries=_host(self._queries[start : start + _QUERIES]))
            if self._progress is not None:
                self._progress(min(start + _QUERIES, len(self._queries)), len(self._queries))

    def add(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, Hits):
            self._hits.append(event)

    def results(self) -> SearchResults:
        """Of all queries."""
        import numpy as np

        k = min(self._template.top_k, self._template.corpus.shape[0])
        places = [hits.places.numpy() for hits in self._hits] or [np.zeros((0, k), dtype=np.int64)]
        scores = [hits.scores.numpy() for hits in self._hits] or [np.zeros((0, k), dtype=np.float32)]
        return SearchResults(places=_host(np.concatenate(places)), scores=_host(np.concatenate(scores)))


def pairs_of(results: SearchResults, top_k: int, most: int) -> tuple[Pair, ...]:
    """The most similar pairs of a search of vectors in themselves, best first.

    Args:
        results: with one more for each vector than ``top_k``, because it finds itself.
        top_k: how many others each vector may be paired with.
        most: how many pairs to keep.
    """
    import numpy as np

    places, scores = results.places.numpy(), results.scores.numpy()
    rows = np.arange(len(places))[:, None]
    others = places != rows
    # Where a vector did not find itself (its equals came first), the last of the row is one too many.
    others &= np.cumsum(others, axis=1) <= top_k
    left, right = np.broadcast_to(rows, places.shape)[others], places[others]
    low, high, found = np.minimum(left, right), np.maximum(left, right), scores[others]
    _, once = np.unique(low * len(places) + high, return_index=True)
    low, high, found = low[once], high[once], found[once]
    order = np.lexsort((high, low, -found))[:most]
    columns = found[order].tolist(), low[order].tolist(), high[order].tolist()
    return tuple(Pair(score=a, left=b, right=c) for a, b, c in zip(*columns, strict=True))


def check_count(value: Any, name: str) -> int:
    """A positive whole number.

    Raises:
        InvalidParameterError: it is none.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise InvalidParameterError(f"{name} must be a positive whole number, found {value!r}.")
    return int(value)


def _host(values: Any) -> Array:
    import numpy as np

    values = np.ascontiguousarray(values)
    return Array(data=values.tobytes(), shape=values.shape, dtype=values.dtype.name)


__all__ = ["Pair", "Search", "SearchResults", "check_count", "pairs_of"]
