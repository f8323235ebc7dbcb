"""A plugin's entries in a JSON file: shared facts once, each with the address where it was read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from mlxengine import (
    InferenceEngine,
    LoadContext,
    ModelCard,
    ModelConfiguration,
    Request,
    RunContext,
    hookimpl,
)
from mlxengine.registry import ModelRegistry, read_entries

FILE: dict[str, Any] = {
    "checked": "2026-11-22",
    "sources": {"card": "https://card.example", "list": "https://list.example"},
    "groups": [
        {
            "facts": {"kind": "llm", "family": "some", "quantization": "none", "license": "mit"},
            "from": {"list": "id size parameter_count license", "card": "license context_length"},
            "models": [
                {
                    "id": "org/Some-1B",
                    "size": "1B",
                    "parameter_count": 1_000_000,
                    "context_length": 4096,
                    "converted": {"mlx/Some-1B-*": ["4bit 8bit", "card"], "mlx/Some-mini": ["bf16", None]},
                },
                {
                    "id": "org/Some-view",
                    "parameter_count": 1000,
                    "converted": {"mlx/Some-view-*": ["4bit", "list", "partly"]},
                },
                {"id": "org/Some-2B", "size": "2B", "license": None, "from": {"list": "size"}},
                {
                    "id": "org/Some-odd",
                    "parameter_count": 10,
                    "quantization": "mxfp4",
                    "memory_bytes": 17,
                    "computed": "4 weights of 4 bits, 6 of 20",
                },
            ],
        }
    ],
}


@pytest.fixture
def registry(tmp_path: Path) -> ModelRegistry:
    path = tmp_path / "models.json"
    path.write_text(json.dumps(FILE))
    return ModelRegistry(read_entries(path, ModelConfiguration))


def test_a_model_has_its_group_s_facts_and_its_own_each_with_its_source(registry: ModelRegistry) -> None:
    item = registry.entry("org/Some-1B").configuration
    assert (item.family, item.license, item.context_length) == ("some", "mit", 4096)
    assert registry.provenance(item.id, "license") == item.provenance
    assert item.provenance is not None
    assert item.provenance.source == "https://list.example"
    assert item.provenance.checked == "2026-11-22"
    found = registry.provenance(item.id, "context_length")
    assert found is not None
    assert (found.source, found.how) == ("https://card.example", "documented")
    assert registry.provenance(item.id, "family") is None


def test_memory_is_computed_and_says_how(registry: ModelRegistry) -> None:
    for name, size, bits in (("org/Some-1B", 2_000_000, 16), ("mlx/Some-1B-4bit", 562_500, 4.5)):
        item = registry.entry(name).configuration
        assert item.memory_bytes == size
        found = registry.provenance(name, "memory_bytes")
        assert found is not None
        assert (found.source, found.how) == (
            "https://list.example",
            f"computed: 1000000 weights of {bits} bits",
        )
    odd = registry.provenance("org/Some-odd", "memory_bytes")
    assert odd is not None
    assert odd.how == "computed: 4 weights of 4 bits, 6 of 20"
    assert registry.entry("org/Some-odd").configuration.memory_bytes == 17


def test_conversions_are_entries_with_the_base_s_facts(registry: ModelRegistry) -> None:
    item = registry.entry("mlx/Some-1B-8bit").configuration
    assert (item.base_model, item.quantization, item.license) == ("org/Some-1B", "8bit", "mit")
    assert item.provenance is not None
    assert item.provenance.source == "https://card.example"
    found = [other.id for other in registry.variants("org/Some-1B")]
    assert found == ["mlx/Some-1B-4bit", "mlx/Some-1B-8bit", "mlx/Some-mini", "org/Some-1B"]


def test_what_was_quantized_in_part_has_no_figure_for_its_memory(registry: ModelRegistry) -> None:
    item = registry.entry("mlx/Some-view-4bit").configuration
    assert item.provenance is not None
    assert (item.parameter_count, item.memory_bytes) == (1000, None)


def test_what_no_source_names_is_not_checked_and_has_no_facts_that_were_withdrawn(
    registry: ModelRegistry,
) -> None:
    assert registry.entry("mlx/Some-mini").configuration.provenance is None
    second = registry.entry("org/Some-2B").configuration
    assert second.provenance is None
    assert second.license is None
    assert second.memory_bytes is None
    assert registry.provenance(second.id, "size") is not None


def test_a_field_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    broken = json.loads(json.dumps(FILE))
    broken["groups"][0]["facts"]["licence"] = "mit"
    path = tmp_path / "models.json"
    path.write_text(json.dumps(broken))
    with pytest.raises(TypeError, match="licence"):
        tuple(read_entries(path, ModelConfiguration))


def test_one_entry_is_found_without_building_the_others(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    path.write_text(json.dumps(FILE))
    built: list[str] = []

    class Counted(ModelConfiguration):
        def __attrs_post_init__(self) -> None:
            built.append(self.id)

    entries = read_entries(path, Counted)
    assert entries.get("nobody/knows-it") is None
    assert built == []
    wanted = tuple(read_entries(path, ModelConfiguration))
    for item in wanted:
        found = entries.get(item.id.upper())
        assert found is not None
        assert (found.id, found.provenance, found.sources) == (item.id, item.provenance, item.sources)
    assert len(entries) == len(wanted)


def test_a_model_is_loaded_by_name_without_building_the_registry(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    path.write_text(json.dumps(FILE))
    built: list[str] = []

    class Counted(ModelConfiguration):
        def __attrs_post_init__(self) -> None:
            built.append(self.id)

    class Listing:
        @hookimpl
        def list_models(self) -> Sequence[ModelConfiguration]:
            return read_entries(path, Counted)

        @hookimpl
        def claim_model(self, card: ModelCard) -> None: ...

        @hookimpl
        def load_model(self, card: ModelCard, context: LoadContext) -> None: ...

        @hookimpl
        def generate(self, model: object, request: Request, context: RunContext) -> None: ...

    with InferenceEngine(backend="mock", plugins=[("listing", Listing())]) as engine:
        engine.load("nobody/knows-it").close()
        assert built == []
        handle = engine.load("org/some-1b@main")
        assert (handle.configuration.size, handle.configuration.revision) == ("1B", "main")
        assert set(built) == {"org/Some-1B"}
