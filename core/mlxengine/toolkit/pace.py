"""How much of the waiting prompts one step reads, so that running answers keep their pace."""

from __future__ import annotations

import statistics
from collections import deque

from .row import Stepped


class Pace:
    """How many prompt tokens fit in a step, told from how long earlier steps took.

    While answers run, a step that also reads takes at most ``stall_factor`` times as long as one that only
    decodes. A device may take far longer over a shape that it has not met before, because it compiles for it;
    such a pass says only that the device is at least so fast, never that it is slow.

    Args:
        stall_factor: see above; more than 1.
        first: tokens of the first piece, before anything is known.
    """

    # Fewer than 64 tokens at once are read at half the speed on a slow CPU, so a budget in milliseconds gives
    # way to them; the pace of running answers does not, down to LEAST.
    LEAST, SMALLEST, LARGEST, FIRST = 8, 64, 4096, 128

    def __init__(self, stall_factor: float = 8.0, first: int = FIRST) -> None:
        self.stall_factor = stall_factor
        self._first = min(max(first, self.LEAST), self.LARGEST)
        self._bound: float | None = None  # seconds a token takes at most, from shapes that were new
        self._costs: deque[float] = deque(maxlen=3)  # seconds a token took in the last telling steps
        self._compiles = False  # whether a new shape was ever met
        self._asked = 0  # tokens that the last step was to read
        self._decoding: deque[float] = deque(maxlen=31)  # seconds of steps that read nothing

    @property
    def decode_seconds(self) -> float | None:
        """Median time of the last steps that read nothing; a row that joins makes single ones long."""
        return statistics.median(self._decoding) if self._decoding else None

    def expected(self, tokens: int) -> float | None:
        """Seconds that a step should take which reads at most so many tokens; ``None`` where nothing tells.

        One that only decodes should take what is usual, or a quarter of the longest of the last ones where
        that is more: whoever allows several times as much allows that one. Of reading nothing is said before
        it was measured, nor where the device compiles for new shapes.
        """
        usual = self.decode_seconds
        decoding = None if usual is None else max(usual, max(self._decoding) / 4)
        if not tokens:
            return decoding
        if self._compiles or not self._costs:
            return None
        return (decoding or 0.0) + tokens * max(self._costs)

    @property
    def token_seconds(self) -> float | None:
        """Time to read a token of a prompt; one slow step among the last three does not count."""
        return statistics.median(self._costs) if self._costs else self._bound

    @property
    def worth(self) -> int | None:
        """Tokens that are read in the time that a pass takes for itself, however few it reads."""
        alone, token = self.decode_seconds, self.token_seconds
        return None if alone is None or token is None else int(alone / token)

    def observe(self, done: Stepped, seconds: float) -> None:
        """Learn from a step and the time it took."""
        tokens, drawn = done.prompt_tokens, bool(done.drawn)
        self._compiles = self._compiles or done.new_shape
        if not tokens:
            if drawn and not done.queued:
                self._decoding.append(seconds)
            return
        reading = seconds - (self.decode_seconds or 0.0) * drawn
        cost = max(reading, 0.1 * seconds, 1e-6) / tokens
        faster = not self._costs or cost <= statistics.median(self._costs)
        if done.new_shape and not self._costs:
            self._bound = min(cost, self._bound or cost)
        elif faster or (not done.new_shape and 2 * tokens >= self._asked):  # a prompt's rest tells too little
            self._costs.append(cost)

    def tokens(self, budget_ms: float, *, running: bool = False) -> int:
        """Prompt tokens for one step, of few different sizes; ``running``: answers wait for its end."""
        cost = self.token_seconds
        wanted = float(self._first)
        if cost is not None:
            seconds = budget_ms / 1000
            least = float(self.SMALLEST if self._costs else self._first)
            wanted = max(seconds / cost, least)
            if running and self._decoding and self._costs:
                wanted = min(wanted, (self.stall_factor - 1) * statistics.median(self._decoding) / cost)
        found = min(max(int(wanted), self.LEAST), self.LARGEST)
        step = max(1 << (found.bit_length() - 2), self.LEAST)  # two sizes between powers of two
        self._asked = found // step * step
        return self._asked


__all__ = ["Pace"]
