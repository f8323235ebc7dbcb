"""What embedding models and cross-encoders give: vectors, scores."""

from __future__ import annotations

from attrs import frozen

from ..contract.events import Array, Event


@frozen(kw_only=True)
class Embeddings(Event):
    """Vectors of the texts ``indices`` (positions in the request), in that order.

    ``vectors`` has shape (len(indices), dimension); for token output, one array per text is in ``tokens``.
    ``truncated`` are the positions of texts that were longer than the model takes.
    """

    indices: tuple[int, ...]
    vectors: Array | None = None
    tokens: tuple[Array, ...] = ()
    truncated: tuple[int, ...] = ()


@frozen(kw_only=True)
class Scores(Event):
    """Relevance of the documents ``indices`` to the query, higher is better."""

    indices: tuple[int, ...]
    scores: tuple[float, ...]


__all__ = ["Embeddings", "Scores"]
