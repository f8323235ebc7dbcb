"""How many rows may decode together, after memory ran out with more of them.

The number is halved when a step fails for want of memory and grows by one after many quiet steps: additive
increase, multiplicative decrease (Chiu and Jain, 1989). Each failure doubles the number of quiet steps that
the next increase takes, because the rows have to be read again whenever it was one too many.
"""

from __future__ import annotations

import logging

from .._units import human
from ..errors import InsufficientMemoryError

_log = logging.getLogger("mlxengine.toolkit.rows")

QUIET_STEPS = 128
_MOST_QUIET_STEPS = 64 * QUIET_STEPS


class Room:
    """The rows that fit.

    Args:
        most: how many, while nothing has failed.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.now = most
        self.shortages = 0
        self._quiet = 0
        self._again = True  # whether anything went well since the last shortage
        self._patience = QUIET_STEPS // 2
        self._failed_with = 0

    @property
    def reason(self) -> str | None:
        """Why fewer rows than ``most`` decode together, for people; ``None`` where that is not so."""
        if self.now >= self.most:
            return None
        return (
            f"memory ran out with {self._failed_with} requests at once; "
            f"at most {self.now} of {self.most} are decoded together for now"
        )

    def shrink(self, failed: int, left: int) -> None:
        """Memory ran out with ``failed`` rows: let ``left`` of them go on together, at least one."""
        self.shortages += 1
        self._failed_with = failed
        self.now = max(1, min(self.now, left))
        if self._again:  # else it is still the same shortage
            self._patience = min(2 * self._patience, _MOST_QUIET_STEPS)
        self._quiet, self._again = 0, False
        _log.warning("Degraded: %s", self.reason or f"memory ran out with {failed} requests at once")

    def calm(self) -> None:
        """A step went well."""
        self._again = True
        if self.now >= self.most:
            return
        self._quiet += 1
        if self._quiet >= self._patience:
            self._quiet = 0
            self.now += 1
            if self.now == self.most:
                self._patience = QUIET_STEPS // 2
                _log.info("%d requests may be decoded together again", self.now)


def ran_out_alone(error: Exception) -> InsufficientMemoryError:
    """The error of a request for which memory did not suffice without any other beside it."""
    failure = InsufficientMemoryError(
        f"This request ran out of memory by itself: {error}.",
        hint="Shorten the prompt, lower max_tokens, or close other models.",
    )
    failure.__cause__ = error
    return failure


def cannot_grow(tokens: int, wanted: int, short: int) -> InsufficientMemoryError:
    """The error of a request for whose cache there is no room by the account, without any other beside it.

    Args:
        tokens: of its prompt and its answer so far.
        wanted: bytes that its cache would take.
        short: bytes of these that there is no room for.
    """
    failure = InsufficientMemoryError(
        f"The key-value cache of this request, of {tokens} tokens so far, needs {human(wanted)}: "
        f"{human(short)} more than there is memory for.",
        hint="Shorten the prompt, lower max_tokens, close other models, or raise memory_budget.",
    )
    failure.__cause__ = MemoryError(f"{short} bytes are missing by the account")
    return failure


__all__ = ["QUIET_STEPS", "Room", "cannot_grow", "ran_out_alone"]
