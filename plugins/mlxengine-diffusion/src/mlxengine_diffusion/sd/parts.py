"""The networks of a model, each of which can be freed after its stage and made again when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from ..backends._slices import warm


class Parts:
    """Networks by name. ``builders`` make one lazily: nothing is read until it is evaluated."""

    def __init__(self, builders: Mapping[str, Callable[[], Any]]) -> None:
        self._builders = dict(builders)
        self._built: dict[str, Any] = {}
        self._users: dict[str, int] = dict.fromkeys(builders, 0)

    def build(self) -> None:
        """Make all of them now, which checks every tensor; still nothing is read."""
        for name in self._builders:
            self._get(name)

    @contextmanager
    def use(self, name: str, *, drop: bool = False) -> Iterator[Any]:
        """The network, kept while in use; afterwards freed if ``drop`` and nobody else uses it."""
        self._users[name] += 1
        try:
            yield self._get(name)
        finally:
            self._users[name] -= 1
            if drop:
                self._drop(name)

    def drop_idle(self) -> None:
        """Free every network that nobody uses at the moment."""
        for name in self._builders:
            self._drop(name)

    def warm(self) -> Iterator[None]:
        """Read the weights, some at a time."""
        yield from warm(list(self._built.values()))

    def _get(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = self._builders[name]()
        return self._built[name]

    def _drop(self, name: str) -> None:
        if not self._users[name] and self._built.pop(name, None) is not None:
            mx.clear_cache()


__all__ = ["Parts"]
