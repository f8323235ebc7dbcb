"""What the key-value caches of a model's requests take, beside all else that holds memory; needs no mlx.

A request is charged as its cache grows: for the tokens that it holds and for a step of growth ahead, but not
for more than its longest answer. So many short answers go on together where few of the longest would fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from attrs import define, field

from ..contract.hookspecs import MemoryEstimate
from ..text.workload import TextWorkload

STEP = 256
"""Tokens that the libraries' caches grow by."""


class Charged(Protocol):
    """A request with a cache."""

    cost: int
    charged: int

    @property
    def size(self) -> int:
        """Tokens of prompt and answer so far."""
        ...

    @property
    def longest(self) -> int | None:
        """Tokens that these may become; ``None`` while nobody says."""
        ...


@define(eq=False)
class Account:
    """The bytes that the requests of one model may take.

    Args:
        bytes_of: of the cache of one request of so many tokens, a multiple of ``step``.
        reserved: bytes that were set aside for them when the model was loaded.
        room: bytes by which caches and requests may grow now, as in `mlxengine.LoadContext.cache_room`.
        kept: bytes of what is kept for requests to come, which makes way for those that run.
        trim: lets go of that until at most so many bytes are kept.
        step: tokens that caches grow by.
    """

    bytes_of: Callable[[int], int] = field(default=lambda _tokens: 0)
    reserved: int = 0
    room: Callable[[], int | None] = field(default=lambda: None)
    kept: Callable[[], int] = field(default=lambda: 0)
    trim: Callable[[int], None] = field(default=lambda _most: None)
    step: int = STEP
    _known: dict[int, int] = field(init=False, factory=dict)

    def cost_of(self, tokens: int) -> int:
        """Bytes that the cache of a request of so many tokens takes."""
        steps = -(-tokens // self.step)
        if steps not in self._known:  # to reckon it may mean to look at every tensor of the checkpoint
            self._known[steps] = self.bytes_of(steps * self.step)
        return self._known[steps]

    def charge(self, row: Charged, ahead: int | None = None) -> int:
        """Charge a request for so many tokens to come, or for a step; the bytes that it is charged with."""
        wanted = row.size + (self.step if ahead is None else ahead)
        row.charged = wanted if row.longest is None else max(row.size + 1, min(wanted, row.longest))
        row.cost = self.cost_of(row.charged)
        return row.cost

    def beyond(self, cost: int) -> int:
        """Bytes of requests beyond what was set aside for them."""
        return max(0, cost - self.reserved)

    def short(self, wanted: int, held: int) -> int:
        """Bytes that are missing for requests to take ``wanted`` together, where they take ``held`` now."""
        room = self.room()
        if room is None or wanted <= self.reserved:
            return 0
        return max(0, self.beyond(wanted) - self.beyond(held) - room)

    def affords(self, wanted: int, held: int) -> bool:
        """Whether that is nothing; what is kept for requests to come makes room."""
        short = self.short(wanted, held)
        kept = self.kept() if short else 0
        if 0 < short <= kept:
            self.trim(kept - short)
        return short <= kept


def reckoned(
    estimate: Callable[[TextWorkload], MemoryEstimate], kv_bits: int | None, backend: str | None
) -> Callable[[int], int]:
    """Bytes of the cache of a request of so many tokens, by the estimate alone."""
    return lambda tokens: (
        estimate(TextWorkload(context_length=tokens, kv_bits=kv_bits, backend=backend)).cache
    )


__all__ = ["STEP", "Account", "Charged", "reckoned"]
