"""The clauses that every plugin keeps, on this one."""

from pathlib import Path

from mlxengine.testing import Example, PluginConformance, Specimen
from mlxengine_forecast import ForecastRequest

pytest_plugins = ["mlxengine.testing.pytest"]


class TestForecast(PluginConformance):
    name = "forecast"
    specimen = Specimen(
        path=Path(__file__).parent / "specimen",
        examples=[
            Example(request=ForecastRequest(series=(1.0, 2.0, 3.0), horizon=12), shows={"forecasting"}),
            Example(request=ForecastRequest(series=tuple(range(40)), horizon=30)),
        ],
        tolerance=1e-4,  # a product of more rows may sum in another order
    )
