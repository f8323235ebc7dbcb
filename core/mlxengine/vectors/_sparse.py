"""Sparse vectors of many texts, and how similar they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

from attrs import field, frozen

from ..contract.events import Array, Metrics
from ..contract.tokens import TokenUsage
from ..errors import InvalidParameterError
from .outputs import SparseVector

_CELLS = 1 << 24
"""Numbers that a step of a comparison holds at once."""


@frozen(kw_only=True)
class SparseVectors(Sequence[SparseVector]):
    """One sparse vector a text.

    Args:
        vectors: in the order of the texts.
        truncated, usage, metrics: as in `Vectors`.
    """

    vectors: tuple[SparseVector, ...] = field(repr=False)
    truncated: tuple[int, ...] = ()
    usage: TokenUsage = field(factory=TokenUsage)
    metrics: Metrics = field(factory=Metrics)

    def __len__(self) -> int:
        return len(self.vectors)

    def __iter__(self) -> Iterator[SparseVector]:
        return iter(self.vectors)

    @overload
    def __getitem__(self, index: int) -> SparseVector: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[SparseVector, ...]: ...

    def __getitem__(self, index: int | slice) -> SparseVector | tuple[SparseVector, ...]:
        return self.vectors[index]

    def csr(self) -> tuple[Array, Array, Array]:
        """The compressed rows, as ``scipy.sparse.csr_array((weights, terms, offsets))`` takes them.

        Returns:
            weights float32 and terms int32 of all texts, one after the other, and offsets int64 (texts + 1):
            where each text's begin, and the end.
        """
        import numpy as np

        offsets = np.cumsum([0, *map(len, self.vectors)], dtype=np.int64)
        terms = _joined([row.terms for row in self.vectors], np.int32)
        weights = _joined([row.weights for row in self.vectors], np.float32)
        return _host(weights), _host(terms), _host(offsets)


def _joined(parts: Sequence[Array], dtype: Any) -> Any:
    import numpy as np

    return np.concatenate([np.zeros(0, dtype), *(part.numpy() for part in parts)]).astype(dtype)


def sparse_side(value: Any) -> Sequence[SparseVector] | None:
    """A side of a comparison if it is sparse vectors, else ``None``."""
    if isinstance(value, SparseVector):
        return (value,)
    if isinstance(value, SparseVectors):
        return value.vectors
    listed = isinstance(value, list | tuple) and bool(value) and isinstance(value[0], SparseVector)
    return value if listed else None


def sparse_similarity(left: Sequence[SparseVector], right: Sequence[SparseVector], function: str) -> Array:
    """Similarity of each of ``left`` with each of ``right``, float32 (left, right).

    Raises:
        InvalidParameterError: they are of different models, or the function has no sparse form.
    """
    import numpy as np

    if function not in ("dot", "cosine"):
        raise InvalidParameterError(
            f"Sparse vectors cannot be compared by {function!r}.",
            hint='Their functions are "dot" and "cosine".',
        )
    if len({row.size for row in (*left, *right)}) > 1:
        raise InvalidParameterError("Sparse vectors of different sizes cannot be compared.")
    found: Any = np.zeros((len(left), len(right)), dtype=np.float32)
    kept = [place for place, row in enumerate(right) if len(row)]  # an empty one is like nothing
    if not left or not kept:
        return _host(found)
    weights, terms, offsets = (
        part.numpy() for part in SparseVectors(vectors=tuple(right[i] for i in kept)).csr()
    )
    rows = max(1, _CELLS // (len(terms) + left[0].size))
    for start in range(0, len(left), rows):
        piece = left[start : start + rows]
        dense: Any = np.zeros((len(piece), left[0].size), dtype=np.float32)
        for place, row in enumerate(piece):
            dense[place, row.terms.numpy()] = row.weights.numpy()
        found[start : start + rows, kept] = np.add.reduceat(dense[:, terms] * weights, offsets[:-1], axis=1)
    if function == "cosine":
        found /= np.maximum(np.outer(_norms(left), _norms(right)), 1e-12)
    return _host(found)


def _norms(rows: Sequence[SparseVector]) -> Any:
    import numpy as np

    return np.array([np.linalg.norm(row.weights.numpy()) for row in rows], dtype=np.float32)


def _host(values: Any) -> Array:
    return Array(data=values.tobytes(), shape=values.shape, dtype=values.dtype.name)


__all__ = ["SparseVectors", "sparse_side", "sparse_similarity"]
