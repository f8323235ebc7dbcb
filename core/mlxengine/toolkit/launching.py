"""Layers that run one after the other on a GPU, no more of them launched than it takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx


def on_gpu() -> bool:
    """Whether mlx computes on a GPU by itself."""
    return mx.default_device().type != mx.DeviceType.cpu


def answering(layer: Any, call: Callable[..., Any]) -> None:
    """Have a library's layer answer as ``call`` does; its parameters and their names stay."""
    base = type(layer)
    layer.__class__ = type(base.__name__, (base,), {"__call__": call})


def waiting(blocks: Iterable[Any], ahead: int) -> None:
    """On a GPU, have blocks that run one after the other wait until at most ``ahead`` of them are not done.

    mlx launches operations long before the GPU gets to them, and frees what they read when they are done:
    a whole pass's intermediates could live at once.
    """
    if not on_gpu():
        return
    found = list(blocks)
    launched: deque[Any] = deque()

    def waits(block: Any, number: int) -> None:
        usual = type(block).__call__

        def call(self: Any, *values: Any, **named: Any) -> Any:
            if number == 0:
                launched.clear()  # what a pass has left that did not get to its end
            made = usual(self, *values, **named)
            mx.async_eval(made)  # type: ignore[no-untyped-call]
            launched.append(made)
            if len(launched) > ahead:
                mx.eval(launched.popleft())
            if number == len(found) - 1:
                launched.clear()
            return made

        answering(block, call)

    for number, block in enumerate(found):
        waits(block, number)


__all__ = ["answering", "on_gpu", "waiting"]
