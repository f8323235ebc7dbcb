"""Rows that may use an adapter, and what is kept of their prompts, apart for each adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from .answers import Answer
from .row import Row


class AdaptedAnswer(Answer):
    """An answer to a request that may use an adapter."""

    adapter: str | None = None


def adapter_of(row: Row) -> str | None:
    """The adapter of a row."""
    return row.adapter if isinstance(row, AdaptedAnswer) else None


class Keeps(Protocol):
    """A cache whose size is known and can be cut."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        ...

    def trim(self, most: int) -> None:
        """Let go of what is held until it is at most so many bytes."""
        ...

    def clear(self) -> None:
        """Forget everything."""
        ...


C = TypeVar("C", bound=Keeps)


class ByAdapter(Generic[C]):
    """A cache of what was computed with each adapter, which is no other's; made when it is needed.

    Args:
        base: that of the plain weights; ``None`` where nothing is kept.
        make: makes an empty one.
    """

    def __init__(self, base: C | None, make: Callable[[], C]) -> None:
        self.base = base
        self._make = make
        self.adapted: dict[str, C] = {}

    def __call__(self, adapter: str | None) -> C | None:
        """The cache for an adapter, or for the plain weights."""
        if self.base is None or adapter is None:
            return self.base
        if adapter not in self.adapted:
            self.adapted[adapter] = self._make()
        return self.adapted[adapter]

    @property
    def nbytes(self) -> int:
        """Bytes held in all of them."""
        return sum(item.nbytes for item in self._all())

    def trim(self, most: int) -> None:
        """Let go of what is held until it is at most so many bytes, those of adapters first."""
        for item in self._all():
            item.trim(max(0, item.nbytes - (self.nbytes - most)))

    def forget(self, adapter: str) -> None:
        """An adapter is gone, and so is what was computed with it."""
        self.adapted.pop(adapter, None)

    def clear(self) -> None:
        """Forget everything."""
        self.adapted.clear()
        if self.base is not None:
            self.base.clear()

    def _all(self) -> list[C]:
        return [*self.adapted.values(), *([] if self.base is None else [self.base])]


__all__ = ["AdaptedAnswer", "ByAdapter", "Keeps", "adapter_of"]
