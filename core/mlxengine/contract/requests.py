"""What can be asked of a model. A plugin for a new kind subclasses `Request`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import Attribute, field, frozen

from ..errors import InvalidParameterError
from ._convert import anything, named

_HIGHEST = 1_000_000


def _seconds(_request: Request, attribute: Attribute[Any], value: object) -> None:
    if value is not None and not (isinstance(value, int | float) and 0 < value < float("inf")):
        raise InvalidParameterError(f"{attribute.name}={value!r} must be a positive number of seconds.")


def _priority(_request: Request, _attribute: object, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not -_HIGHEST <= value <= _HIGHEST:
        raise InvalidParameterError(
            f"priority={value!r:.60} must be an integer from {-_HIGHEST} to {_HIGHEST}."
        )


def _features(value: Iterable[tuple[str, object]]) -> tuple[tuple[str, object], ...]:
    found = anything(value)
    for pair in found:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise InvalidParameterError(
                f"The features of a request are pairs of a name and a value, found {pair!r:.60}.",
                hint="Write features=((name, value), …).",
            )
    return found


@frozen(kw_only=True, field_transformer=named)
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

    priority: int = field(default=0, validator=_priority)
    features: tuple[tuple[str, object], ...] = field(default=(), converter=_features)
    wait_timeout: float | None = field(default=None, validator=_seconds)
    run_timeout: float | None = field(default=None, validator=_seconds)


__all__ = ["Request"]
