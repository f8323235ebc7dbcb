"""What other processes are told of the models in memory, and how `mlxengine ps` shows it."""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

import pytest
from mlxengine import (
    Claim,
    Finished,
    Fit,
    InferenceEngine,
    Loaded,
    MemoryEstimate,
    ModelState,
    Request,
    TextDelta,
    hookimpl,
)
from mlxengine._memory.reservations import Reservations
from mlxengine.cli import ps
from mlxengine.cli._output import Output

GB, MB = 10**9, 10**6
STATE = ModelState(caches=200 * MB, rows=2, kv_used=10 * MB, kv_total=40 * MB)


@pytest.fixture(autouse=True)
def reservations(tmp_path, monkeypatch):
    monkeypatch.setenv("MLXENGINE_RESERVATIONS", str(tmp_path / "reservations.json"))


class Plain:
    """Models of 1.5 GB that keep 200 MB."""

    @hookimpl
    def claim_model(self, card):
        return Claim(
            kind="plain",
            fit=Fit.NATIVE,
            uses_mlx=False,
            estimate=lambda _: MemoryEstimate(weights=1500 * MB),
        )

    @hookimpl
    def load_model(self, card, context):
        return Loaded(model=card.config, state=lambda: STATE)

    @hookimpl
    def generate(self, model, request, context):
        for _ in range(10**6):
            yield TextDelta(text="x")
        yield Finished()


@pytest.fixture
def engine():
    with InferenceEngine(plugins=[("plain", Plain())], memory_budget="8GB", idle_ttl=600) as made:
        yield made


@pytest.fixture
def folder(tmp_path):
    def make(name):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        return tmp_path / name

    return make


def shown(capsys: Any, *, as_json: bool) -> Any:
    ps.run(argparse.Namespace(), Output(json=as_json))
    text = capsys.readouterr().out
    return json.loads(text) if as_json else text


def wait_for(condition: Any, capsys: Any) -> dict[str, Any]:
    """The engine's entry when the condition holds for it."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for entry in shown(capsys, as_json=True)["engines"]:
            if condition(entry):
                return dict(entry)
        time.sleep(0.02)
    raise AssertionError(shown(capsys, as_json=True))


def test_ps_shows_what_models_hold_what_runs_and_why_they_stay(engine, folder, capsys):
    first, second = engine.load(folder("first")), engine.load(folder("second"))
    first.pin()
    stream = second.stream(Request())
    next(stream)
    with second.keep("indexing"):
        entry = wait_for(
            lambda entry: any(m["running"] for m in entry["models"]) and len(entry["models"]) == 2, capsys
        )
        assert entry["pid"] == os.getpid()
        assert entry["reserved_bytes"] == 3400 * MB
        models = {model["id"].rpartition("/")[2]: model for model in entry["models"]}
        assert models["first"] == {
            "id": first.id,
            "kind": "plain",
            "reserved_bytes": 1500 * MB,
            "cache_bytes": 200 * MB,
            "running": 0,
            "waiting": 0,
            "rows": 2,
            "kv_used_bytes": 10 * MB,
            "kv_total_bytes": 40 * MB,
            "pinned": True,
            "kept_by": [],
            "degraded": None,
            "ttl_seconds": 600,
            "idle_seconds": pytest.approx(0, abs=30),
        }
        assert (models["second"]["running"], models["second"]["kept_by"]) == (1, ["indexing"])
        table = shown(capsys, as_json=False)
        [line] = [line for line in table.splitlines() if first.id in line]
        assert " ".join(line.split()[1:]) == "plain 1.4 GiB 191 MiB 9.5 MiB of 38.1 MiB 0 0 pinned"
        assert "kept by indexing" in table
    wait_for(lambda entry: not any(model["kept_by"] for model in entry["models"]), capsys)
    stream.close()
    wait_for(lambda entry: not any(model["running"] for model in entry["models"]), capsys)
    first.pin(False)
    wait_for(lambda entry: not any(model["pinned"] for model in entry["models"]), capsys)
    [line] = [line for line in shown(capsys, as_json=False).splitlines() if first.id in line]
    assert 500 < int(line.split()[-2]) <= 600


def test_a_model_that_is_closed_or_evicted_is_not_shown_and_an_engine_without_any_is_not(
    engine, folder, capsys
):
    first, second = engine.load(folder("first")), engine.load(folder("second"))
    wait_for(lambda entry: len(entry["models"]) == 2, capsys)
    first.close()
    entry = wait_for(lambda entry: len(entry["models"]) == 1, capsys)
    assert entry["models"][0]["id"] == second.id
    second.close()
    assert shown(capsys, as_json=True) == {"engines": []}
    assert shown(capsys, as_json=False) == "No engine holds a model.\n"


def test_what_an_older_version_wrote_is_shown_without_models(capsys):
    Reservations().set(2 * GB)
    [entry] = shown(capsys, as_json=True)["engines"]
    assert (entry["reserved_bytes"], entry["models"]) == (2 * GB, [])
    assert "1.9 GiB reserved" in shown(capsys, as_json=False)
