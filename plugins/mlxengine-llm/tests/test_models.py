"""The registry's language models: many, each with a size, and with facts whose sources can be opened."""

from __future__ import annotations

import subprocess
import sys
from datetime import date

import attrs
import pytest
from mlxengine import ModelConfiguration, ModelRef
from mlxengine.contract.configuration import Provenance
from mlxengine.registry import ModelRegistry
from mlxengine_llm import models


def sources(item: ModelConfiguration) -> tuple[Provenance, ...]:
    return item.sources if item.provenance is None else (item.provenance, *item.sources)


def test_there_are_at_least_sixty_models_of_many_families_each_once() -> None:
    ids = [item.id.casefold() for item in models.MODELS]
    assert len(ids) == len(set(ids))
    assert len([item for item in models.MODELS if item.base_model is None]) >= 60
    assert len({item.family for item in models.MODELS}) >= 20
    registry = ModelRegistry(models.MODELS)
    sizes = [item.parameters or 0 for item in registry]
    assert sizes == sorted(sizes)


def test_every_entry_can_be_asked_for_and_has_a_size() -> None:
    for item in models.MODELS:
        assert ModelRef.parse(item.id).repo_id == item.id
        assert item.kind == "llm"
        assert item.parameters
        packed = item.id.endswith(("-4bit", "-8bit"))
        assert (item.quantization in ("4bit", "8bit")) == packed


def test_at_least_sixty_models_have_license_context_and_memory_each_with_a_source() -> None:
    registry = ModelRegistry(models.MODELS)
    originals = [item for item in models.MODELS if item.base_model is None]
    for wanted in ("license", "context_length", "memory_bytes", "parameter_count"):
        stated = [item for item in originals if registry.provenance(item.id, wanted)]
        assert len(stated) >= 60, (wanted, len(stated))
    assert len([item for item in originals if registry.provenance(item.id, "template_notes")]) >= 60


def test_a_fact_is_there_with_a_source_or_not_at_all() -> None:
    registry = ModelRegistry(models.MODELS)
    for item in models.MODELS:
        for name in ("license", "context_length", "memory_bytes", "parameter_count", "template_notes"):
            if getattr(item, name) is not None:
                assert registry.provenance(item.id, name), (item.id, name)


def test_sources_are_addresses_with_a_date_and_fields_that_exist() -> None:
    known = attrs.fields_dict(ModelConfiguration)
    for item in models.MODELS:
        for source in sources(item):
            assert source.source.startswith("https://"), item.id
            assert date.fromisoformat(source.checked) <= date.today()
            assert source.fields
            assert set(source.fields) <= set(known), item.id
            assert source.how == "documented" or source.how.startswith("computed: ")


def test_conversions_lead_to_an_entry_and_the_entry_to_them() -> None:
    registry = ModelRegistry(models.MODELS)
    conversions = [item for item in models.MODELS if item.base_model]
    assert len(conversions) >= 60
    for item in conversions:
        base = registry.entry(item.base_model or "").configuration
        assert base.base_model is None
        assert item in registry.variants(base.id)
        assert (item.license, item.context_length) == (base.license, base.context_length)


def test_memory_is_parameters_times_bits() -> None:
    bits = {"none": 16.0, "4bit": 4.5, "8bit": 8.5}
    figured = [item for item in models.MODELS if item.memory_bytes and item.quantization in bits]
    assert len(figured) >= 200
    for item in figured:
        assert item.memory_bytes == pytest.approx(
            (item.parameter_count or 0) * bits[item.quantization or ""] / 8
        )


def test_a_size_in_a_name_is_near_the_number_of_weights() -> None:
    for item in models.MODELS:
        if item.parameter_count is not None:
            assert 0.65 < (item.parameters or 0) / item.parameter_count < 1.15, item.id


def test_the_file_is_read_when_the_list_is_asked_for_and_not_on_import() -> None:
    code = "import sys, mlxengine_llm.plugin; sys.exit('mlxengine_llm.models' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
