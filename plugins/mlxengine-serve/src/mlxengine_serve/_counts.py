"""What the server counts of HTTP, beside what the engine counts of requests."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

from attrs import define, field

BOUNDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0)


def _none() -> list[int]:
    return [0] * (len(BOUNDS) + 1)


@define(eq=False)
class Counts:
    """Requests by route and status, how long they took, how many are open now, and how many streams are
    kept for whoever comes back."""

    open: int = 0
    resumable: int = 0
    requests: dict[tuple[str, int], int] = field(factory=dict)
    _buckets: dict[str, list[int]] = field(factory=dict)
    _seconds: dict[str, float] = field(factory=dict)

    def done(self, route: str, status: int, seconds: float) -> None:
        """A request is over; ``status`` 499: its client had left."""
        self.requests[route, status] = self.requests.get((route, status), 0) + 1
        self._buckets.setdefault(route, _none())[bisect_left(BOUNDS, seconds)] += 1
        self._seconds[route] = self._seconds.get(route, 0.0) + seconds

    def collect(self) -> Iterator[Any]:
        """The metric families of this moment, for prometheus-client."""
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        requests = CounterMetricFamily(
            "mlxengine_http_requests",
            "HTTP requests that are over; status 499: the client left first.",
            labels=["route", "status"],
        )
        for (route, status), count in self.requests.items():
            requests.add_metric([route, str(status)], count)
        seconds = HistogramMetricFamily(
            "mlxengine_http_request_seconds", "From a request's headers to the end.", labels=["route"]
        )
        for route, counts in self._buckets.items():
            below, buckets = 0, []
            for bound, count in zip((*BOUNDS, "+Inf"), counts, strict=True):
                below += count
                buckets.append((str(bound), below))
            seconds.add_metric([route], buckets, sum_value=self._seconds[route])
        opened = GaugeMetricFamily("mlxengine_http_open", "HTTP requests that run now.", value=self.open)
        kept = GaugeMetricFamily(
            "mlxengine_http_resumable", "Streams that can be taken up again.", value=self.resumable
        )
        yield from (requests, seconds, opened, kept)


__all__ = ["Counts"]
