"""What the vision encoder made of pictures, kept between requests.

It is keyed by the *content* of the media, not by their placeholders: the same text about another picture has
the same token ids and must never find the first one's features.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import mlx.core as mx
from mlxengine.toolkit.prefix import allowed

from ._prefill import Features


class FeatureCache:
    """Features of requests' media, least recently used first to go.

    Args:
        budget: most bytes to hold.
        room: as in `mlxengine.toolkit.prefix.PrefixCache`.
    """

    def __init__(self, budget: int, room: Callable[[], int | None] = lambda: None) -> None:
        self._budget = budget
        self.room = room
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
        most = allowed(self._budget, self.nbytes, self.room())
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


__all__ = ["FeatureCache"]
