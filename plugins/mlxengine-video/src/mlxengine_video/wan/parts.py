"""The networks of a model, each of which can be freed after its stage and read again when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mlxengine.toolkit.cache import clear_cache
from mlxengine.toolkit.loading import warm


class Parts:
    """Networks by name, in the order in which they are used. All are built at once, which checks their files.

    Args:
        builders: make a network whose weights are not read before they are evaluated.
        keep: whether a network stays in memory when nobody uses it.
    """

    def __init__(self, builders: Mapping[str, Callable[[], Any]], *, keep: bool) -> None:
        self._builders, self._keep = builders, keep
        self._users = dict.fromkeys(builders, 0)
        self._built = {name: build() for name, build in builders.items()}
        if not keep:
            self._built.clear()

    @contextmanager
    def use(self, name: str) -> Iterator[Any]:
        """The network, for as long as it is used."""
        self._users[name] += 1
        try:
            if name not in self._built:
                self._built[name] = self._builders[name]()
            yield self._built[name]
        finally:
            self._users[name] -= 1
            if not self._keep and not self._users[name] and self._built.pop(name, None) is not None:
                clear_cache()

    def warm(self) -> Iterator[None]:
        """Read the weights of those that are kept, some at a time."""
        for network in self._built.values():
            yield from warm(network)


__all__ = ["Parts"]
