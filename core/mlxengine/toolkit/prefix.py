"""What was computed for earlier prompts, kept for those that begin with the same tokens.

An entry is a key-value cache and the tokens that it holds. Finding one compares token ids, so a session,
another caller with the same instructions and a repeated prompt are all served alike. Of pictures and sound,
whose placeholders are all the same, it compares the names of their content too. Caches that cannot be cut
back (sliding windows that have moved, recurrent states) serve only prompts that hold all of theirs; where a
second prompt parts from such a one, a checkpoint is kept for the third.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
from attrs import define, field

SMALLEST = 16
"""Prefixes of fewer tokens are not worth keeping."""

WORTH = 64
"""A checkpoint has to save so many tokens."""

Tokens = np.ndarray[Any, Any]


@define(eq=False)
class Entry:
    """A cache and its tokens; ``layers`` is ``None`` while it is on disk only.

    ``media`` names the content behind the placeholders among the tokens, in order.
    """

    tokens: Tokens
    layers: list[Any] | None
    nbytes: int
    name: str | None = field(default=None)
    media: tuple[str, ...] = field(default=())

    @property
    def trimmable(self) -> bool:
        """Whether it can be cut back to any length, as far as that is known."""
        return self.layers is None or trimmable(self.layers)


class Shelf(Protocol):
    """Where entries outlive the process."""

    def entries(self) -> Sequence[Entry]:
        """What is there, least recently used first."""
        ...

    def save(self, entry: Entry) -> None:
        """Write an entry, and give it its name there if that went well."""
        ...

    def load(self, entry: Entry) -> list[Any] | None:
        """The caches of an entry; ``None`` if they are lost."""
        ...


class PrefixCache:
    """Entries of one model, least recently used first, within a budget of bytes in memory.

    Args:
        budget: most bytes of caches to hold; 0 keeps nothing.
        shelf: where entries are also written; ``None`` keeps them in memory only.
        room: bytes that there is room for beside what is held, negative if that is too much already;
            ``None`` where nobody keeps account.
        size: bytes of caches and of the tokens in them, where these are not told by the caches.
    """

    def __init__(
        self,
        budget: int,
        shelf: Shelf | None = None,
        room: Callable[[], int | None] = lambda: None,
        size: Callable[[Sequence[Any], int], int] | None = None,
    ) -> None:
        self.budget = budget
        self.room = room
        self._size = size or _size
        self._shelf = shelf
        self._entries: list[Entry] = list(shelf.entries()) if shelf is not None else []

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return sum(entry.nbytes for entry in self._entries if entry.layers is not None)

    def lengths(self) -> list[int]:
        """The tokens of each entry."""
        return [len(entry.tokens) for entry in self._entries]

    def find(
        self, prompt: Sequence[int], media: tuple[str, ...] = (), places: Tokens | None = None
    ) -> tuple[list[Any], list[int]] | None:
        """The longest usable prefix of a prompt, always shorter than it: a cache of its own, its tokens.

        Args:
            prompt: token ids.
            media: names of the content that placeholders among them stand for, in order.
            places: for each token whether it is such a placeholder, shape (tokens,), bool; a prefix never
                ends among those of one picture.
        """
        wanted = np.asarray(prompt, dtype=np.int64)
        ranked = sorted(
            ((_shared(entry, wanted, media, places), entry) for entry in self._entries),
            key=lambda item: item[0],
            reverse=True,
        )
        for length, entry in ranked:
            if length < SMALLEST:
                return None
            if entry.layers is None and not self._fetch(entry):
                continue
            surplus = len(entry.tokens) - length
            if surplus and not entry.trimmable:
                continue
            assert entry.layers is not None
            layers = snapshot(entry.layers)
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

    def add(
        self,
        layers: Sequence[Any],
        tokens: Sequence[int],
        media: tuple[str, ...] = (),
        *,
        goes_on: bool = False,
    ) -> None:
        """Keep a cache, and let go of what it makes superfluous or what no longer fits.

        Args:
            layers: the cache; its arrays are shared, not copied.
            tokens: what it holds.
            media: names of the content that placeholders among them stand for.
            goes_on: the row will leave more behind. What can be cut back is not written to disk then.
        """
        if len(tokens) < SMALLEST or self.budget <= 0:
            return
        array = np.asarray(tokens, dtype=np.int64)
        if any(_covers(entry, array, media) and entry.trimmable for entry in self._entries):
            return
        mx.async_eval([layer.state for layer in layers])  # type: ignore[no-untyped-call]
        size = self._size(layers, len(tokens))
        entry = Entry(tokens=array, layers=snapshot(layers), nbytes=size, media=media)
        if entry.nbytes > allowed(self.budget, self.nbytes, self.room()):
            return
        if entry.trimmable:  # what is a prefix of the new one is in it
            self._entries = [
                old for old in self._entries if old.name or not _covers(entry, old.tokens, old.media)
            ]
        self._entries.append(entry)
        if self._shelf is not None and not (goes_on and entry.trimmable):
            self._shelf.save(entry)
        self._shrink(allowed(self.budget, self.nbytes, self.room()))

    def trim(self, most: int) -> None:
        """Let go of entries until at most so many bytes are held; those on disk stay there."""
        self._shrink(most, spare=0)

    def clear(self) -> None:
        """Forget everything that is in memory."""
        self._entries.clear()

    def _fetch(self, entry: Entry) -> bool:
        assert self._shelf is not None
        layers = self._shelf.load(entry)
        if layers is None:
            self._entries.remove(entry)
            return False
        entry.layers = layers
        entry.nbytes = self._size(layers, len(entry.tokens))
        self._touch(entry)
        self._shrink(allowed(self.budget, self.nbytes, self.room()))
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


def _size(layers: Sequence[Any], _tokens: int) -> int:
    return sum(layer.nbytes for layer in layers)


def allowed(budget: int, held: int, room: int | None) -> int:
    """Bytes that may be kept: the budget, and what is held with the room that is left."""
    return budget if room is None else max(0, min(budget, held + room))


def _common(left: Tokens, right: Tokens) -> int:
    size = min(len(left), len(right))
    differing = np.flatnonzero(left[:size] != right[:size])
    return int(differing[0]) if differing.size else size


def _covers(entry: Entry, tokens: Tokens, media: tuple[str, ...]) -> bool:
    """Whether an entry holds all of that."""
    return _common(entry.tokens, tokens) == len(tokens) and entry.media[: len(media)] == media


def _shared(entry: Entry, wanted: Tokens, media: tuple[str, ...], places: Tokens | None) -> int:
    """Tokens of a prompt that an entry serves, but for how its caches can be cut."""
    # The last token is always computed: it is what the first answer token is drawn from.
    length = min(_common(entry.tokens, wanted), len(wanted) - 1)
    if places is None or not places.any():
        return length
    common = min(len(entry.media), len(media))
    if entry.media[:common] != media[:common]:
        length = min(length, int(np.argmax(places)))
    while 0 < length < len(wanted) and places[length] and places[length - 1]:
        length -= 1
    return length


def trimmable(layers: Sequence[Any]) -> bool:
    """Whether caches can be cut back to any length."""
    return all(map(_trimmable, layers))


def _trimmable(layer: Any) -> bool:
    if type(layer).__name__ == "ChunkedKVCache" and layer.offset > layer.chunk_size:
        return False  # it has let go of its front
    return bool(layer.is_trimmable())


def snapshot(layers: Sequence[Any]) -> list[Any]:
    """Copies of caches that later updates of the originals do not touch.

    Memory is shared until one of them is written to. The array objects are new ones: writing into a part
    of an array (``keys[..., a:b, :] = new``) changes the object that it is done to, for all who hold it.
    """
    copies = []
    for layer in layers:
        made = copy.copy(layer)
        for name, value in vars(made).items():
            setattr(made, name, _apart(value))
        copies.append(made)
    return copies


def _apart(value: Any) -> Any:
    if isinstance(value, mx.array):
        return value[...]
    if isinstance(value, list | tuple):
        return type(value)(_apart(item) for item in value)
    return snapshot([value])[0] if hasattr(value, "is_trimmable") else value


__all__ = ["SMALLEST", "Entry", "PrefixCache", "Shelf", "Tokens", "allowed", "snapshot", "trimmable"]
