"""Vectors as host memory, gathered from the events of a request in whatever order they come."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from attrs import field, frozen

from ..contract.events import Array, Event, Finished, Metrics
from ..contract.tokens import TokenUsage
from ..errors import InvalidParameterError
from ._sparse import SparseVectors
from .outputs import Embeddings, SparseEmbeddings, SparseVector
from .requests import EmbedRequest

_BYTES = {"float32": 4, "float16": 2, "int8": 1, "uint8": 1, "binary": 1, "ubinary": 1}


@frozen(kw_only=True)
class Vectors(Array):
    """One vector a text, shape (texts, dimension).

    Args:
        truncated: positions of the texts that were longer than the model takes.
        usage: tokens that were read.
        metrics: times; ``extra`` holds ``texts``, ``batches``, ``truncated`` and ``padding_share``.
    """

    truncated: tuple[int, ...] = ()
    usage: TokenUsage = field(factory=TokenUsage)
    metrics: Metrics = field(factory=Metrics)


@frozen(kw_only=True)
class Predictions(Array):
    """The scores of pairs, float32: (pairs,) of a model with one label, else (pairs, labels).

    Args:
        labels: the model's own names of its labels, in the order of the columns; ``()`` if it names none.
        usage: tokens that were read.
        metrics: times; ``extra`` as for `Vectors`.
    """

    labels: tuple[str, ...] = ()
    usage: TokenUsage = field(factory=TokenUsage)
    metrics: Metrics = field(factory=Metrics)


@frozen(kw_only=True)
class TokenVectors:
    """One matrix a text, each of shape (tokens, size), special tokens included."""

    arrays: tuple[Array, ...]
    truncated: tuple[int, ...] = ()
    usage: TokenUsage = field(factory=TokenUsage)
    metrics: Metrics = field(factory=Metrics)

    def __len__(self) -> int:
        return len(self.arrays)

    def __iter__(self) -> Iterator[Array]:
        return iter(self.arrays)

    def __getitem__(self, index: int) -> Array:
        return self.arrays[index]


class Gathered:
    """Collects the vectors of a request into one block, in the order of its texts.

    Args:
        request: what was asked for.
        dimension: length of a vector where no text says it (an empty request).
        report: called with how many texts are done.
    """

    def __init__(
        self, request: EmbedRequest, dimension: int, report: Callable[[int], None] | None = None
    ) -> None:
        self.request = request
        self._count = len(request.texts)
        self._report = report
        self._done = 0
        self._finished = Finished()
        size = min(dimension, request.truncate_dim or dimension)
        self._dimension = (size + 7) // 8 if request.precision.endswith("binary") else size
        self._width = self._dimension * _BYTES.get(request.precision, 4)
        names = {"binary": "int8", "ubinary": "uint8"}
        self._dtype = names.get(request.precision, request.precision)
        self._block: bytearray | None = None
        self._tokens: dict[int, Array] = {}
        self._sparse: dict[int, SparseVector] = {}
        self._truncated: list[int] = []

    def add(self, event: Event) -> None:
        """Take note of an event: vectors go into their places."""
        if isinstance(event, Finished):
            self._finished = event
        if not isinstance(event, Embeddings | SparseEmbeddings):
            return
        self._truncated += event.truncated
        if isinstance(event, SparseEmbeddings):
            self._sparse.update(zip(event.indices, event.vectors, strict=True))
        else:
            self._tokens.update(zip(event.indices, event.tokens, strict=False))
            if event.vectors is not None:
                self._put(event.indices, event.vectors)
        self._done += len(event.indices)
        if self._report is not None:
            self._report(self._done)

    def _put(self, indices: tuple[int, ...], vectors: Array) -> None:
        if self._block is None:
            self._dimension, self._dtype = vectors.shape[-1], vectors.dtype
            self._width = len(vectors.data) // max(1, len(indices))
            self._block = bytearray(self._count * self._width)
        data, width = memoryview(vectors.data).cast("B"), self._width
        for place, index in enumerate(indices):
            self._block[index * width : (index + 1) * width] = data[place * width : (place + 1) * width]

    def whole(self) -> Vectors | TokenVectors | SparseVectors:
        """What was asked for: `vectors`, `tokens` or `sparse`."""
        if self.request.output == "sparse":
            return self.sparse()
        return self.tokens() if self.request.output == "tokens" else self.vectors()

    def vectors(self) -> Vectors:
        """The whole block."""
        return Vectors(
            data=bytes(self._block or b""),
            shape=(self._count, self._dimension),
            dtype=self._dtype,
            truncated=tuple(sorted(self._truncated)),
            usage=TokenUsage.of(self._finished.usage),
            metrics=self._finished.metrics,
        )

    def tokens(self) -> TokenVectors:
        """The matrices of all texts."""
        return TokenVectors(
            arrays=tuple(self._tokens[index] for index in range(self._count)),
            truncated=tuple(sorted(self._truncated)),
            usage=TokenUsage.of(self._finished.usage),
            metrics=self._finished.metrics,
        )

    def sparse(self) -> SparseVectors:
        """The sparse vectors of all texts."""
        return SparseVectors(
            vectors=tuple(self._sparse[index] for index in range(self._count)),
            truncated=tuple(sorted(self._truncated)),
            usage=TokenUsage.of(self._finished.usage),
            metrics=self._finished.metrics,
        )

    def rows(self) -> Iterator[Any]:
        """One value a text: a vector, a matrix of token vectors, or a sparse vector."""
        if self._sparse:
            yield from self.sparse()
            return
        if self._tokens:
            yield from self.tokens()
            return
        block, width = bytes(self._block or b""), self._width
        self._block = None
        for index in range(self._count):
            data = block[index * width : (index + 1) * width]
            yield Array(data=data, shape=(self._dimension,), dtype=self._dtype)


def as_matrix(side: Any) -> Any:
    """A side of a comparison as float32 (count, size).

    Raises:
        InvalidParameterError: it is anything else than one vector a text.
    """
    import numpy as np

    with contextlib.suppress(TypeError, ValueError):
        found = np.atleast_2d(np.asarray(side, dtype=np.float32))
        if found.ndim == 2:
            return found
    raise InvalidParameterError(
        "This compares one vector a text, all of one length, and got something else.",
        hint="similarity() compares sparse vectors with sparse ones, and token vectors with token vectors.",
    )


def similarity_of(left: Any, right: Any, function: str) -> Array:
    """Similarity of each row of ``left`` (n, size) with each of ``right`` (m, size): (n, m), float32.

    ``"euclidean"`` and ``"manhattan"`` are negative distances, so that higher is more similar.

    Raises:
        InvalidParameterError: the shapes do not fit, or the function is not known.
    """
    import numpy as np

    a, b = as_matrix(left), as_matrix(right)
    if not len(a) or not len(b) or not a.size or not b.size:
        return _host(np.zeros((len(a) if a.size else 0, len(b) if b.size else 0), dtype=np.float32))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise InvalidParameterError(f"Vectors of the shapes {a.shape} and {b.shape} cannot be compared.")
    if function == "cosine":
        a, b = (side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12) for side in (a, b))
    if function in ("cosine", "dot"):
        result = a @ b.T
    elif function == "euclidean":
        squares = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * (a @ b.T)
        result = -np.sqrt(np.maximum(squares, 0))
    elif function == "manhattan":
        result = -np.stack([np.abs(row - b).sum(axis=1) for row in a])
    else:
        raise InvalidParameterError(f"The similarity function {function!r} is not known.")
    return _host(np.ascontiguousarray(result, dtype=np.float32))


def pairwise_of(left: Any, right: Any, function: str) -> Array:
    """Similarity of each row of ``left`` (n, size) with the same row of ``right``: (n,), float32.

    Raises:
        InvalidParameterError: the shapes differ, or the function is not known.
    """
    import numpy as np

    a, b = as_matrix(left), as_matrix(right)
    if a.shape != b.shape and (a.size or b.size):
        raise InvalidParameterError(
            f"Vectors of the shapes {a.shape} and {b.shape} are no pairs.",
            hint="similarity() compares each row with each.",
        )
    if function == "cosine":
        a, b = (side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12) for side in (a, b))
    if function in ("cosine", "dot"):
        result = (a * b).sum(axis=1)
    elif function == "euclidean":
        result = -np.linalg.norm(a - b, axis=1)
    elif function == "manhattan":
        result = -np.abs(a - b).sum(axis=1)
    else:
        raise InvalidParameterError(f"The similarity function {function!r} is not known.")
    return _host(result.astype(np.float32) if a.size else np.zeros(0, dtype=np.float32))


def _host(values: Any) -> Array:
    return Array(data=values.tobytes(), shape=values.shape, dtype=values.dtype.name)


__all__ = ["Gathered", "Predictions", "TokenVectors", "Vectors", "as_matrix", "pairwise_of", "similarity_of"]
