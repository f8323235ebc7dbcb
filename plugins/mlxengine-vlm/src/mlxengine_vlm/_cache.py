"""What is kept between requests: caches of prompts, and what the vision encoder made of pictures.

Both are keyed by the *content* of the media, not by their placeholders: the same text about another
picture has the same token ids and must never find the first one's state.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from attrs import frozen

from ._prefill import Features


@frozen(eq=False)
class _Entry:
    ids: Any  # int64, shape (tokens,)
    media: tuple[str, ...]
    caches: list[Any]
    nbytes: int


class PrefixCache:
    """KV caches of prompts that were read, least recently used first to go.

    Args:
        capacity: most bytes to hold.
        room: bytes that there is room for beside what is held; ``None`` where nobody keeps account.
    """

    SHORTEST = 8
    """A shorter prefix is not worth looking for."""

    def __init__(self, capacity: int, room: Callable[[], int | None] = lambda: None) -> None:
        self._capacity = capacity
        self._room = room
        self._entries: list[_Entry] = []
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(
        self, ids: Sequence[int], media: tuple[str, ...], placeholders: Any
    ) -> tuple[list[Any], int] | None:
        """Caches that hold the longest known beginning of a prompt, and how many tokens that is.

        At least one token of the prompt is left over. ``placeholders`` says for each token whether it
        stands for media; a beginning never ends inside a picture.
        """
        wanted = np.asarray(ids, dtype=np.int64)
        best: tuple[int, _Entry] | None = None
        for entry in self._entries:
            length = self._shared(entry, wanted, media, placeholders)
            if length >= self.SHORTEST and (best is None or length > best[0]):
                best = (length, entry)
        if best is None:
            return None
        length, entry = best
        self._entries.remove(entry)
        self._entries.append(entry)
        caches = snapshot(entry.caches)
        surplus = len(entry.ids) - length
        if surplus:
            for part in caches:
                part.trim(surplus)
        return caches, length

    def keep(self, ids: Sequence[int], media: tuple[str, ...], caches: Sequence[Any]) -> None:
        """Remember the caches of a prompt (or of its beginning); arrays are shared, not copied."""
        wanted = np.asarray(ids, dtype=np.int64)
        nbytes = sum(int(part.nbytes) for part in caches)
        most = allowed(self._capacity, self.nbytes, self._room())
        if nbytes > most or len(ids) < self.SHORTEST:
            return
        for entry in list(self._entries):  # what a trimmable longer one covers is not needed any more
            same = np.array_equal(entry.ids, wanted[: len(entry.ids)])
            if same and entry.media == media and (len(entry.ids) == len(wanted) or trimmable(entry.caches)):
                self._drop(entry)
        self._entries.append(_Entry(wanted, media, snapshot(caches), nbytes))
        self.nbytes += nbytes
        self.trim(most)

    def trim(self, most: int) -> None:
        """Let go of the least recently used until at most so many bytes are held."""
        while self._entries and self.nbytes > most:
            self._drop(self._entries[0])

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.nbytes = 0

    def _drop(self, entry: _Entry) -> None:
        self._entries.remove(entry)
        self.nbytes -= entry.nbytes

    def _shared(self, entry: _Entry, ids: Any, media: tuple[str, ...], placeholders: Any) -> int:
        size = min(len(entry.ids), len(ids) - 1)
        differ = np.flatnonzero(entry.ids[:size] != ids[:size])
        length = int(differ[0]) if differ.size else size
        first = int(np.argmax(placeholders)) if placeholders.any() else len(ids)
        common = min(len(entry.media), len(media))
        if entry.media[:common] != media[:common]:
            length = min(length, first)
        while 0 < length < len(ids) and placeholders[length] and placeholders[length - 1]:
            length -= 1
        if length < len(entry.ids) and not trimmable(entry.caches):
            return 0
        return length


class FeatureCache:
    """What the vision encoder made of a request's media, by the media's content; least recently used goes."""

    def __init__(self, capacity: int, room: Callable[[], int | None] = lambda: None) -> None:
        self._capacity = capacity
        self._room = room
        self._found: OrderedDict[tuple[str, ...], Features] = OrderedDict()
        self.nbytes = 0

    def get(self, media: tuple[str, ...]) -> Features | None:
        """The features of these media in this order."""
        found = self._found.get(media)
        if found is not None:
            self._found.move_to_end(media)
        return found

    def put(self, media: tuple[str, ...], features: Features) -> None:
        """Keep features; they are computed with what is queued next."""
        most = allowed(self._capacity, self.nbytes, self._room())
        if media in self._found or features.nbytes > most:
            return
        mx.async_eval(features.vectors, *features.deepstack)  # type: ignore[no-untyped-call]
        self._found[media] = features
        self.nbytes += features.nbytes
        self.trim(most)

    def trim(self, most: int) -> None:
        """Let go of the least recently used until at most so many bytes are held."""
        while self._found and self.nbytes > most:
            _, old = self._found.popitem(last=False)
            self.nbytes -= old.nbytes

    def clear(self) -> None:
        """Forget everything."""
        self._found.clear()
        self.nbytes = 0


def allowed(capacity: int, held: int, room: int | None) -> int:
    """Bytes that a cache may hold: its capacity, and what it holds with the room that is left."""
    return capacity if room is None else max(0, min(capacity, held + room))


def trimmable(caches: Sequence[Any] | None) -> bool:
    """Whether tokens can be taken off the end of all of these caches."""
    return all(part.is_trimmable() for part in caches or ())


def snapshot(caches: Sequence[Any]) -> list[Any]:
    """Copies that later updates of the originals do not touch.

    Memory is shared until one of them is written to. The array objects are new ones: writing into a part
    of an array (``keys[..., a:b, :] = new``) changes the object that it is done to, for all who hold it.
    """
    copies = []
    for part in caches:
        made = copy.copy(part)
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


__all__ = ["FeatureCache", "PrefixCache", "snapshot", "trimmable"]
