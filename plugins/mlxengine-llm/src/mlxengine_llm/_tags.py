"""Answers that may use an adapter."""

from __future__ import annotations

from mlxengine.toolkit.answers import Answer
from mlxengine.toolkit.rows import Row


class AdaptedAnswer(Answer):
    """An answer to a request that may use an adapter."""

    adapter: str | None = None


def adapter_of(row: Row) -> str | None:
    """The adapter of a row."""
    return row.adapter if isinstance(row, AdaptedAnswer) else None


__all__ = ["AdaptedAnswer", "adapter_of"]
