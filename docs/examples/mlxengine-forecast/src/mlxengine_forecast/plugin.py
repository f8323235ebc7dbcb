"""The hooks. The entry point names this module, so it imports no model library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mlxengine import Claim, Fit, Kind, MemoryEstimate, hookimpl

if TYPE_CHECKING:
    from mlxengine import Event, LoadContext, Loaded, ModelCard, Request

    from .types import ForecastWorkload


@hookimpl
def list_kinds() -> Sequence[Kind]:
    return [
        Kind(
            name="forecast",
            summary="time-series forecasters",
            handle="mlxengine_forecast.handle:ForecastHandle",
            async_handle="mlxengine_forecast.handle:AsyncForecastHandle",
            workload="mlxengine_forecast.types:ForecastWorkload",
            usage="mlxengine_forecast.types:Forecasted",
            run="mlxengine_forecast.kind:RUN",
            bench="mlxengine_forecast.kind:BENCH",
            mock="mlxengine_forecast.kind:ForecastMock",
            pipelines=["time-series-forecasting"],
            install="mlxengine-forecast",
        )
    ]


@hookimpl
def claim_model(card: ModelCard) -> Claim | None:
    if card.architecture != "tiny_forecaster":
        return None

    def estimate(workload: ForecastWorkload) -> MemoryEstimate:
        return MemoryEstimate(weights=card.weight_bytes, workspace=workload.batch << 12)

    return Claim(
        kind="forecast",
        fit=Fit.NATIVE,
        files=("config.json", "model.safetensors"),
        capabilities=frozenset({"forecasting"}),
        estimate=estimate,
        reason="config.json says model_type tiny_forecaster",
    )


@hookimpl
def load_model(card: ModelCard, context: LoadContext) -> Loaded | None:
    from ._load import load

    return load(card, context)


@hookimpl
def generate(model: object, request: Request) -> Iterator[Event | None] | None:
    from .types import ForecastRequest

    if not isinstance(request, ForecastRequest):
        return None
    from ._batch import Forecaster, forecast

    return forecast(model, request) if isinstance(model, Forecaster) else None
