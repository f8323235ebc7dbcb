"""What `load` returns for a forecaster."""

from __future__ import annotations

from collections.abc import Iterable

from mlxengine import AsyncModelHandle, Event, ModelHandle

from .types import ForecastRequest, Point


class ForecastHandle(ModelHandle):
    """A loaded forecaster. `stream` a `ForecastRequest` to have each value as it is there."""

    def forecast(self, series: Iterable[float], horizon: int) -> tuple[float, ...]:
        """The next ``horizon`` values of a series, oldest first.

        Raises:
            InvalidParameterError: the series is empty or not finite, or the horizon is out of range.
        """
        return _values(self.run(ForecastRequest(series=series, horizon=horizon)).events)


class AsyncForecastHandle(AsyncModelHandle):
    """The same for asyncio."""

    async def forecast(self, series: Iterable[float], horizon: int) -> tuple[float, ...]:
        """See `ForecastHandle.forecast`."""
        return _values((await self.run(ForecastRequest(series=series, horizon=horizon))).events)


def _values(events: Iterable[Event]) -> tuple[float, ...]:
    return tuple(event.value for event in events if isinstance(event, Point))
