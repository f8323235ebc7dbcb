"""How the command line asks a forecaster, measures it, and what stands in for one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlxengine import Answer, Asking, Event, Finished, Measuring, Mock, Option, Request
from mlxengine.contract.kinds import positive
from mlxengine.errors import InvalidParameterError

from .handle import ForecastHandle
from .types import Forecasted, ForecastRequest, Point


class _Asking(Asking):
    options = (Option(flag="--horizon", type=positive, default=8, metavar="N", help="values to forecast"),)

    def request(self, words: Sequence[str], options: Mapping[str, Any]) -> Request:
        try:
            numbers = [float(word) for word in " ".join(words).replace(",", " ").split()]
        except ValueError as error:
            raise InvalidParameterError(f"A series is a list of numbers: {error}.") from error
        return ForecastRequest(series=numbers, horizon=options["horizon"])

    def show(self, event: Event) -> str:
        return f"{event.value:g}\n" if isinstance(event, Point) else ""

    def answer(self, events: Sequence[Event], _options: Mapping[str, Any]) -> Answer:
        last = events[-1]
        assert isinstance(last, Finished)
        values = [event.value for event in events if isinstance(event, Point)]
        stats = f"{len(values)} values in {last.metrics.total_seconds:.3f} s"
        return Answer(value={"forecast": values, "usage": last.usage, "mock": last.mock}, stats=stats)


class _Measuring(Measuring):
    options = (
        Option(flag="--horizon", type=positive, default=64, metavar="N", help="values to forecast"),
        Option(flag="--batch", type=positive, default=8, metavar="N", help="series at once"),
    )

    def measure(self, handle: ForecastHandle, options: Mapping[str, Any]) -> Mapping[str, float]:
        horizon, batch = options["horizon"], options["batch"]
        requests = [ForecastRequest(series=(at, at + 1.0), horizon=horizon) for at in range(batch)]
        start = time.perf_counter()
        handle.run(requests[0])
        alone = time.perf_counter() - start
        start = time.perf_counter()
        for stream in [handle.stream(request) for request in requests]:
            for _ in stream:
                pass
        together = time.perf_counter() - start
        return {"values/s": horizon / alone, f"batch of {batch}, values/s": batch * horizon / together}


class ForecastMock(Mock):
    """Repeats the last value."""

    def generate(self, request: Request) -> Iterator[Event | None] | None:
        if not isinstance(request, ForecastRequest):
            return None
        last, steps = request.series[-1], range(1, request.horizon + 1)
        points = [Point(step=step, value=last, mock=True) for step in steps]
        usage = Forecasted(values_read=len(request.series), values_forecast=request.horizon)
        return iter([*points, Finished(usage=usage, mock=True)])


RUN = _Asking()
BENCH = _Measuring()
