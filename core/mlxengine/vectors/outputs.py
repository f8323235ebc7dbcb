"""What embedding models and cross-encoders give: vectors, scores."""

from __future__ import annotations

from attrs import field, frozen

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
class SparseVector:
    """A vector of as many numbers as the model has terms, of which only those that are not 0 are kept.

    Args:
        terms: int32 (count,), the places of the numbers, ascending.
        weights: float32 (count,), the numbers.
        words: the terms as the tokenizer writes them, in the same order.
        size: of the whole vector.
    """

    terms: Array
    weights: Array
    words: tuple[str, ...] = field(repr=False)
    size: int

    def __len__(self) -> int:
        return len(self.words)

    def top(self, count: int | None = None) -> tuple[tuple[str, float], ...]:
        """The heaviest terms with their weights, heaviest first; of equal ones the earlier."""
        weights = self.weights.numpy().tolist()
        order = sorted(range(len(weights)), key=lambda place: (-weights[place], place))[:count]
        return tuple((self.words[place], weights[place]) for place in order)


@frozen(kw_only=True)
class SparseEmbeddings(Event):
    """Sparse vectors of the texts ``indices``, in that order; ``truncated`` as in `Embeddings`."""

    indices: tuple[int, ...]
    vectors: tuple[SparseVector, ...]
    truncated: tuple[int, ...] = ()


@frozen(kw_only=True)
class Similarities(Event):
    """Of each query with the documents from the place ``start`` on: float32 (queries, documents)."""

    start: int
    scores: Array


@frozen(kw_only=True)
class Scores(Event):
    """Relevance of the documents (or pairs) ``indices``, higher is better.

    A model of several ``labels`` gives that many scores for each index, one after the other.
    """

    indices: tuple[int, ...]
    scores: tuple[float, ...]
    labels: int = 1


@frozen(kw_only=True)
class Hits(Event):
    """What of a corpus is most similar to each query, best first; of equal scores the earlier place.

    ``places`` are int64 (queries, k), ``scores`` float32 of the same shape; k is ``top_k``, or the corpus's
    size where that is less.
    """

    places: Array
    scores: Array


__all__ = ["Embeddings", "Hits", "Scores", "Similarities", "SparseEmbeddings", "SparseVector"]
