"""Whether the engine works, by what really ran last."""

from __future__ import annotations

import enum
import time

from attrs import define, frozen

from ._task import SchedulerStatus
from .errors import InsufficientMemoryError, PluginContractError, PluginCrashedError

SLOW_STEP_SECONDS = 0.75


class HealthState(enum.StrEnum):
    """``HEALTHY``: what ran last ended well. ``DEGRADED``: it serves, but something is wrong or slow.
    ``UNHEALTHY``: what ran last failed, and nothing has ended well since."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


@frozen(kw_only=True)
class Health:
    """The state and its reason, in words; ``running`` is the plugin whose step runs now, if one does.

    ``since_success`` and ``since_failure`` are seconds, ``None`` where there was none yet.
    """

    state: HealthState
    reason: str
    running: str | None = None
    running_seconds: float = 0.0
    since_success: float | None = None
    since_failure: float | None = None

    @property
    def ok(self) -> bool:
        return self.state is HealthState.HEALTHY


@define
class Outcomes:
    """The last request that ended well, and the last that failed through no fault of its own."""

    success: float | None = None
    failure: float | None = None
    error: BaseException | None = None

    def record(self, error: BaseException | None) -> None:
        """A request is over. What the request itself got wrong, or cancelled, says nothing."""
        now = time.monotonic()
        if error is None:
            self.success = now
        elif isinstance(error, PluginCrashedError | PluginContractError | InsufficientMemoryError):
            self.failure, self.error = now, error

    def health(self, status: SchedulerStatus) -> Health:
        """What these outcomes and the loop's present state amount to."""
        now = time.monotonic()
        state, reason = self._judge(status)
        return Health(
            state=state,
            reason=reason,
            running=status.running,
            running_seconds=status.running_seconds,
            since_success=None if self.success is None else now - self.success,
            since_failure=None if self.failure is None else now - self.failure,
        )

    def _judge(self, status: SchedulerStatus) -> tuple[HealthState, str]:
        if status.died is not None and (self.success is None or self.success < (status.died_at or 0)):
            return HealthState.UNHEALTHY, f"the engine's thread failed ({status.died}); nothing ran since"
        if self.failure is not None and (self.success is None or self.success < self.failure):
            return HealthState.UNHEALTHY, f"the last request failed: {self.error}"
        if status.running_seconds > SLOW_STEP_SECONDS:
            return (
                HealthState.DEGRADED,
                f"a step of {status.running} has been running for {status.running_seconds:.1f} s",
            )
        if status.died is not None:
            return HealthState.DEGRADED, f"the engine's thread failed once ({status.died}) and was replaced"
        return HealthState.HEALTHY, "nothing has failed" if self.failure is None else "recovered since"


__all__ = ["Health", "HealthState"]
