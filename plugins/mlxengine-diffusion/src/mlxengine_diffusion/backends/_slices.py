"""Small things that the back ends share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

_SLICE_BYTES = 64 * 2**20


def warm(networks: Iterable[Any]) -> Iterator[None]:
    """Evaluate the weights of networks, some at a time."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    for network in networks:
        batch: list[Any] = []
        size = 0
        flat: list[tuple[str, Any]] = tree_flatten(network.parameters())
        for _, array in flat:
            batch.append(array)
            size += array.nbytes
            if size >= _SLICE_BYTES:
                mx.eval(batch)
                batch, size = [], 0
                yield
        mx.eval(batch)
        yield


def steps_for(steps: int, strength: float) -> int:
    """How many of ``steps`` image-to-image takes: their share ``strength``, at least one unless it is 0."""
    return 0 if strength == 0 else min(steps, max(1, math.floor(steps * strength + 1e-6)))


__all__ = ["steps_for", "warm"]
