"""The registry's embedding models: what is known of each, and where it was read."""

from __future__ import annotations

import attrs
import pytest
from mlxengine.registry import ModelRegistry
from mlxengine_embed import EmbedConfiguration
from mlxengine_embed.models import MODELS


def test_every_entry_has_a_size_and_a_longest_input_and_those_that_pool_a_dimension() -> None:
    assert len(MODELS) == len({item.id.casefold() for item in MODELS}) >= 30
    for item in MODELS:
        assert item.kind == "embed"
        assert item.parameters
        assert item.max_length
        if item.family not in ("clip", "siglip"):  # their towers pool
            assert (item.dimension is None) == (item.pooling is None)


def test_most_facts_have_a_source_with_an_address_and_licenses_and_memory_always() -> None:
    registry = ModelRegistry(MODELS)
    counts = {"license": 28, "dimension": 26, "max_length": 25, "memory_bytes": 27, "size": 27, "pooling": 12}
    for name, least in counts.items():
        found = [item for item in MODELS if registry.provenance(item.id, name)]
        assert len(found) >= least, (name, len(found))
    for item in MODELS:
        for name in ("license", "memory_bytes"):
            assert getattr(item, name) is None or registry.provenance(item.id, name), (item.id, name)
        for source in (item.provenance, *item.sources) if item.provenance else item.sources:
            assert source.source.startswith("https://")
            assert set(source.fields) <= set(attrs.fields_dict(EmbedConfiguration))


def test_memory_that_is_stated_agrees_with_size_times_bits() -> None:
    bits = {"fp32": 4, "none": 2}
    for item in MODELS:
        if item.memory_bytes is not None:
            count = item.parameter_count or item.parameters or 0
            assert item.memory_bytes == pytest.approx(count * bits[item.quantization or ""], rel=0.05), (
                item.id
            )
