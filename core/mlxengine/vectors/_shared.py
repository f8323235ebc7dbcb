"""What the handles of embedding models share, the one for threads and the one for asyncio."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from attrs import frozen

from ..contract.events import Event, Finished
from ..errors import InvalidParameterError
from ._vectors import Gathered
from .outputs import Embeddings

Texts = str | Sequence[str]
ProgressReport = Callable[[int, int | None], None]
Ranges = tuple[Sequence[float], Sequence[float]]


@frozen(kw_only=True)
class Ranked:
    """A document's place in a ranking: its position in the input, its text, and its score."""

    index: int
    score: float
    document: str


class Embedder:
    """What both handles share: what ``info`` says of the model."""

    info: Any

    @property
    def dimension(self) -> int | None:
        """Length of a vector; ``None`` for a reranker."""
        found: int | None = self.info.get("dimension")
        return found

    def _prompt(self, candidates: Sequence[str]) -> tuple[str | None, str | None]:
        """(prompt, prompt_name): the first of these that the model has; else none, nor its default."""
        prompts = self.info.get("prompts") or {}
        name = next((name for name in candidates if prompts.get(name)), None)
        return ("", None) if name is None else (None, name)


QUERY = ("query",)
DOCUMENT = ("document", "passage", "corpus")


def as_tuple(texts: Texts) -> tuple[str, ...]:
    if isinstance(texts, str):
        return (texts,)
    if not isinstance(texts, Iterable):
        raise InvalidParameterError(f"texts must be a str or a sequence of str, found {texts!r}.")
    return tuple(texts)


def drain(
    events: Iterable[Event],
    gathered: Gathered,
    progress: ProgressReport | None,
    before: int,
    total: int | None,
) -> None:
    for event in events:
        if isinstance(event, Embeddings):
            gathered.add(event)
            if progress is not None:
                progress(before + gathered.done, total)
        elif isinstance(event, Finished):
            gathered.finished = event


def ranking(scores: dict[int, float], documents: Sequence[str], top_k: int | None) -> tuple[Ranked, ...]:
    if top_k is not None and top_k < 1:
        raise InvalidParameterError(f"top_k must be at least 1, found {top_k}.")
    order = sorted(scores, key=lambda index: (-scores[index], index))[:top_k]
    return tuple(Ranked(index=i, score=scores[i], document=documents[i]) for i in order)
