"""What the handles of embedding models share, for threads and for asyncio: all but the waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict, TypeGuard, TypeVar

from attrs import evolve, frozen

from ..contract._convert import only
from ..contract.events import Array, Event
from ..errors import InvalidParameterError
from ._vectors import Gathered, similarity_of
from .outputs import Scores
from .requests import EmbedRequest, RankRequest

Texts = str | Sequence[str] | Sequence[Sequence[int]]
T = TypeVar("T")
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
    """The same options, and those that say which prompt is put before the texts."""

    prompt: str | None
    prompt_name: str | None


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

    def _with_prompt(self, candidates: Sequence[str], options: VectorOptions) -> EmbedOptions:
        """The options with the first of these prompts that the model has; else with none, nor its default."""
        only(options, VectorOptions, "progress")
        prompts = self.info.get("prompts") or {}
        name = next((name for name in candidates if prompts.get(name)), None)
        return {"prompt": "" if name is None else None, "prompt_name": name, **options}

    def _gathering(
        self,
        request: EmbedRequest,
        progress: ProgressReport | None,
        before: int = 0,
        total: int | None = None,
    ) -> Gathered:
        """An empty place for the vectors of a request; ``before`` texts of ``total`` are done already."""
        report = None if progress is None else lambda done: progress(before + done, total)
        return Gathered(request, int(self.info.get("dimension") or 0), report)

    def _similarity(self, left: Any, right: Any) -> Array:
        return similarity_of(left, right, str(self.info.get("similarity") or "cosine"))


def embed_request(texts: Texts, output: str, options: EmbedOptions) -> EmbedRequest:
    """Texts and what a call says of them as a request."""
    only(options, EmbedOptions, "output", "progress")
    return EmbedRequest(texts=as_tuple(texts), output=output, **options)


def piecewise(output: str, options: EmbedOptions) -> Callable[[Sequence[str]], EmbedRequest]:
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
        query, documents, batch_tokens: see `RankRequest`.
        top_k: how many to return; ``None`` returns all.
        progress: called with how many documents are done, and of how many.
    """

    def __init__(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_k: int | None,
        batch_tokens: int | None,
        progress: ProgressReport | None,
    ) -> None:
        if top_k is not None and top_k < 1:
            raise InvalidParameterError(f"top_k must be at least 1, found {top_k}.")
        self.request = RankRequest(query=query, documents=as_tuple(documents), batch_tokens=batch_tokens)
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


def as_tuple(texts: str | Sequence[T]) -> tuple[str | T, ...]:
    if isinstance(texts, str):
        return (texts,)
    if not isinstance(texts, Iterable):
        raise InvalidParameterError(f"texts must be a str or a sequence of str, found {texts!r}.")
    return tuple(texts)


def are_texts(value: Any) -> TypeGuard[Texts]:
    """Whether a side of a comparison is given as texts, and not as vectors."""
    several = isinstance(value, list | tuple) and bool(value) and isinstance(value[0], str)
    return isinstance(value, str) or several


def matrix(value: Any) -> Any:
    return value.numpy() if isinstance(value, Array) else value
