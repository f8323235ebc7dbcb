"""What can be asked of a forecaster, what it says, and what it counts."""

from __future__ import annotations

import math
from collections.abc import Iterable

from attrs import field, frozen
from mlxengine import Event, Request, Usage, Workload
from mlxengine.errors import InvalidParameterError


def _numbers(value: Iterable[float]) -> tuple[float, ...]:
    try:
        found = tuple(float(number) for number in value)
    except (TypeError, ValueError) as error:
        raise InvalidParameterError(f"A series is a list of numbers: {error}.") from error
    if not found or not all(map(math.isfinite, found)):
        raise InvalidParameterError("A series has at least one number, and each is finite.")
    return found


@frozen(kw_only=True)
class ForecastRequest(Request):
    """Go on with a series.

    Args:
        series: its values so far, oldest first.
        horizon: how many more, from 1 to 10,000.
    """

    series: tuple[float, ...] = field(converter=_numbers)
    horizon: int = 1

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.horizon, int) or not 1 <= self.horizon <= 10_000:
            raise InvalidParameterError(f"horizon={self.horizon!r} must be a whole number from 1 to 10,000.")


@frozen(kw_only=True)
class Point(Event):
    """The value ``step`` steps after the end of the series."""

    step: int
    value: float


@frozen(kw_only=True)
class Forecasted(Usage):
    """Values that were read and values that were forecast."""

    values_read: int = 0
    values_forecast: int = 0


@frozen(kw_only=True)
class ForecastWorkload(Workload):
    """What memory is reckoned for; ``batch`` counts series that are forecast at once."""
