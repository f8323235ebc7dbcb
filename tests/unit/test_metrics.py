"""What is counted of requests: as values, as OpenMetrics text, and in the log."""

import logging

import pytest
from mlxengine import GenerateParams, Histogram, InferenceEngine, errors, openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families


@pytest.fixture
def engine():
    with InferenceEngine(backend="mock", plugins=[]) as engine:
        yield engine


def sample(text, name, **labels):
    """The value that prometheus-client's own parser finds."""
    [found] = [
        item.value
        for family in text_string_to_metric_families(text)
        for item in family.samples
        if item.name == name and labels.items() <= item.labels.items()
    ]
    return found


def test_what_ended_is_counted_by_model_and_by_how_it_ended(engine):
    model = engine.load_text("some/model")
    replies = [model.generate("one two three", GenerateParams(max_tokens=count)) for count in (1, 2)]
    stream = model.stream("more than a queue holds " * 1000)
    next(iter(stream))
    stream.close()
    model.generate("and a last one", GenerateParams(max_tokens=1))
    [found] = engine.metrics()
    assert (found.id, found.kind) == ("some/model", "llm")
    finished = sum(count for name, count in found.requests.items() if name != "CancelledError")
    assert (finished, found.requests["CancelledError"]) == (3, 1)
    assert found.usage["completion_tokens"] >= sum(reply.usage.completion_tokens for reply in replies)
    assert found.total_seconds.count == found.queue_seconds.count == 3
    slowest = max(reply.metrics.total_seconds for reply in replies)
    assert found.total_seconds.total >= slowest
    assert found.total_seconds.quantile(1.0) >= slowest


def test_the_openmetrics_text_says_the_same_to_prometheus_own_parser(engine):
    model = engine.load_text("some/model")
    model.generate("one two three")
    text = openmetrics(engine)
    [values] = engine.metrics()
    which = {"model": "some/model", "kind": "llm"}
    assert text.endswith("# EOF\n")
    for outcome, count in values.requests.items():
        assert sample(text, "mlxengine_requests_total", outcome=outcome, **which) == count
    assert (
        sample(text, "mlxengine_usage_total", unit="completion_tokens", **which)
        == values.usage["completion_tokens"]
    )
    assert sample(text, "mlxengine_request_total_seconds_count", **which) == 1
    assert sample(text, "mlxengine_request_total_seconds_bucket", le="+Inf", **which) == 1
    assert sample(text, "mlxengine_health", mlxengine_health="healthy") == 1
    assert sample(text, "mlxengine_tasks") == 0
    assert sample(text, "mlxengine_memory_bytes", of="reserved") == engine.memory().reserved


def test_without_prometheus_client_the_error_names_the_extra(engine, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    with pytest.raises(errors.ConfigurationError, match="not installed") as caught:
        openmetrics(engine)
    assert "mlxengine[metrics]" in caught.value.hint


def test_every_request_is_one_log_record_with_its_figures_as_attributes(engine, caplog):
    model = engine.load_text("some/model")
    with caplog.at_level(logging.INFO, logger="mlxengine.requests"):
        reply = model.generate("one two three")
    [record] = [item for item in caplog.records if item.name == "mlxengine.requests"]
    assert (record.model, record.kind) == ("some/model", "llm")
    assert record.completion_tokens == reply.usage.completion_tokens
    assert record.outcome in record.getMessage()
    assert "one two three" not in record.getMessage()  # what people ask is not logged


def test_a_quantile_is_the_bound_of_its_bucket():
    found = Histogram(bounds=(0.1, 1.0), counts=(98, 1, 1), total=5.0)
    assert [found.quantile(share) for share in (0.5, 0.99, 1.0)] == [0.1, 1.0, float("inf")]
    assert found.mean == 0.05
    assert Histogram(bounds=(1.0,), counts=(0, 0)).quantile(0.5) is None
