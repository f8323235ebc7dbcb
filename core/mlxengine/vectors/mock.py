"""What the mock back end gives for vectors and scores."""

from __future__ import annotations

import array
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from ..contract.events import Array, Event, Finished
from ..contract.kinds import Mock
from ..contract.media import ImagePart
from ..contract.requests import Request
from ..contract.tokens import TokenUsage
from .outputs import Embeddings, Scores
from .requests import EmbedRequest, PredictRequest, RankRequest

DIMENSION = 8


class VectorMock(Mock):
    """Vectors from the texts' hashes, scores from the words that they share with the query."""

    info: ClassVar[Mapping[str, Any]] = {"dimension": DIMENSION, "prompts": {}, "similarity": "cosine"}

    def generate(self, request: Request) -> Iterator[Event | None] | None:
        if isinstance(request, EmbedRequest):
            return _embed(request)
        if isinstance(request, PredictRequest):
            return _predict(request)
        return _rank(request) if isinstance(request, RankRequest) else None


def _embed(request: EmbedRequest) -> Iterator[Event | None]:
    for index, text in enumerate(request.texts):
        digest = hashlib.sha256(str(text).encode()).digest()
        size = min(DIMENSION, request.truncate_dim or DIMENSION)
        values = array.array("f", (byte / 255 for byte in digest[:size]))
        vectors = Array(data=values.tobytes(), shape=(1, size), dtype="float32")
        yield Embeddings(indices=(index,), vectors=vectors, mock=True)
    words = sum(
        len(text.split() if isinstance(text, str) else text)
        for text in request.texts
        if not isinstance(text, ImagePart)
    )
    yield Finished(usage=TokenUsage(prompt_tokens=words), mock=True)


def _rank(request: RankRequest) -> Iterator[Event | None]:
    for index, text in enumerate(request.documents):
        yield Scores(indices=(index,), scores=(_shared(request.query, text),), mock=True)
    yield Finished(mock=True)


def _predict(request: PredictRequest) -> Iterator[Event | None]:
    for index, pair in enumerate(request.pairs):
        yield Scores(indices=(index,), scores=(_shared(*pair),), mock=True)
    yield Finished(mock=True)


def _shared(query: str, text: str) -> float:
    wanted = set(query.lower().split())
    return len(wanted & set(text.lower().split())) / max(1, len(wanted))


__all__ = ["VectorMock"]
