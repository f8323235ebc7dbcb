"""Whether the engine works, by what really ran last."""

from __future__ import annotations

import enum

from attrs import frozen


class HealthState(enum.StrEnum):
    """``HEALTHY``: what ran last ended well. ``DEGRADED``: it serves, but something is wrong or slow.
    ``UNHEALTHY``: what ran last failed and nothing has ended well since, or a step does not return."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


@frozen(kw_only=True)
class Health:
    """The state and its reason, in words; ``running`` is the plugin whose step runs now, if one does.

    ``hung``: that step has taken far longer than it should, by what it says itself or by the request's steps
    before it; nothing is said of one that is the first of its kind. ``since_success`` and ``since_failure``
    are seconds, ``None`` where there was none yet.
    """

    state: HealthState
    reason: str
    running: str | None = None
    running_seconds: float = 0.0
    since_success: float | None = None
    since_failure: float | None = None
    hung: bool = False

    @property
    def ok(self) -> bool:
        """Whether everything is as it should be."""
        return self.state is HealthState.HEALTHY


__all__ = ["Health", "HealthState"]
