"""Which adapter each row of a batch uses, kept where mlx-lm's batches keep everything that belongs to a row.

mlx-lm joins, splits and filters the rows of its batches inside one step; what they do to the caches of the
layers they also do to one more "cache" that holds names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlxengine.toolkit.answers import Answer
from mlxengine.toolkit.rows import Row

from ._adapters import Adapters


class AdaptedAnswer(Answer):
    """An answer to a request that may use an adapter."""

    adapter: str | None = None


def adapter_of(row: Row) -> str | None:
    """The adapter of a row."""
    return row.adapter if isinstance(row, AdaptedAnswer) else None


class Tags:
    """The adapter of each row, with the methods that mlx-lm calls on a batch's caches."""

    nbytes = 0
    state = ()

    def __init__(self, names: Sequence[str | None]) -> None:
        self.names = list(names)

    @classmethod
    def merge(cls, parts: Sequence[Tags]) -> Tags:
        return cls([name for part in parts for name in part.names])

    def extend(self, other: Tags) -> None:
        self.names += other.names

    def filter(self, keep: Sequence[int]) -> None:
        self.names = [self.names[at] for at in keep]

    def extract(self, at: int) -> Tags:
        return Tags(self.names[at : at + 1])

    def prepare(self, **_padding: Any) -> None:
        """Names need no padding."""

    def finalize(self) -> None:
        """Nothing was padded."""


class TaggedNetwork:
    """A network whose last cache is the rows' `Tags`: it chooses the adapters before each pass."""

    def __init__(self, network: Any, adapters: Adapters) -> None:
        self._network = network
        self._adapters = adapters

    def __call__(self, tokens: mx.array, cache: Sequence[Any]) -> Any:
        self._adapters.use(*cache[-1].names)
        return self._network(tokens, cache=cache[:-1])


__all__ = ["AdaptedAnswer", "TaggedNetwork", "Tags", "adapter_of"]
