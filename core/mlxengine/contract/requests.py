"""What can be asked of a model. A plugin for a new kind subclasses `Request`."""

from __future__ import annotations

from typing import Any

from attrs import Attribute, field, frozen

from ..errors import InvalidParameterError


def _seconds(_request: Request, attribute: Attribute[Any], value: object) -> None:
    if value is not None and not (isinstance(value, int | float) and 0 < value < float("inf")):
        raise InvalidParameterError(f"{attribute.name}={value!r} must be a positive number of seconds.")


@frozen(kw_only=True)
class Request:
    """Base of every request.

    Args:
        priority: a higher one is admitted first where a plugin has to choose; 0 is normal.
        features: feature flags for this call only, as ``(name, value)`` pairs.
        wait_timeout: seconds that it may wait for its first step, loading an evicted model included; then it
            ends with `WaitTimeoutError`. ``None``: as long as it takes.
        run_timeout: seconds from its first step after which it ends with `RunTimeoutError`; what it said
            until then was delivered. ``None``: as long as it takes.
    """

    priority: int = 0
    features: tuple[tuple[str, object], ...] = ()
    wait_timeout: float | None = field(default=None, validator=_seconds)
    run_timeout: float | None = field(default=None, validator=_seconds)


__all__ = ["Request"]
