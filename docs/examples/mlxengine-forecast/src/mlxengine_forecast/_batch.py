"""One step forecasts the next value of every request: the iterators of a model share this batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
from mlxengine import Event, Finished, FinishReason

from .types import Forecasted, ForecastRequest, Point


class Row:
    """One request: the window that the network sees, and the values that wait for their reader."""

    def __init__(self, request: ForecastRequest, context: int) -> None:
        series = request.series[-context:]
        # The network sees values around 0 and of size 1, whatever the series' own are.
        self.shift = sum(series) / len(series)
        self.scale = max(abs(value - self.shift) for value in series) or 1.0
        seen = [(value - self.shift) / self.scale for value in series]
        self.window = deque([0.0] * (context - len(seen)) + seen, maxlen=context)
        self.left = request.horizon
        self.ready: deque[float] = deque()


class Forecaster:
    """What `generate` is given: the weights, and the rows of all requests that run."""

    def __init__(self, weights: dict[str, mx.array], context: int) -> None:
        self.weights = weights
        self.context = context
        self.rows: list[Row] = []

    def advance(self) -> None:
        """Forecast one more value of each row that has some left. Reads nothing that one row could spoil."""
        rows = [row for row in self.rows if row.left]
        windows = mx.array([list(row.window) for row in rows])
        weights = self.weights
        hidden = mx.tanh(windows @ weights["hidden.weight"].T + weights["hidden.bias"])
        found: Any = (hidden @ weights["out.weight"].T + weights["out.bias"])[:, 0].tolist()
        for row, value in zip(rows, found, strict=True):
            row.window.append(value)
            row.left -= 1
            row.ready.append(value * row.scale + row.shift)

    def close(self) -> None:
        """Let go of the weights."""
        self.weights = {}


def forecast(model: Forecaster, request: ForecastRequest) -> Iterator[Event]:
    """Each value as it is there. Whose next value is not there yet runs a step, for everybody."""
    row = Row(request, model.context)
    model.rows.append(row)
    try:
        for step in range(1, request.horizon + 1):
            if not row.ready:
                model.advance()
            yield Point(step=step, value=row.ready.popleft())
    finally:  # closing the iterator, which cancels the request, comes here too
        model.rows.remove(row)
    usage = Forecasted(values_read=len(request.series), values_forecast=request.horizon)
    yield Finished(reason=FinishReason.DONE, usage=usage)
