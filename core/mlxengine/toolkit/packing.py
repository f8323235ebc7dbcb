"""Whether a network can be served from packed key-value caches, tried before it is offered.

Nothing about a network tells: some compute with the numbers of their caches themselves, some have heads that
no group of numbers divides, and of some a packed cache would change what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from attrs import frozen

from ..errors import FeatureUnavailableError, out_of_memory
from .packed import PackedKVCache

_GROUPS = (64, 32)
_PROMPT = [3 + (7 * at * at + at) % 50 for at in range(24)]  # ids that every vocabulary has

_WORST = 1.0
"""Largest difference of logits, as a share of their own spread (root mean squares).

In tiny models of random weights it is 0.3 at most with 8 bits, where a token is on the border between two
experts, and 0.5 with 4; logits that have nothing to do with each other differ by 1.4."""

Says = Callable[[Sequence[int], list[Any]], mx.array]
"""Reads a prompt into empty caches, its last token in a pass of its own; the logits behind that,
shape (vocabulary,)."""


def packed(plain: Sequence[Any], bits: int, group: int, flag: str) -> list[Any]:
    """Empty packed caches in place of a row's plain ones; windows and states stay as they are.

    Raises:
        FeatureUnavailableError: there are none but these.
    """
    if not any(map(_packable, plain)):
        raise FeatureUnavailableError(
            "This model has no plain key-value cache that could be packed.",
            hint=f"Load it without {flag}.",
        )
    return [PackedKVCache(group, bits) if _packable(layer) else layer for layer in plain]


def _packable(layer: Any) -> bool:
    return type(layer).__name__ == "KVCache"


@frozen
class Packing:
    """How a network may be tried.

    Args:
        says: runs it.
        caches: makes the plain caches of a row.
        flag: the name of the feature, for messages.
        avoid: ids that are not tokens of text.
    """

    says: Says
    caches: Callable[[], list[Any]]
    flag: str
    avoid: frozenset[int] = frozenset()

    def group_size(self, bits: int) -> int:
        """How many numbers are packed together; by passes that nobody evaluates.

        Raises:
            FeatureUnavailableError: the network cannot read packed caches.
        """
        with self._reading():
            found = self._group()
            self.says(self._prompt(), packed(self.caches(), bits, found, self.flag))
        return found

    def check(self, bits: int, group: int) -> Iterator[None]:
        """Compare what the network says from packed caches with what it says from plain ones.

        Raises:
            FeatureUnavailableError: it says something else, or nothing.
        """
        yield
        with self._reading():
            said, plain = (
                self.says(self._prompt(), layers).astype(mx.float32)
                for layers in (packed(self.caches(), bits, group, self.flag), self.caches())
            )
            finite = mx.isfinite(plain)  # some networks rule tokens out by themselves
            said, plain = (mx.where(finite, part, 0.0) for part in (said, plain))
            spread = mx.maximum(mx.std(plain), 1e-12)
            found: Any = (mx.sqrt(mx.mean(mx.square(said - plain))) / spread).item()
        if not found <= _WORST:
            raise FeatureUnavailableError(
                f"A key-value cache of {bits} bits changes what this model says: its logits by "
                f"{found:.2g} of their spread.",
                hint=f"Load it with more {self.flag}, or without.",
            )

    def _prompt(self) -> list[int]:
        return [token for token in _PROMPT if token not in self.avoid]

    def _group(self) -> int:
        """The largest group that divides the heads of all keys and values.

        Raises:
            FeatureUnavailableError: there is none, or no cache to pack.
        """
        caches = self.caches()
        packed(caches, 8, _GROUPS[0], self.flag)
        self.says(self._prompt(), caches)
        held = [layer for layer in caches if _packable(layer) and not layer.empty()]
        sizes = {part.shape[-1] for layer in held for part in (layer.keys, layer.values)}
        for group in _GROUPS:
            if all(size % group == 0 for size in sizes):
                return group
        heads = ", ".join(map(str, sorted(sizes)))
        raise FeatureUnavailableError(
            f"Heads of {heads} numbers cannot be packed: mlx packs groups of 32 or 64.",
            hint=f"Load it without {self.flag}.",
        )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except FeatureUnavailableError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            raise FeatureUnavailableError(
                f"This model's attention cannot read packed caches ({type(error).__name__}).",
                hint=f"Load it without {self.flag}.",
            ) from error


__all__ = ["Packing", "Says", "packed"]
