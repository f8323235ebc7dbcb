"""Loads that wait for memory, one behind the other, and the requests that stand back for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from attrs import define, field

FIRST_TURN = 1.0  # seconds of a turn where it is not known how long the load takes


@define(eq=False)
class Turn:
    """A place in the line; ``after`` so many seconds of it, requests to other models stand back."""

    after: float
    began: float = field(factory=time.monotonic)


class Line:
    """Who waits for memory, in order.

    Under steady traffic the models in memory would never be idle. So once a load has waited for as long as it
    takes itself, new requests to them are held; what runs ends, the load has its turn, and the held requests
    go on, by a load of their own where their model had to go. Loading then takes half of the time at most.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: list[Turn] = []
        self.moved: Callable[[], None] = lambda: None  # called when somebody left the line

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def pressing(self) -> bool:
        """Whether somebody has waited for so long that others stand back."""
        now = time.monotonic()
        return any(now - turn.began >= turn.after for turn in list(self._turns))

    def join(self, seconds: float | None) -> Turn:
        """Wait behind the others; ``seconds``: what the load takes, if that is known."""
        turn = Turn(FIRST_TURN if seconds is None else seconds)
        with self._lock:
            self._turns.append(turn)
        return turn

    def first(self, turn: Turn) -> bool:
        """Whether it is this one's turn."""
        with self._lock:
            return self._turns[0] is turn

    def leave(self, turn: Turn) -> None:
        """It has what it waited for, or gave up."""
        with self._lock:
            self._turns.remove(turn)
        self.moved()


__all__ = ["FIRST_TURN", "Line", "Turn"]
