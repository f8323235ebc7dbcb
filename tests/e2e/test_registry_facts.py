"""What `mlxengine models` says of the registry, and whether its figures are those of real weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from mlxengine import InferenceEngine

from tests.hub import weights

from .conftest import Ran

Run = Callable[..., Ran]


def test_models_are_found_by_license_and_context(call: Run) -> None:
    found = call("models", "--kind", "llm", "--license", "Apache-2.0", "--min-context", "128K", "--json").json
    assert len(found["models"]) >= 20
    for item in found["models"]:
        assert item["license"] == "apache-2.0"
        assert item["context_length"] >= 128 * 1024
    assert call("models", "--license", "no-such-license", "--json").json == {"models": []}
    shown = call("models", "Qwen3-0.6B", "--license", "apache-2.0").out
    assert "40960    apache-2.0" in shown
    assert call("models", "--min-context", "long").code == 2


def test_a_model_is_shown_with_its_facts_and_where_each_was_read(call: Run) -> None:
    shown = call("models", "Qwen/Qwen2.5-3B-Instruct").out
    assert "qwen-research" in shown
    assert "https://qwenlm.github.io/blog/qwen2.5/ (documented, 2026-11-22)" in " ".join(shown.split())
    assert "computed: 3085938688 weights of 16 bits" in " ".join(shown.split())
    assert "mlx-community/Qwen2.5-3B-Instruct-4bit" in shown
    value = call("models", "Qwen/Qwen2.5-3B-Instruct", "--json").json
    assert value["license"] == "qwen-research"
    assert all(source["source"].startswith("https://") for source in value["sources"])
    assert {"license", "context_length"} <= {name for one in value["sources"] for name in one["fields"]}


@pytest.mark.parametrize(
    ("real", "listed", "size"),
    [(weights.SMOLLM2, "HuggingFaceTB/SmolLM2-135M-Instruct", 2), (weights.MINILM, weights.MINILM, 4)],
)
def test_the_figures_are_those_that_fit_finds_in_the_real_weights(real: str, listed: str, size: int) -> None:
    with InferenceEngine() as engine:
        entry = engine.registry.entry(listed).configuration
        found = engine.fit(weights.folder_of(real)).estimate.weights
        on_cpu = engine.device.backend == "cpu"
    assert entry.parameter_count is not None
    assert entry.memory_bytes == pytest.approx(size * entry.parameter_count, rel=0.01)
    if on_cpu:  # where every weight becomes one of 32 bits
        assert found == pytest.approx(4 * entry.parameter_count, rel=1e-3)
    else:
        assert found <= 4.01 * entry.parameter_count
