"""Prompts that are being read, each with a cache of its own until it joins the batch.

A batch pads all its rows to the longest one, so a prompt that takes several steps is read outside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from attrs import define
from mlxengine.toolkit.cache import clear_cache
from mlxengine.toolkit.rows import Row

from ._adapters import Adapters
from ._tags import adapter_of

MOST = 8  # prompts that are read in one padded pass


@define(eq=False)
class Reading:
    """A row whose prompt is not read yet.

    Args:
        row: the row.
        tokens: everything that has to be in the cache, but for the last, which is decoded.
        layers: its cache; ``None`` while that is empty.
        held: the tokens in the cache.
        border: after so many tokens the cache is kept for others, then reading goes on.
    """

    row: Row
    tokens: list[int]
    layers: list[Any] | None
    held: list[int]
    border: int | None = None

    @property
    def left(self) -> int:
        """Tokens to go, the last one included."""
        return len(self.tokens) - len(self.held)


class Readings:
    """The prompts of one batch that wait or are being read.

    Args:
        network: mlx-lm's module.
        adapters: of the network.
        caches: makes the empty caches of a row.
        keep: told of a prompt that has come to its border.
        together: most tokens of a prompt that is read in one pass with others; ``None`` for any.
    """

    def __init__(
        self,
        network: Any,
        adapters: Adapters,
        caches: Callable[[], list[Any]],
        keep: Callable[[Reading], None],
        together: int | None = None,
    ) -> None:
        self._together = together
        self._network = network
        self._keep = keep
        self._caches = caches
        self._adapters = adapters
        self._entries: list[Reading] = []
        self._seconds = 0.0  # time to read a token, smoothed

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Reading) -> None:
        """Queue a prompt."""
        self._entries.append(entry)

    def take(self, row: Row) -> Reading | None:
        """Remove the entry of a row, if there is one."""
        entry = next((item for item in self._entries if item.row is row), None)
        if entry is not None:
            self._entries.remove(entry)
        return entry

    def ready(self, chunk: int) -> list[Reading]:
        """Remove and return the next prompts that one step can read whole, in one pass, little padded."""
        found: list[Reading] = []
        for entry in self._ranked():
            alike = not found or len(entry.held) == len(found[0].held)
            long = self._together is not None and len(entry.tokens) > self._together and entry.left > 1
            if long or entry.border is not None or entry.left > chunk or not alike or len(found) == MOST:
                break
            chunk -= entry.left
            found.append(entry)
        for entry in found:
            self._entries.remove(entry)
        return found

    def read(self, chunk: int) -> int:
        """Read at most ``chunk`` tokens of the next prompt, all but its last one; how many it was."""
        if not self._entries:
            return 0
        entry = self._ranked()[0]
        if entry.layers is None:
            entry.layers = self._caches()
        end = len(entry.tokens) - 1 if entry.border is None else entry.border
        piece = entry.tokens[len(entry.held) : min(len(entry.held) + chunk, end)]
        began = time.perf_counter()
        self._adapters.use(adapter_of(entry.row))
        self._network(mx.array([piece]), cache=entry.layers)
        mx.eval([layer.state for layer in entry.layers])
        clear_cache()
        entry.held = entry.held + piece
        if len(entry.held) == entry.border:
            entry.border = None
            self._keep(entry)
        self._seconds += 0.2 * ((time.perf_counter() - began) / len(piece) - self._seconds)
        return len(piece)

    def clear(self) -> None:
        """Forget all of them."""
        self._entries.clear()

    def _ranked(self) -> list[Reading]:
        now = time.monotonic()
        return sorted(self._entries, key=lambda item: item.row.standing(now, item.left * self._seconds))


__all__ = ["Reading", "Readings"]
