"""The registry's language models: many, each once, each with a size and nothing claimed as checked."""

from __future__ import annotations

from mlxengine import ModelRef
from mlxengine.registry import ModelRegistry
from mlxengine_llm import models


def test_there_are_at_least_sixty_models_of_many_families_each_once() -> None:
    ids = [item.id for item in models.ALL]
    assert len(ids) == len(set(ids)) >= 60
    assert len({item.family for item in models.ALL}) >= 15
    registry = ModelRegistry(models.ALL)
    sizes = [item.parameters or 0 for item in registry]
    assert sizes == sorted(sizes)


def test_every_entry_can_be_asked_for_and_says_that_nobody_checked_it() -> None:
    for item in models.ALL:
        assert ModelRef.parse(item.id).repo_id == item.id
        assert item.kind == "llm"
        assert item.parameters
        assert item.provenance is None
        packed = item.id.endswith("-4bit")
        assert (item.quantization == "4bit") == packed
