"""A device on which a pass has its price, whatever it computes: what counting passes cannot show on a CPU.

On a GPU a forward pass of a small batch takes the time of its launches and of reading the weights, hardly
more for many tokens than for few, and the first pass of each input shape compiles. A CPU is the opposite. So
a network is put on a simulated device here: its passes are right, and each is charged what it would cost.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import mlx.core as mx
import pytest

Key = tuple[int, ...]
Network = TypeVar("Network")


class SimulatedDevice:
    """Charges the passes of the networks that are put on it, and tells the time.

    Args:
        a_pass: seconds of any pass.
        a_token: seconds more for each token of it, padding included.
        a_shape: seconds more for the first pass of a shape: rows and positions.
        cache_step: the cache's length, rounded up to this, belongs to the shape too; ``None``: it does not.
        sleeps: whether a pass really takes its time, under the clock of the wall. Else the clock is virtual:
            it moves by what passes are charged, and by nothing else.
    """

    def __init__(
        self,
        *,
        a_pass: float = 0.008,
        a_token: float = 0.0,
        a_shape: float = 0.150,
        cache_step: int | None = None,
        sleeps: bool = False,
    ) -> None:
        self.a_pass, self.a_token, self.a_shape = a_pass, a_token, a_shape
        self.cache_step = cache_step
        self.sleeps = sleeps
        self.charged = 0.0
        self.passes: list[tuple[int, int]] = []  # rows and positions of each
        self.shapes: Counter[Key] = Counter()

    @property
    def tokens(self) -> int:
        """Tokens of all passes, padding included."""
        return sum(rows * positions for rows, positions in self.passes)

    def now(self) -> float:
        """Seconds, since a moment that is long past."""
        return time.perf_counter() if self.sleeps else 1000.0 + self.charged

    def wait(self, seconds: float) -> None:
        """Let time pass without a pass."""
        self.charged += seconds
        if self.sleeps:
            time.sleep(seconds)

    def put(self, network: Network) -> Network:
        """Charge each pass of a network from now on, whoever calls it and however; returns the same object.

        What is noticed is the call of its first layer, which is made with the hidden states of shape (rows,
        positions, width), a mask and the layer's cache.
        """
        layer: Any = network.layers[0]  # type: ignore[attr-defined]
        charge = self._charge

        class Charged(type(layer)):  # type: ignore[misc]
            def __call__(self, states: mx.array, mask: Any = None, cache: Any = None) -> Any:
                charge(states.shape[:2], cache)
                return super().__call__(states, mask, cache)

        layer.__class__ = Charged  # so that the parameters keep their names
        return network

    def _charge(self, shape: tuple[int, int], cache: Any) -> None:
        rows, positions = shape
        key: Key = (rows, positions)
        if self.cache_step is not None and cache is not None:
            longest = positions + (cache._idx if hasattr(cache, "_idx") else cache.offset)
            key = (*key, -(-longest // self.cache_step))
        self.passes.append((rows, positions))
        self.shapes[key] += 1
        first = self.shapes[key] == 1
        self.wait(self.a_pass + rows * positions * self.a_token + self.a_shape * first)

    def forget(self) -> None:
        """Start to count again; shapes that have been compiled stay so."""
        self.passes.clear()

    @contextmanager
    def clock(self) -> Iterator[Callable[[], float]]:
        """Everybody in the process reads this device's clock; yields what tells its time."""
        with pytest.MonkeyPatch.context() as patch:
            if not self.sleeps:
                patch.setattr(time, "perf_counter", self.now)
                patch.setattr(time, "monotonic", self.now)
            yield self.now
