"""What the engine's health is judged by: how the last requests ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import InsufficientMemoryError, PluginContractError, PluginCrashedError

if TYPE_CHECKING:
    from .._scheduling.task import SchedulerStatus
    from ..health import Health

SLOW_STEP_SECONDS = 0.75


class Outcomes:
    """The last request that ended well, and the last that failed through no fault of its own."""

    def __init__(self) -> None:
        self.success: float | None = None
        self.failure: float | None = None
        self.error: BaseException | None = None

    def record(self, error: BaseException | None) -> None:
        """A request is over. What the request itself got wrong, or cancelled, says nothing."""
        now = time.monotonic()
        if error is None:
            self.success = now
        elif isinstance(error, PluginCrashedError | PluginContractError | InsufficientMemoryError):
            self.failure, self.error = now, error

    def health(self, status: SchedulerStatus, degraded: Sequence[str] = ()) -> Health:
        """What these outcomes, the loop's present state and what models serve less amount to."""
        from ..health import Health, HealthState

        now = time.monotonic()
        state, reason = self._judge(status, degraded)
        return Health(
            state=HealthState(state),
            reason=reason,
            running=status.running,
            running_seconds=status.running_seconds,
            since_success=None if self.success is None else now - self.success,
            since_failure=None if self.failure is None else now - self.failure,
            hung=status.hung,
        )

    def _judge(self, status: SchedulerStatus, degraded: Sequence[str]) -> tuple[str, str]:
        if status.hung:
            return (
                "unhealthy",
                f"a step of {status.running} has not returned for {status.running_seconds:.1f} s; "
                f"by what is known of it, {status.patience:.1f} s are long",
            )
        if status.died is not None and (self.success is None or self.success < (status.died_at or 0)):
            return "unhealthy", f"the engine's thread failed ({status.died}); nothing ran since"
        if self.failure is not None and (self.success is None or self.success < self.failure):
            return "unhealthy", f"the last request failed: {self.error}"
        if status.running_seconds > SLOW_STEP_SECONDS:
            what = f"a step of {status.running}" if status.running else "the engine's own work"
            return "degraded", f"{what} has been running for {status.running_seconds:.1f} s"
        if degraded:
            return "degraded", "; ".join(degraded)
        if status.died is not None:
            return "degraded", f"the engine's thread failed once ({status.died}) and was replaced"
        return "healthy", "nothing has failed" if self.failure is None else "recovered since"
