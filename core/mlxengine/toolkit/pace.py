"""How much of the waiting prompts one step reads, so that running answers keep their pace."""

from __future__ import annotations

import statistics
from collections import deque


class Pace:
    """How many prompt tokens fit in a step, told from how long earlier steps took.

    While answers run, a step that also reads takes at most ``stall_factor`` times as long as one that only
    decodes. What is measured is the whole step, because the device works on both at once: a step that came
    out too long makes the next piece smaller, whatever the reason was.

    Args:
        stall_factor: see above; more than 1.
    """

    # Fewer than 64 tokens at once are read at half the speed on a slow CPU, so a budget in milliseconds gives
    # way to them; the pace of running answers does not, down to LEAST.
    LEAST, SMALLEST, LARGEST, FIRST = 8, 64, 2048, 128

    def __init__(self, stall_factor: float = 8.0) -> None:
        self.stall_factor = stall_factor
        self._rate: float | None = None  # prompt tokens per second
        self._last = self.FIRST  # tokens of the last piece
        self._decoding: deque[float] = deque(maxlen=31)  # seconds of steps that read nothing

    @property
    def decode_seconds(self) -> float | None:
        """Median time of the last steps that read nothing; a row that joins makes single ones long."""
        return statistics.median(self._decoding) if self._decoding else None

    def observe(self, tokens: int, seconds: float, *, drawn: int = 0) -> None:
        """Learn from a step: prompt tokens that it read, the time it took, answer tokens that it drew."""
        if not tokens and drawn:
            self._decoding.append(seconds)
        if tokens < self.LEAST:
            return  # too few to tell: a row that joins takes time of its own
        reading = seconds - (self.decode_seconds or 0.0) * (drawn > 0)
        rate = tokens / max(reading, 0.1 * seconds, 1e-6)
        # Slower than thought counts at once; faster may be a small difference of two times.
        self._rate = rate if self._rate is None else min(rate, 0.5 * (self._rate + rate))
        self._last = tokens

    def chunk(self, budget_ms: float, *, running: bool = False) -> int:
        """Prompt tokens for one step, of few different sizes; ``running``: answers wait for its end."""
        if self._rate is None:
            wanted = float(self.FIRST)
        else:
            wanted = max(self._rate * budget_ms / 1000, self.SMALLEST)
            if running and self._decoding:
                spare = (self.stall_factor - 1) * statistics.median(self._decoding)
                wanted = min(wanted, self._rate * spare, 2.0 * self._last)
        tokens = min(max(int(wanted), self.LEAST), self.LARGEST)
        step = max(1 << (tokens.bit_length() - 2), self.LEAST)  # two sizes between powers of two
        return tokens // step * step


__all__ = ["Pace"]
