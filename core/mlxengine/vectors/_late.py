"""Late interaction: how similar texts are of which there is one vector a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..contract.events import Array, Event
from ._vectors import TokenVectors
from .outputs import Similarities
from .requests import MaxSimRequest


def late_side(value: Any) -> Sequence[Array] | None:
    """A side of a comparison if it is one matrix a text, else ``None``."""
    if isinstance(value, TokenVectors):
        return value.arrays
    if not isinstance(value, list | tuple) or not value:
        return None
    return value if all(isinstance(item, Array) and len(item.shape) == 2 for item in value) else None


class Late:
    """Collects the scores of a request.

    Args:
        queries, documents: see `MaxSimRequest`.
    """

    def __init__(self, queries: Sequence[Array], documents: Sequence[Array]) -> None:
        self.request = MaxSimRequest(queries=tuple(queries), documents=tuple(documents))
        self._blocks: dict[int, Array] = {}

    def add(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, Similarities):
            self._blocks[event.start] = event.scores

    def whole(self) -> Array:
        """float32 (queries, documents)."""
        import numpy as np

        blocks = [self._blocks[start].numpy() for start in sorted(self._blocks)]
        empty: Any = np.zeros((len(self.request.queries), 0), dtype=np.float32)
        scores: Any = np.ascontiguousarray(np.concatenate([empty, *blocks], axis=1))
        return Array(data=scores.tobytes(), shape=scores.shape, dtype="float32")


__all__ = ["Late", "late_side"]
