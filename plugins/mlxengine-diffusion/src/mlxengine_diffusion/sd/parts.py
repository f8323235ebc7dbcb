"""The networks of a model, each of which can be freed after its stage and made again when needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlxengine.toolkit.cache import clear_cache

from ..backends._slices import warm
from . import ops

_MOST_COMPILED = 4


def compiled(network: Any) -> Callable[..., Any]:
    """The network's ``predicted`` as `mlx.core.compile` makes it, for shapes that it meets later."""
    # What is not evaluated yet would be part of the trace: read and cast again in every call.
    mx.eval(network.parameters())

    def call(*inputs: Any) -> Any:
        with ops.traceable():
            return network.predicted(*inputs)

    made: Callable[..., Any] = mx.compile(call)
    return made


class Parts:
    """Networks by name. ``builders`` make one lazily: nothing is read until it is evaluated.

    Without ``keep`` they wait for a request instead of being read beforehand.
    """

    def __init__(self, builders: Mapping[str, Callable[[], Any]], *, keep: bool = True) -> None:
        self._keep = keep
        self._builders = dict(builders)
        self._built: dict[str, Any] = {}
        self._users: dict[str, int] = dict.fromkeys(builders, 0)
        self._compiled: dict[str, OrderedDict[Hashable, Callable[..., Any]]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """What they are called."""
        return tuple(self._builders)

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

    def compiled(self, name: str, shape: Hashable) -> Callable[..., Any]:
        """The network as `mlx.core.compile` makes it for inputs of one ``shape``; freed with the network.

        mlx keeps every trace of a function for as long as the function lives. One function a shape, and only
        the last few of them, bounds what a model holds that is asked for many sizes.
        """
        kept = self._compiled.setdefault(name, OrderedDict())
        if shape not in kept:
            kept[shape] = compiled(self._get(name))
        kept.move_to_end(shape)
        if len(kept) > _MOST_COMPILED:
            kept.popitem(last=False)
        return kept[shape]

    def drop_idle(self) -> None:
        """Free every network that nobody uses at the moment."""
        for name in self._builders:
            self._drop(name)

    def warm(self) -> Iterator[None]:
        """Read the weights, some at a time, or free them all where they are not kept."""
        if self._keep:
            yield from warm(list(self._built.values()))
        else:
            self.drop_idle()

    def _get(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = self._builders[name]()
        return self._built[name]

    def _drop(self, name: str) -> None:
        if not self._users[name] and self._built.pop(name, None) is not None:
            self._compiled.pop(name, None)
            clear_cache()


__all__ = ["Parts", "compiled"]
