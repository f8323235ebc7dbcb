"""What the engine counted, as values and as OpenMetrics text for Prometheus and whatever reads its format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from attrs import field, frozen

from .errors import ConfigurationError
from .readonly import freeze

if TYPE_CHECKING:
    from ._scheduling.task import ModelQueue, SchedulerStatus
    from .health import Health
    from .memory import MemoryReport


class Measured(Protocol):
    """An engine, as far as its figures go."""

    def health(self) -> Health:
        """Whether it works."""
        ...

    def status(self) -> SchedulerStatus:
        """What it does now."""
        ...

    def metrics(self) -> Sequence[ModelMetrics]:
        """What was counted, by model."""
        ...

    def memory(self) -> MemoryReport:
        """What its models hold."""
        ...


@frozen(kw_only=True)
class Histogram:
    """Durations in seconds: ``counts[i]`` of them are within ``bounds[i]``, the last count is of the rest."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float = 0.0

    @property
    def count(self) -> int:
        """How many values were counted."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """Seconds, ``None`` before the first."""
        return self.total / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """An upper bound of the quantile: the bound of the bucket it falls into; ``inf`` past the last.

        Args:
            share: 0.5 for the median, 0.99 …
        """
        if not self.count:
            return None
        left = share * self.count
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            left -= count
            if left <= 0:
                return bound
        return float("inf")


@frozen(kw_only=True)
class ModelMetrics:
    """The requests of one model that are over, since the engine was made.

    Args:
        id, kind: which model.
        requests: how many, by how they ended: a finish reason, or the error's class.
        usage: sums over those that finished, by the kind's own units (``"prompt_tokens"`` …).
        unfinished: the same over those that were cancelled, came too late or failed, up to where they were.
        device_seconds: what all of them had of the device.
        queue_seconds, first_event_seconds, total_seconds: times from submission, of those that finished.
        peak_memory_bytes: the largest that a request reported, ``None`` where none did.
    """

    id: str
    kind: str
    requests: Mapping[str, int] = field(converter=freeze)
    usage: Mapping[str, float] = field(converter=freeze)
    unfinished: Mapping[str, float] = field(converter=freeze)
    device_seconds: float
    queue_seconds: Histogram
    first_event_seconds: Histogram
    total_seconds: Histogram
    peak_memory_bytes: int | None


class EngineCollector:
    """Gives an engine's figures to prometheus-client: ``registry.register(EngineCollector(engine))``.

    Names begin with ``mlxengine_``; what belongs to a model carries the labels ``model`` and ``kind``.
    Reading the memory waits for one step at most. The engine of an `AsyncInferenceEngine` is its ``sync``.

    Raises:
        ConfigurationError: prometheus-client is not installed; the message names the extra.
    """

    def __init__(self, engine: Measured) -> None:
        try:
            from prometheus_client import core
        except ImportError as error:
            raise ConfigurationError(
                "OpenMetrics needs prometheus-client, which is not installed.",
                hint='Install "mlxengine[metrics]"; engine.metrics() gives the values without it.',
            ) from error
        self._core = core
        self._engine = engine

    def collect(self) -> Iterator[Any]:
        """The metric families of this moment."""
        yield from self._requests()
        yield from self._memory()
        health = self._engine.health()
        states = self._core.StateSetMetricFamily("mlxengine_health", "Whether the engine works.")
        states.add_metric([], {str(state): state is health.state for state in type(health.state)})
        yield states
        status = self._engine.status()
        yield self._gauge("tasks", "Requests that run or wait.", status.tasks)
        yield from self._queues(status.queues)

    def _queues(self, queues: Sequence[ModelQueue]) -> Iterator[Any]:
        gauge, labels = self._core.GaugeMetricFamily, ["model", "kind"]
        requests = gauge("mlxengine_model_requests", "Requests to a model now.", labels=[*labels, "state"])
        bound = gauge("mlxengine_model_most_waiting", "How many requests may wait.", labels=labels)
        rows = gauge("mlxengine_model_rows", "Requests with a place in a model's batch.", labels=labels)
        for item in queues:
            which = [item.id, item.kind]
            requests.add_metric([*which, "running"], item.running)
            requests.add_metric([*which, "waiting"], item.waiting)
            for family, value in ((bound, item.most_waiting), (rows, item.rows)):
                if value is not None:
                    family.add_metric(which, value)
        yield from (requests, bound, rows)

    def _requests(self) -> Iterator[Any]:
        core, labels = self._core, ["model", "kind"]
        requests = core.CounterMetricFamily(
            "mlxengine_requests", "Requests that are over, by how they ended.", labels=[*labels, "outcome"]
        )
        usage = core.CounterMetricFamily(
            "mlxengine_usage", "What requests used, in the units of their kind.", labels=[*labels, "unit"]
        )
        unfinished = core.CounterMetricFamily(
            "mlxengine_unfinished_usage",
            "What requests used that were cancelled, came too late or failed.",
            labels=[*labels, "unit"],
        )
        device = core.CounterMetricFamily(
            "mlxengine_device_seconds", "Time that requests had of the device.", labels=labels
        )
        times = {
            "queue_seconds": "From submission to the first step.",
            "first_event_seconds": "From submission to the first event (for text: the first token).",
            "total_seconds": "From submission to the end.",
        }
        families = {
            name: core.HistogramMetricFamily(f"mlxengine_request_{name}", text, labels=labels)
            for name, text in times.items()
        }
        for item in self._engine.metrics():
            which = [item.id, item.kind]
            for outcome, count in item.requests.items():
                requests.add_metric([*which, outcome], count)
            for family, counts in ((usage, item.usage), (unfinished, item.unfinished)):
                for unit, number in counts.items():
                    family.add_metric([*which, unit], number)
            device.add_metric(which, item.device_seconds)
            for name, times_of in families.items():
                histogram: Histogram = getattr(item, name)
                buckets, below = [], 0
                for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
                    below += count
                    buckets.append((str(bound), below))
                times_of.add_metric(which, buckets, sum_value=histogram.total)
        yield from (requests, usage, unfinished, device, *families.values())

    def _memory(self) -> Iterator[Any]:
        report = self._engine.memory()
        figures = {"budget": report.budget, "reserved": report.reserved, "others": report.others}
        figures |= {"active": report.active, "cache": report.cache, "peak": report.peak}
        family = self._core.GaugeMetricFamily(
            "mlxengine_memory_bytes", "The memory ledger, and the array library's figures.", labels=["of"]
        )
        for name, value in figures.items():
            if value is not None:
                family.add_metric([name], value)
        yield family
        gauge, counter = self._core.GaugeMetricFamily, self._core.CounterMetricFamily
        labels = ["model", "kind"]
        families = {
            "reserved": gauge("mlxengine_model_memory_bytes", "What a model is charged with.", labels=labels),
            "caches": gauge(
                "mlxengine_model_cache_bytes", "What a model keeps for later requests.", labels=labels
            ),
            "degraded": gauge(
                "mlxengine_model_degraded", "Whether memory made a model serve less.", labels=labels
            ),
            "shortages": counter(
                "mlxengine_model_shortages", "How often memory ran out under a model.", labels=labels
            ),
        }
        kv = gauge("mlxengine_model_kv_bytes", "Key-value caches of requests.", labels=[*labels, "of"])
        for item in report.models:
            for of, held in (("used", item.kv_used), ("total", item.kv_total)):
                if held is not None and not item.evicted:
                    kv.add_metric([item.id, item.kind, of], held)
            for name, measured in families.items():
                if not item.evicted:
                    value = getattr(item, name)
                    measured.add_metric(
                        [item.id, item.kind], float(value is not None if name == "degraded" else value)
                    )
        yield from (*families.values(), kv)
        yield self._gauge("evictions", "Models that had to leave memory so far.", len(report.evictions))

    def _gauge(self, name: str, text: str, value: float) -> Any:
        return self._core.GaugeMetricFamily(f"mlxengine_{name}", text, value=value)


def openmetrics(engine: Measured) -> str:
    """An engine's figures in the OpenMetrics 1.0 text format.

    Raises:
        ConfigurationError: prometheus-client is not installed; the message names the extra.
    """
    collector = EngineCollector(engine)
    from prometheus_client import CollectorRegistry
    from prometheus_client.openmetrics.exposition import generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    text: bytes = generate_latest(registry)
    return text.decode()


__all__ = ["EngineCollector", "Histogram", "Measured", "ModelMetrics", "openmetrics"]
