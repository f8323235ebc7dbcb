"""The forecaster forecasts what its network says, for all requests in the same steps, and verbs know it."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import pytest
from mlxengine import AsyncInferenceEngine, InferenceEngine
from mlxengine.cli import main
from mlxengine.errors import InvalidParameterError
from mlxengine_forecast import AsyncForecastHandle, ForecastHandle, ForecastRequest, write_random_model
from mlxengine_forecast._batch import Forecaster

SPECIMEN = Path(__file__).parent / "specimen"
SERIES = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]


def by_hand(series: list[float], horizon: int) -> list[float]:
    """The same in plain Python."""
    import mlx.core as mx

    weights = {name: value.tolist() for name, value in mx.load(str(SPECIMEN / "model.safetensors")).items()}
    shift = sum(series) / len(series)
    scale = max(abs(value - shift) for value in series)
    window = [0.0] * (16 - len(series)) + [(value - shift) / scale for value in series]
    found = []
    for _ in range(horizon):
        hidden = [
            math.tanh(sum(map(float.__mul__, row, window)) + bias)
            for row, bias in zip(weights["hidden.weight"], weights["hidden.bias"], strict=True)
        ]
        value = sum(map(float.__mul__, weights["out.weight"][0], hidden)) + weights["out.bias"][0]
        window = [*window[1:], value]
        found.append(value * scale + shift)
    return found


def test_the_forecast_is_the_networks() -> None:
    with InferenceEngine() as engine, engine.load_as(ForecastHandle, SPECIMEN) as forecaster:
        assert (forecaster.kind, forecaster.plugin) == ("forecast", "forecast")
        assert forecaster.forecast(SERIES, 10) == pytest.approx(by_hand(SERIES, 10), rel=1e-4)


def test_requests_that_run_together_share_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    advance = Forecaster.advance

    def counted(model: Forecaster) -> None:
        steps.append(len(model.rows))
        advance(model)

    monkeypatch.setattr(Forecaster, "advance", counted)
    with InferenceEngine() as engine:
        forecaster = engine.load_as(ForecastHandle, SPECIMEN)
        alone = [forecaster.forecast([*SERIES, at], 20) for at in range(8)]
        requests = [ForecastRequest(series=[*SERIES, at], horizon=20) for at in range(8)]
        steps.clear()
        streams = [forecaster.stream(request) for request in requests]
        together = [[event.value for event in stream if hasattr(event, "value")] for stream in streams]
        assert [*map(len, together)] == [20] * 8
        for one, other in zip(alone, together, strict=True):
            assert one == pytest.approx(other, rel=1e-3)
        assert max(steps) > 1
        assert len(steps) < 8 * 20 / 2


def test_so_it_does_for_asyncio() -> None:
    async def later() -> tuple[float, ...]:
        async with AsyncInferenceEngine() as engine:
            return await (await engine.load_as(AsyncForecastHandle, SPECIMEN)).forecast(SERIES, 3)

    assert asyncio.run(later()) == pytest.approx(by_hand(SERIES, 3), rel=1e-4)


@pytest.mark.parametrize(("series", "horizon"), [([], 1), ([float("nan")], 1), (["x"], 1), ([1.0], 0)])
def test_what_makes_no_forecast_is_refused(series: list[float], horizon: int) -> None:
    with pytest.raises(InvalidParameterError):
        ForecastRequest(series=series, horizon=horizon)


def test_verbs_know_the_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(write_random_model(tmp_path / "model", seed=1))
    assert main(["run", "-m", folder, "1", "2", "4", "--horizon", "3", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (len(said["forecast"]), said["usage"]) == (3, {"values_read": 3, "values_forecast": 3})
    assert main(["run", "-m", folder, "one", "two", "--json"]) == 2
    capsys.readouterr()
    assert main(["bench", "-m", folder, "--horizon", "4", "--repeats", "1", "--json"]) == 0
    assert "batch of 8, values/s" in json.loads(capsys.readouterr().out)["figures"]
    assert main(["fit", folder, "--batch", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fit"]["kind"] == "forecast"


def test_the_mock_back_end_repeats_the_last_value() -> None:
    with InferenceEngine(backend="mock") as engine:
        assert engine.load_as(ForecastHandle, "any/forecast").forecast([1.0, 7.0], 2) == (7.0, 7.0)
