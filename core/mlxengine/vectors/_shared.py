"""What the handles of embedding models share, for threads and for asyncio: all but the waiting."""

from __future__ import annotations

import reprlib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

from attrs import evolve, frozen

from ..contract._convert import only
from ..contract.events import Array, Event, Finished
from ..contract.media import ImagePart
from ..contract.tokens import TokenUsage
from ..errors import InvalidParameterError
from ._late import Late, late_side
from ._sparse import sparse_side, sparse_similarity
from ._vectors import Gathered, Predictions, pairwise_of, similarity_of
from .outputs import Scores
from .requests import EmbedRequest, PredictRequest, RankRequest

Input = str | ImagePart
Texts = Input | Sequence[str] | Sequence[Input] | Sequence[Sequence[int]]
ProgressReport = Callable[[int, int | None], None]
Ranges = tuple[Sequence[float], Sequence[float]]

QUERY = ("query",)
DOCUMENT = ("document", "passage", "corpus")
ITERATOR_CHUNK = 2048
"""Texts of an iterator that make one request."""


class VectorOptions(TypedDict, total=False):
    """What a call may say about its vectors; `EmbeddingHandle.embed` says what each means."""

    normalize: bool | None
    truncate_dim: int | None
    precision: str
    batch_tokens: int | None
    ranges: Ranges | None


class EmbedOptions(VectorOptions, total=False):
    """The same options, and those that say what the texts are and which prompt is put before them."""

    prompt: str | None
    prompt_name: str | None
    task: str | None


class RankOptions(TypedDict, total=False):
    """What a call may say about its scores; `EmbeddingHandle.rank` says what each means."""

    prompt: str | None
    prompt_name: str | None
    batch_tokens: int | None


class PredictOptions(RankOptions, total=False):
    """The same for `EmbeddingHandle.predict`."""

    activation: str | None


@frozen(kw_only=True)
class Ranked:
    """A document's place in a ranking: its position in the input, its text, and its score."""

    index: int
    score: float
    document: str


class Embedder:
    """What both handles know of their model, by its ``info``, and make of texts and events."""

    info: Mapping[str, Any]

    @property
    def dimension(self) -> int | None:
        """Length of a vector; ``None`` for a reranker."""
        found: int | None = self.info.get("dimension")
        return found

    def _with_task(self, task: str, options: VectorOptions) -> EmbedOptions:
        only(options, VectorOptions, "progress")
        return {"prompt": None, "prompt_name": None, "task": task, **options}

    def _for_task(self, options: EmbedOptions) -> EmbedOptions:
        """The options, where they name a task alone, with the model's prompt for it, or with none."""
        if not options.get("task") or not (options.get("prompt") is options.get("prompt_name") is None):
            return options
        candidates = QUERY if options["task"] == "query" else DOCUMENT
        prompts = self.info.get("prompts") or {}
        name = next((name for name in candidates if prompts.get(name)), None)
        return {**options, "prompt": "" if name is None else None, "prompt_name": name}

    def _gathering(
        self,
        request: EmbedRequest,
        progress: ProgressReport | None,
        before: int = 0,
        total: int | None = None,
    ) -> Gathered:
        """An empty place for the vectors of a request; ``before`` texts of ``total`` are done already."""
        check_progress(progress)
        report = None if progress is None else lambda done: progress(before + done, total)
        return Gathered(request, int(self.info.get("dimension") or 0), report)

    def _compared(
        self, left: Any, right: Any, progress: ProgressReport | None
    ) -> tuple[list[Any], list[tuple[int, Gathered]]]:
        """The sides of a comparison; of each that is texts its place and where its vectors gather."""
        check_progress(progress)
        sides = [side_of(left)] if right is None else [side_of(left), side_of(right)]
        texts = [(place, side) for place, side in enumerate(sides) if isinstance(side, tuple)]
        total, done = sum(len(side) for _, side in texts), 0
        gathered = []
        output = self.info.get("output") or "pooled"
        for place, side in texts:
            # Where queries are read otherwise than documents, the left side are queries.
            task = ("query", "document")[place] if output == "tokens" and right is not None else None
            request = embed_request(side, output, self._for_task({"task": task}))
            gathered.append((place, self._gathering(request, progress, done, total)))
            done += len(side)
        return sides, gathered

    def _function(self) -> str:
        return str(self.info.get("similarity") or "cosine")

    def _late(self, sides: Sequence[Any]) -> Late | None:
        """What compares the first side with the last where they are token vectors."""
        left, right = late_side(sides[0]), late_side(sides[-1])
        return None if left is None or right is None else Late(left, right)

    def _similarity(self, sides: Sequence[Any]) -> Array:
        """Of the first side with the last."""
        sparse = sparse_side(sides[0]), sparse_side(sides[-1])
        if sparse[0] is not None and sparse[1] is not None:
            own = self.info.get("sparse_similarity")  # of a model that also makes dense vectors
            return sparse_similarity(sparse[0], sparse[1], str(own or self._function()))
        return similarity_of(sides[0], sides[-1], self._function())

    def _pairwise(self, sides: Sequence[Any]) -> Array:
        """Of each row of the first side with the same row of the last."""
        return pairwise_of(sides[0], sides[-1], self._function())


def check_progress(progress: object) -> None:
    """Refuse what cannot be called."""
    if progress is not None and not callable(progress):
        raise InvalidParameterError(
            f"progress must be a function of two numbers, found {progress!r}.",
            hint="Give progress=print to see them.",
        )


def embed_request(texts: Texts, output: str, options: EmbedOptions) -> EmbedRequest:
    """Texts and what a call says of them as a request."""
    only(options, EmbedOptions, "output", "progress")
    return EmbedRequest(texts=as_tuple(texts), output=output, **options)


def piecewise(output: str, options: EmbedOptions) -> Callable[[Sequence[Input]], EmbedRequest]:
    """What makes a request of each piece of an iterator's texts.

    Raises:
        InvalidParameterError: the vectors of one piece could not be compared with those of another.
    """
    template = embed_request((), output, options)
    if template.precision in ("int8", "uint8") and template.ranges is None:
        raise InvalidParameterError(
            f"precision={template.precision!r} of an iterator needs the range of each dimension first.",
            hint="Give ranges=(lowest, highest), taken from the float32 vectors of a sample.",
        )
    return lambda texts: evolve(template, texts=tuple(texts))


class Ranking:
    """Collects the scores of a request.

    Args:
        query, documents: see `RankRequest`.
        top_k: how many to return; ``None`` returns all.
        progress: called with how many documents are done, and of how many.
        options: see `RankOptions`.
    """

    def __init__(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_k: int | None,
        progress: ProgressReport | None,
        options: RankOptions,
    ) -> None:
        only(options, RankOptions, "top_k", "progress")
        check_progress(progress)
        if top_k is not None and (isinstance(top_k, bool) or not hasattr(top_k, "__index__") or top_k < 1):
            raise InvalidParameterError(f"top_k must be at least 1, found {top_k!r}.")
        self.request = RankRequest(query=query, documents=as_tuple(documents), **options)
        self._top_k = top_k
        self._progress = progress
        self._scores: dict[int, float] = {}

    def add(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, Scores):
            self._scores.update(zip(event.indices, event.scores, strict=True))
            if self._progress is not None:
                self._progress(len(self._scores), len(self.request.documents))

    def best(self) -> tuple[Ranked, ...]:
        """The documents by their scores, best first; of equal ones the earlier."""
        scores, documents = self._scores, self.request.documents
        order = sorted(scores, key=lambda index: (-scores[index], index))[: self._top_k]
        return tuple(Ranked(index=i, score=scores[i], document=documents[i]) for i in order)


_UNORDERED = (Mapping, set, frozenset, bytes, bytearray, memoryview)


class Predicting:
    """Collects the scores of pairs.

    Args:
        pairs: see `PredictRequest`.
        labels: the model's names of its labels.
        progress: called with how many pairs are done, and of how many.
        options: see `PredictOptions`.
    """

    def __init__(
        self,
        pairs: Iterable[Sequence[str]],
        *,
        labels: Sequence[str],
        progress: ProgressReport | None,
        options: PredictOptions,
    ) -> None:
        only(options, PredictOptions, "progress")
        check_progress(progress)
        self.request = PredictRequest(pairs=pairs, **options)
        self._progress = progress
        self._names = tuple(labels)
        self._labels = max(1, len(self._names))
        self._scores: dict[int, tuple[float, ...]] = {}
        self._finished = Finished()

    def add(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, Finished):
            self._finished = event
        if isinstance(event, Scores):
            self._labels = event.labels
            for place, index in enumerate(event.indices):
                start = place * event.labels
                self._scores[index] = event.scores[start : start + event.labels]
            if self._progress is not None:
                self._progress(len(self._scores), len(self.request.pairs))

    def whole(self) -> Predictions:
        """The scores in the order of the pairs."""
        count = len(self.request.pairs)
        flat = array("f", (score for index in range(count) for score in self._scores[index]))
        return Predictions(
            data=flat.tobytes(),
            shape=(count,) if self._labels == 1 else (count, self._labels),
            dtype="float32",
            labels=self._names,
            usage=TokenUsage.of(self._finished.usage),
            metrics=self._finished.metrics,
        )


def as_tuple(texts: Any) -> tuple[Any, ...]:
    """Texts, pictures, or the token ids of each, as a tuple; a single text or picture is one of them."""
    if isinstance(texts, str | ImagePart):
        return (texts,)
    if isinstance(texts, _UNORDERED) or not isinstance(texts, Iterable):
        raise InvalidParameterError(
            f"texts must be a str or a sequence of str, found {reprlib.repr(texts)}.",
            hint="Give a list, so that each vector has its place.",
        )
    return tuple(texts)


def side_of(value: Any) -> Any:
    """A side of a comparison as a tuple of texts, a matrix of vectors, or a list of others."""
    import numpy as np

    if (kept := late_side(value) or sparse_side(value)) is not None:
        return list(kept)  # a tuple is texts
    if isinstance(value, str | ImagePart | Mapping | set | frozenset | bytes | bytearray | memoryview):
        return as_tuple(value)
    if not hasattr(value, "__iter__"):
        return as_tuple(value)
    if isinstance(value, Array):
        return value.numpy()
    if isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype.kind in "fiu":
        return value  # as it is: it may lie in a file
    listed = value if hasattr(value, "dtype") and value.dtype != object else list(value)
    if not len(listed) or isinstance(listed[0], str | ImagePart):
        return tuple(listed)
    try:
        return np.atleast_2d(np.asarray(listed, dtype=np.float32))
    except (TypeError, ValueError) as error:
        raise InvalidParameterError(
            f"A side must be texts, or vectors of equal lengths; it cannot be read as vectors: {error}.",
        ) from error
