"""The process lives, requests are served, and figures say what happened: each by what really ran."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlxengine import Event, Request, TextDelta
from mlxengine_serve import ServerOptions
from serve_harness import Scripted, Served, said, serving, write_model


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Served]:
    """A server of this test's alone, whose patience is short."""
    folder = write_model(tmp_path / "scripted")
    options = ServerOptions(models=[f"scripted={folder}"], stuck_seconds=0.4, ready_seconds=1.0)
    with serving(options, Scripted()) as served:
        yield served


def ready(served: Served) -> tuple[int, str]:
    answer = served.get("/ready")
    return answer.status_code, answer.json().get("reason", "")


def test_it_is_alive_at_once_and_ready_when_its_models_are_there(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "scripted")
    plugin = Scripted(load_seconds=0.3)
    with serving(ServerOptions(models=[f"scripted={folder}"]), plugin) as served:
        assert served.get("/health").json() == {"status": "ok"}
        assert ready(served) == (503, "loading scripted")
        served.wait_until(lambda: ready(served)[0] == 200)
        assert len(plugin.asked) == 1, "ready means that a token was made"
        assert plugin.last.params.max_tokens == 1
        assert ready(served)[0] == 200
        assert len(plugin.asked) == 1, "which is believed for a while"


def test_a_step_that_does_not_return_is_seen(own: Served) -> None:
    own.wait_until(lambda: ready(own)[0] == 200)
    hold = threading.Event()
    assert own.plugin is not None

    def stuck(_request: Request) -> Iterator[Event]:
        hold.wait(5)
        yield TextDelta(text="late")

    own.plugin.plan = stuck
    handle = own.engine.sync.load(own.engine.sync.models[0].id)
    stream = handle.stream(own.plugin.last)
    took = own.wait_until(lambda: ready(own)[0] == 503)
    assert took < 0.4 + 1
    assert "has not returned" in ready(own)[1]
    assert own.get("/health").status_code == 200
    hold.set()
    stream.cancel()
    own.plugin.plan = said("a")
    own.wait_until(lambda: ready(own)[0] == 200)


@pytest.mark.parametrize("error", [MemoryError("no more"), ZeroDivisionError()])
def test_what_failed_last_is_not_ready_until_a_token_is_made_again(own: Served, error: Exception) -> None:
    own.wait_until(lambda: ready(own)[0] == 200)
    assert own.plugin is not None

    def broken(_request: Request) -> Iterator[Event]:
        raise error
        yield

    own.plugin.plan = broken
    handle = own.engine.sync.load(own.engine.sync.models[0].id)
    with pytest.raises(Exception, match=r"scripted|memory"):
        handle.run(own.plugin.last)
    status, reason = ready(own)
    assert status == 503
    assert "no token was made" in reason
    own.plugin.plan = said("a")
    assert ready(own)[0] == 200


def test_figures_of_engine_and_http_come_as_openmetrics(served: Served) -> None:
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    served.get("/v1/models")
    answer = served.get("/metrics")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    families: dict[str, Any] = {item.name: item for item in text_string_to_metric_families(answer.text)}
    assert {"mlxengine_requests", "mlxengine_memory_bytes", "mlxengine_http_open"} <= families.keys()
    samples = families["mlxengine_http_requests"].samples
    counted = {(item.labels["route"], item.labels["status"]): item.value for item in samples}
    assert counted["/v1/models", "200"] >= 1


def test_models_are_listed_in_the_form_of_the_client_that_asks(served: Served) -> None:
    import anthropic.types
    import openai.types

    [entry] = served.get("/v1/models").json()["data"]
    assert (entry["id"], entry["loaded"], entry["kind"]) == ("scripted", True, "llm")
    openai.types.Model.model_validate(entry, strict=True)
    theirs = served.get("/v1/models/scripted", headers={"anthropic-version": "2023-06-01"})
    assert anthropic.types.ModelInfo.model_validate_json(theirs.content).max_input_tokens == 4096
    missing = served.get("/v1/models/org/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_the_clock_of_readiness_does_not_wait_for_requests_that_run(own: Served) -> None:
    own.wait_until(lambda: ready(own)[0] == 200)
    assert own.plugin is not None

    def slow(_request: Request) -> Iterator[Event | None]:
        while True:
            time.sleep(0.01)
            yield None

    own.plugin.plan = slow
    stream = own.engine.sync.load(own.engine.sync.models[0].id).stream(own.plugin.last)
    time.sleep(1.2)
    assert ready(own)[0] == 200, "steps return: it is at work"
    stream.cancel()
