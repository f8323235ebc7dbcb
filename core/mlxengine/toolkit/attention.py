"""Attention where the device has no fast way for it, or has to plan that way first.

mlx's CUDA back end has kernels for one query a row without a mask. With one, which rows of different lengths
need, it falls back to steps that took 0.30 ms for 32 rows of 600 positions and 0.79 ms for 128 on an H200.
There is a kernel of ours for it (`mlxengine.toolkit._attention_kernel`); where that does not serve, the same
products written out here take 0.16 and 0.21 ms.

For several queries a row it asks cuDNN, which plans each size for 40 to 65 ms before it runs in 0.1 ms (of
one with a mask of truth values some take more than a second). Prompts behind caches have ever new sizes:
pieces of a long one, the next turn of a conversation. Written out, 256 queries of 1,500 positions take 0.4
ms, 1,024 of 4,096 take 1.2 instead of 0.25 ms. So such a size is planned when writing it out has cost as
much. Whole prompts are rounded to few sizes (`mlxengine.toolkit.shapes`), which are planned at once.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import mlx.core as mx

from .._machine.backend import new_shape_seconds, probe
from . import _attention_kernel

Attention = Callable[..., mx.array]

MOST_SCORES = 1 << 27
"""Scores that are written out at once, 256 MiB in half precision."""

_SIZES = 4096  # that are remembered


class Plans:
    """Which sizes are worth being planned; never dearer than twice the best that foresight could do.

    Args:
        cost: seconds that planning a size takes.
        longer: seconds that it takes longer to write out so many scores.
    """

    def __init__(self, cost: float, longer: Callable[[int], float]) -> None:
        self._cost, self._longer = cost, longer
        self.ahead = False  # whether there is time to plan whatever comes
        self._planned: set[Hashable] = set()
        self._spent: dict[Hashable, float] = {}

    def planned(self, size: Hashable, scores: int) -> bool:
        """Whether a size is left to the library, which then plans it; else it is to be written out."""
        if size in self._planned:
            return True
        spent = self._spent.pop(size, 0.0) + self._longer(scores)
        if spent <= self._cost and scores <= MOST_SCORES and not self.ahead:
            if len(self._spent) >= _SIZES:
                self._spent.clear()
            self._spent[size] = spent
            return False
        if len(self._planned) >= _SIZES:
            self._planned.clear()
        self._planned.add(size)
        return True


class QuickAttention:
    """While it is entered, a network's modules attend by `quick`; elsewhere the library stays as it is.

    Args:
        network: an ``mlx.nn.Module``.
        plain: the library's ``scaled_dot_product_attention(queries, keys, values, cache, scale, mask)``, as
            the network's modules find it by its name in the Python modules that define them.
        on: the back ends on which it does anything.
    """

    def __init__(self, network: Any, plain: Attention, *, on: tuple[str, ...] = ("cuda",)) -> None:
        self._plain = plain
        self.homes: list[ModuleType] = []
        if probe().backend in on:
            parts = network.modules() if hasattr(network, "modules") else ()  # a wrapper shows none
            defined = {type(module).__module__ for module in parts}
            homes = [sys.modules[name] for name in sorted(defined) if name in sys.modules]
            self.homes = [home for home in homes if getattr(home, plain.__name__, None) is plain]
        self._quick = quick(plain, plans()) if self.homes else plain

    def __enter__(self) -> None:
        for home in self.homes:
            setattr(home, self._plain.__name__, self._quick)

    def __exit__(self, *_: object) -> None:
        for home in self.homes:
            setattr(home, self._plain.__name__, self._plain)


def quick(plain: Attention, plans: Plans) -> Attention:
    """``plain``, but by `written_out` for one query a row under a mask, and for sizes not worth a plan."""

    @functools.wraps(plain)
    def attention(
        queries: mx.array,
        keys: Any,
        values: Any,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: mx.array | None = None,
    ) -> mx.array:
        if sinks is None and isinstance(keys, mx.array) and isinstance(values, mx.array):
            masked = isinstance(mask, mx.array) and mask.dtype == mx.bool_ and mask.ndim in (2, 4)
            rows, heads, count, width = queries.shape
            positions = keys.shape[2]
            size = (rows, heads, count, positions, width, values.shape[3], masked)
            if count == 1:
                made = _attention_kernel.kernel() if masked else None
                if made is not None and _attention_kernel.serves(queries, keys, values, mask):
                    return _attention_kernel.attend(made, queries, keys, values, scale, mask)
                write = masked
            else:  # what is not in half precision is never planned
                behind = masked or (mask == "causal" and count < positions)
                halves = queries.dtype.size == 2
                write = behind and halves and not plans.planned(size, rows * heads * count * positions)
            if write:
                return written_out(queries, keys, values, scale, mask)
        more = {} if sinks is None else {"sinks": sinks}
        return plain(queries, keys, values, cache=cache, scale=scale, mask=mask, **more)

    return attention


def written_out(queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: Any) -> mx.array:
    """Attention by products and a softmax.

    Scores are rounded to the queries' dtype as in mlx's own fallback, the softmax is taken in fp32.

    Args:
        queries: shape (rows, heads, n, width).
        keys: shape (rows, key heads, positions, width).
        values: shape (rows, key heads, positions, any).
        scale: of the products.
        mask: truth values that can be broadcast to (rows, 1, n, positions), or ``"causal"``: the queries are
            those of the last positions.
    """
    rows, heads, count, width = queries.shape
    groups, positions = keys.shape[1:3]
    if not isinstance(mask, mx.array):
        mask = mx.arange(positions) <= mx.arange(positions - count, positions)[:, None]
    if mask.ndim == 4:
        mask = mask[:, :, None]
    grouped = (queries * scale).reshape(rows, groups, -1, width)
    scores = (grouped @ keys.swapaxes(-1, -2)).reshape(rows, groups, -1, count, positions)
    scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
    weights = mx.softmax(scores, axis=-1, precise=True).reshape(rows, groups, -1, positions)
    found: mx.array = weights @ values
    return found.reshape(rows, heads, count, values.shape[3])


@functools.cache
def plans() -> Plans:
    """Those of this process, as the library's own are."""
    return Plans(new_shape_seconds(), written_seconds())


@contextmanager
def planning() -> Iterator[None]:
    """Sizes that come meanwhile are planned at once: nobody waits for them yet."""
    if probe().backend != "cuda":
        yield
        return
    plans().ahead = True
    try:
        yield
    finally:
        plans().ahead = False


@functools.cache
def written_seconds() -> Callable[[int], float]:
    """How much longer `written_out` takes than what is planned, told of so many scores; measured once."""
    queries = mx.ones((1, 16, 1024, 64), dtype=mx.bfloat16)

    def best(attend: Callable[[mx.array], mx.array], keys: mx.array) -> float:
        found = []
        for _ in range(5):
            began = time.perf_counter()
            mx.eval(attend(keys))
            found.append(time.perf_counter() - began)
        return min(found)

    def longer(positions: int) -> float:
        keys = mx.ones((1, 16, positions, 64), dtype=mx.bfloat16)
        mx.eval(queries, keys)
        plain = functools.partial(mx.fast.scaled_dot_product_attention, scale=1.0, mask="causal")
        ours = best(lambda keys: written_out(queries, keys, keys, 1.0, "causal"), keys)
        return ours - best(lambda keys: plain(queries, keys, keys), keys)

    few, many = 1024, 3072
    at_few = longer(few)
    each = max(longer(many) - at_few, 0.0) / (16 * 1024 * (many - few))
    launches = max(at_few - each * 16 * 1024 * few, 0.0)
    return lambda scores: launches + each * scores


__all__ = [
    "MOST_SCORES",
    "Plans",
    "QuickAttention",
    "planning",
    "plans",
    "quick",
    "written_out",
    "written_seconds",
]
