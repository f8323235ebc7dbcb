"""One outcome a row, whatever is wrong with other rows of the same request."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from mlxengine.errors import (
    CancelledError,
    ConfigurationError,
    GenerationError,
    InsufficientMemoryError,
    MLXEngineError,
    PluginCrashedError,
)

T = TypeVar("T")
Values = Mapping[str, Any]
Outcome = dict[str, Any] | MLXEngineError
"""The new columns of a row, or why it has none."""

_OF_A_ROW = (GenerationError, ConfigurationError, InsufficientMemoryError, PluginCrashedError)
_TRIES = 4


def each(
    rows: Sequence[Values], ask: Callable[[Values], T], answer: Callable[[Sequence[T]], list[dict[str, Any]]]
) -> list[Outcome]:
    """Ask for rows together; where that is refused, for each half, so that the error is one row's own."""
    outcomes: list[Outcome] = []
    asked: list[tuple[int, T]] = []
    for place, row in enumerate(rows):
        outcomes.append({})
        try:
            asked.append((place, ask(row)))
        except MLXEngineError as error:
            outcomes[place] = error

    def together(items: Sequence[tuple[int, T]]) -> None:
        if not items:
            return
        try:
            found = _patiently(lambda: answer([item for _, item in items]))
        except CancelledError:
            raise
        except _OF_A_ROW as error:
            if len(items) == 1:
                outcomes[items[0][0]] = error
                return
            half = len(items) // 2
            together(items[:half])
            together(items[half:])
            return
        for (place, _), values in zip(items, found, strict=True):
            outcomes[place] = values

    together(asked)
    return outcomes


def _patiently(ask: Callable[[], T]) -> T:
    """Ask again what may succeed later: a queue was full, say."""
    for attempt in range(1, _TRIES):
        try:
            return ask()
        except MLXEngineError as error:
            if not error.recoverable:
                raise
            time.sleep(0.2 * 2**attempt)
    return ask()


__all__ = ["Outcome", "Values", "each"]
