"""What was computed for earlier prompts, kept for those that begin with the same tokens.

An entry is a key-value cache and the tokens that it holds. Finding one compares token ids, so a session,
another caller with the same instructions and a repeated prompt are all served alike. Caches that cannot be
cut back (sliding windows that have moved, recurrent states) serve only prompts that hold all of theirs;
where a second prompt parts from such a one, a checkpoint is kept for the third.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
from attrs import define, field
from mlx_lm.models.cache import ChunkedKVCache

_log = logging.getLogger("mlxengine.llm.prefix")

SMALLEST = 16
"""Prefixes of fewer tokens are not worth keeping."""

WORTH = 64
"""A checkpoint has to save so many tokens."""


@define(eq=False)
class Entry:
    """A cache and its tokens; ``layers`` is ``None`` while it is on disk only."""

    tokens: np.ndarray[Any, Any]
    layers: list[Any] | None
    nbytes: int
    name: str | None = field(default=None)

    @property
    def trimmable(self) -> bool:
        return self.layers is None or all(map(trimmable, self.layers))


class Shelf(Protocol):
    """Where entries outlive the process."""

    def entries(self) -> Sequence[Entry]: ...

    def save(self, entry: Entry) -> None: ...

    def load(self, entry: Entry) -> list[Any] | None: ...


class PrefixCache:
    """Entries of one model, least recently used first, within a budget of bytes in memory.

    Args:
        budget: most bytes of caches to hold; 0 keeps nothing.
        shelf: where entries are also written; ``None`` keeps them in memory only.
        room: bytes that there is room for beside what is held, negative if that is too much already;
            ``None`` where nobody keeps account.
    """

    def __init__(
        self, budget: int, shelf: Shelf | None = None, room: Callable[[], int | None] = lambda: None
    ) -> None:
        self.budget = budget
        self.room = room
        self._shelf = shelf
        self._entries: list[Entry] = list(shelf.entries()) if shelf is not None else []

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return sum(entry.nbytes for entry in self._entries if entry.layers is not None)

    def find(self, prompt: Sequence[int]) -> tuple[list[Any], list[int]] | None:
        """The longest usable prefix of a prompt, always shorter than it: a cache of its own, its tokens."""
        wanted = np.asarray(prompt, dtype=np.int64)
        ranked = sorted(
            ((_common(entry.tokens, wanted), entry) for entry in self._entries),
            key=lambda item: item[0],
            reverse=True,
        )
        for shared, entry in ranked:
            # The last token is always computed: it is what the first answer token is drawn from.
            length = min(shared, len(wanted) - 1)
            if length < SMALLEST:
                return None
            if entry.layers is None and not self._fetch(entry):
                continue
            surplus = len(entry.tokens) - length
            if surplus and not entry.trimmable:
                continue
            assert entry.layers is not None
            layers = [clone(layer) for layer in entry.layers]
            if surplus:
                for layer in layers:
                    layer.trim(surplus)
            self._touch(entry)
            return layers, [int(token) for token in wanted[:length]]
        return None

    def parting(self, prompt: Sequence[int], held: int) -> int | None:
        """Where a prompt parts from an earlier one whose cache cannot be cut back to that place.

        It is worth a checkpoint there, for the next one that begins alike, if that saves much over the
        ``held`` tokens that were found.
        """
        wanted = np.asarray(prompt, dtype=np.int64)
        fixed = (entry for entry in self._entries if entry.layers is not None and not entry.trimmable)
        shared = max((_common(entry.tokens, wanted) for entry in fixed), default=0)
        shared = min(shared, len(wanted) - 1)
        return shared if shared - held >= WORTH else None

    def add(self, layers: list[Any], tokens: Sequence[int]) -> None:
        """Keep a cache, and let go of what it makes superfluous or what no longer fits."""
        if len(tokens) < SMALLEST or self.budget <= 0:
            return
        array = np.asarray(tokens, dtype=np.int64)
        if any(_common(entry.tokens, array) == len(array) and entry.trimmable for entry in self._entries):
            return
        mx.async_eval([layer.state for layer in layers])  # type: ignore[no-untyped-call]
        entry = Entry(tokens=array, layers=layers, nbytes=sum(layer.nbytes for layer in layers))
        if entry.nbytes > self._allowed():
            return
        if entry.trimmable:  # what is a prefix of the new one is in it
            self._entries = [
                old for old in self._entries if _common(old.tokens, array) < len(old.tokens) or old.name
            ]
        self._entries.append(entry)
        if self._shelf is not None:
            self._shelf.save(entry)
        self._shrink(self._allowed())

    def trim(self, most: int) -> None:
        """Let go of entries until at most so many bytes are held; those on disk stay there."""
        self._shrink(most, spare=0)

    def clear(self) -> None:
        """Forget everything that is in memory."""
        self._entries.clear()

    def _allowed(self) -> int:
        room = self.room()
        return self.budget if room is None else max(0, min(self.budget, self.nbytes + room))

    def _fetch(self, entry: Entry) -> bool:
        assert self._shelf is not None
        layers = self._shelf.load(entry)
        if layers is None:
            self._entries.remove(entry)
            return False
        entry.layers = layers
        entry.nbytes = sum(layer.nbytes for layer in layers)
        self._touch(entry)
        self._shrink(self._allowed())
        return True

    def _touch(self, entry: Entry) -> None:
        self._entries.remove(entry)
        self._entries.append(entry)

    def _shrink(self, most: int, *, spare: int = 1) -> None:
        """Let go of the least recently used, but for the last ``spare`` ones."""
        excess = self.nbytes - most
        for entry in self._entries[: len(self._entries) - spare]:
            if excess <= 0:
                return
            if entry.layers is not None:
                excess -= entry.nbytes
                if entry.name is not None:
                    entry.layers = None
                else:
                    self._entries.remove(entry)


def _common(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> int:
    size = min(len(left), len(right))
    differing = np.flatnonzero(left[:size] != right[:size])
    return int(differing[0]) if differing.size else size


def trimmable(layer: Any) -> bool:
    """Whether a cache can be cut back to any length; a chunk that has let go of its front cannot."""
    if isinstance(layer, ChunkedKVCache) and layer.offset > layer.chunk_size:
        return False
    return bool(layer.is_trimmable())


def clone(layer: Any) -> Any:
    """A cache of its own: caches write into their arrays in place, so these are copied when they are used."""
    found = copy.copy(layer)
    for key, value in vars(found).items():
        if isinstance(value, mx.array):
            setattr(found, key, mx.array(value))
        elif isinstance(value, list | tuple):
            setattr(found, key, type(value)(map(_copied, value)))
    return found


def _copied(item: Any) -> Any:
    if isinstance(item, mx.array):
        return mx.array(item)
    return clone(item) if hasattr(item, "is_trimmable") else item


__all__ = ["SMALLEST", "Entry", "PrefixCache", "Shelf", "clone", "trimmable"]
