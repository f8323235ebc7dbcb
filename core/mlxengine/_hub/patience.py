"""When a request that failed is made again, and when not any more."""

from __future__ import annotations

import logging
from typing import Any

from ..errors import MLXEngineError
from .access import Cancelled, Policy, backoff, pause
from .wire import Trouble

log = logging.getLogger("mlxengine.hub")


class Patience:
    """Counts failures in a row, waits between them, and ends with a typed error. Progress renews it."""

    def __init__(self, policy: Policy, cancelled: Cancelled, report: Any = None) -> None:
        self._policy, self._cancelled, self._report = policy, cancelled, report
        self._failures = 0

    def progressed(self) -> None:
        self._failures = 0

    def failed(self, problem: Trouble, final: MLXEngineError) -> None:
        """Wait for the next attempt, or raise ``final`` when there is none."""
        self._failures += 1
        if not problem.again:
            final.recoverable = False
            raise final from (problem.__cause__ or problem)
        wait = problem.wait
        if self._failures >= self._policy.attempts or (wait or 0) > self._policy.longest_retry_after:
            if wait and problem.final is not None:
                problem.final.hint = f"It asks to wait {wait:.0f} s."
            raise (problem.final or final) from (problem.__cause__ or problem)
        delay = backoff(self._policy, self._failures)
        if wait is not None:
            delay = wait + min(delay, 1.0)
        log.info("%s; attempt %d in %.1f s", problem.reason, self._failures + 1, delay)
        if self._report is not None:
            self._report(problem.reason, delay, self._failures)
        pause(delay, self._cancelled)
