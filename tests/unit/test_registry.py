"""The registry compares sizes as numbers, says where facts come from, and chooses with a reason."""

from __future__ import annotations

from typing import Any

import pytest
from mlxengine import Device, ModelConfiguration, ModelRegistry, Provenance
from mlxengine._registry.tasks import tasks_of
from mlxengine.contract.kinds import named, own_kinds
from mlxengine.errors import (
    ConfigurationError,
    InvalidModelRefError,
    InvalidParameterError,
    ModelNotFoundError,
    PluginContractError,
)
from mlxengine.registry import Origin

GIB = 2**30
CHECKED = Provenance(checked="2026-11-22", source="hub", fields=("size", "quantization"))


def entry(
    name: str, size: str | None = None, quantization: str | None = None, **more: object
) -> ModelConfiguration:
    return ModelConfiguration(
        id=name, kind=more.pop("kind", "llm"), size=size, quantization=quantization, **more
    )


ENTRIES = (
    entry("a/big-13B-4bit", "13B", "4bit", family="big"),
    entry("a/big-3B-8bit", "3B", "8bit", family="big", provenance=CHECKED, license="mit"),
    entry("a/big-3B-4bit", "3B", "4bit", family="big", provenance=CHECKED, summary="A quick helper."),
    entry("a/big-3B-bf16", "3B", "bf16", family="big"),
    entry("b/tiny-135M-Instruct", "135M", "none", family="tiny"),
    entry("b/moe", "8x7B", "4bit", family="moe"),
    entry("b/unknown"),
    entry("c/vectors", "33M", "none", kind="embed"),
)


@pytest.fixture
def registry() -> ModelRegistry:
    found = ModelRegistry()
    found.add(ENTRIES, "llm")
    return found


def gpu(working_set: int, backend: str = "metal") -> Device:
    return Device(backend=backend, name="Test chip", total_memory=2 * working_set, working_set=working_set)


def test_sizes_are_compared_as_numbers_and_not_as_texts(registry: ModelRegistry) -> None:
    assert [item.size for item in registry.filter(kind="llm", min_size="1B")] == ["3B"] * 3 + ["13B", "8x7B"]
    assert registry.filter(max_size="200M", kind="llm")[0].id == "b/tiny-135M-Instruct"
    assert registry.filter(min_size=3e9, max_size=3e9, quantization="8BIT")[0].id == "a/big-3B-8bit"


def test_an_unknown_size_meets_no_bound_and_comes_last(registry: ModelRegistry) -> None:
    assert [item.id for item in registry][-1] == "b/unknown"
    assert "b/unknown" not in [item.id for item in registry.filter(max_size="900B")]
    assert "b/unknown" in [item.id for item in registry.filter(kind="llm")]


@pytest.mark.parametrize("size", ["big", "", "-1B", "3X", -5.0, float("nan"), True])
def test_a_bad_size_is_refused(registry: ModelRegistry, size: object) -> None:
    with pytest.raises(InvalidParameterError, match="size"):
        registry.filter(min_size=size)


def test_filters_on_family_license_memory_and_check_combine(registry: ModelRegistry) -> None:
    assert {item.family for item in registry.filter(family="BIG")} == {"big"}
    assert [item.id for item in registry.filter(license="MIT")] == ["a/big-3B-8bit"]
    assert all(item.provenance for item in registry.filter(checked=True))
    assert not any(item.provenance for item in registry.filter(checked=False))
    assert "a/big-13B-4bit" not in [item.id for item in registry.filter(max_bytes=2 * GIB)]


def test_a_bound_on_the_context_is_met_only_by_what_is_known(registry: ModelRegistry) -> None:
    registry.register(entry("d/long", "1B", context_length=32_768))
    registry.register(entry("d/short", "1B", context_length=2048))
    assert [item.id for item in registry.filter(min_context=4096)] == ["d/long"]
    assert len(registry.filter(min_context=None)) == len(registry)


def test_search_takes_every_word_and_puts_matches_in_the_name_first(registry: ModelRegistry) -> None:
    assert [item.id for item in registry.search("QUICK 3b")] == ["a/big-3B-4bit"]
    assert registry.search("tiny")[0].id == "b/tiny-135M-Instruct"
    assert registry.search("no such thing") == ()


def test_variants_of_one_model_are_found_by_name_fewest_bits_first(registry: ModelRegistry) -> None:
    found = [item.quantization for item in registry.variants("a/big-3B-8bit")]
    assert found == ["4bit", "8bit", "bf16"]
    assert [item.id for item in registry.variants("b/moe")] == ["b/moe"]


def test_what_was_converted_from_a_model_is_a_variant_of_it_whatever_its_name(
    registry: ModelRegistry,
) -> None:
    registry.register(entry("e/Meta-Tiny-4bit", "135M", "4bit", base_model="b/tiny-135M-Instruct"))
    for name in ("b/tiny-135M-Instruct", "e/Meta-Tiny-4bit"):
        assert [item.quantization for item in registry.variants(name)] == ["4bit", "none"]


def test_kinds_and_families_are_those_of_the_entries(registry: ModelRegistry) -> None:
    assert registry.kinds == ("embed", "llm")
    assert registry.families == ("big", "moe", "tiny")


def test_ids_are_found_in_any_case_and_with_a_revision(registry: ModelRegistry) -> None:
    found = registry.get("A/BIG-3b-4bit@v1.0")
    assert found is not None
    assert (found.id, found.revision) == ("a/big-3B-4bit", "v1.0")
    assert registry.get("a/none") is None
    assert "b/moe" in registry
    assert 5 not in registry


def test_an_unknown_id_suggests_the_nearest(registry: ModelRegistry) -> None:
    with pytest.raises(ModelNotFoundError, match=r"Did you mean .*a/big-3B-4bit"):
        registry.entry("a/big-3B-4bits")


def test_two_plugins_with_the_same_id_is_an_error_that_names_both(registry: ModelRegistry) -> None:
    with pytest.raises(PluginContractError, match=r"'vlm'.*'B/MOE'.*twice.*'llm'"):
        registry.add([entry("x/new"), entry("B/MOE")], "vlm")
    assert "x/new" not in registry


@pytest.mark.parametrize("bad", ["a/x", {"id": "a/x"}, None])
def test_a_plugin_s_entry_that_is_none_is_an_error(bad: object) -> None:
    with pytest.raises(PluginContractError, match="ModelConfiguration"):
        ModelRegistry().add([bad], "llm")
    with pytest.raises(PluginContractError, match="not the id"):
        ModelRegistry().add([ModelConfiguration(id="not an id")], "llm")


def test_a_run_time_entry_replaces_a_plugin_s_but_not_another_run_time_one(registry: ModelRegistry) -> None:
    registry.register(entry("b/moe", "1B"))
    assert registry.get("b/moe").size == "1B"
    with pytest.raises(ConfigurationError, match="twice"):
        registry.register(entry("b/moe", "2B"))
    registry.register(entry("b/moe", "2B"), replace=True)
    assert registry.get("b/moe").size == "2B"
    registry.register(entry("b/moe", "3B"), origin=Origin.FILE)
    assert registry.get("b/moe").size == "2B"
    registry.unregister("b/moe")
    assert "b/moe" not in registry


def test_only_a_valid_configuration_can_be_registered(registry: ModelRegistry) -> None:
    with pytest.raises(InvalidParameterError):
        registry.register("a/b")
    with pytest.raises(InvalidModelRefError):
        registry.register(ModelConfiguration(id="a b"))


def test_provenance_is_told_for_each_field(registry: ModelRegistry) -> None:
    assert registry.provenance("a/big-3B-4bit", "size") == CHECKED
    assert registry.provenance("a/big-3B-4bit", "family") is None
    assert registry.provenance("b/moe", "size") is None
    with pytest.raises(InvalidParameterError, match="colour"):
        registry.provenance("b/moe", "colour")


def test_a_fact_may_have_a_source_of_its_own(registry: ModelRegistry) -> None:
    card = Provenance(checked="2026-11-22", source="https://card.example", fields=("license",))
    registry.register(entry("d/card", "1B", license="mit", sources=(card,)))
    assert registry.provenance("d/card", "license") == card
    assert registry.provenance("d/card", "size") is None


def test_the_exact_number_of_weights_decides_what_fits(registry: ModelRegistry) -> None:
    registry.register(entry("d/rounded", "1B", "4bit", parameter_count=1_500_000_000))
    cpu = gpu(64 * GIB, "cpu")
    assert "d/rounded" not in [item.id for item in registry.recommend("llm", cpu).alternatives]
    assert registry.recommend("llm", cpu).model.id != "d/rounded"


def test_the_largest_variant_that_fits_is_recommended_with_a_reason(registry: ModelRegistry) -> None:
    found = registry.recommend("llm", gpu(5 * GIB))
    assert found.model.id == "a/big-3B-8bit"
    assert "8bit is the largest that fits" in found.reason
    assert found.checked
    assert found.needed_bytes < found.budget_bytes
    assert registry.recommend("llm", gpu(12 * GIB)).model.id == "a/big-13B-4bit"


@pytest.mark.parametrize(
    ("facts", "tasks"),
    [
        ({"id": "x/Some-Coder-7B-Instruct"}, {"chat", "code"}),
        ({"id": "x/starcoder2-3b"}, {"code"}),
        ({"id": "x/gemma-3-1b-it-4bit"}, {"chat"}),
        ({"id": "x/R1-Distill-8B", "template_notes": "no tools; always thinks"}, {"chat", "reasoning"}),
        ({"id": "x/plain", "template_notes": "system messages; tools; never thinks"}, {"chat", "tools"}),
        ({"id": "x/unsaid"}, set()),
        ({"id": "x/own", "tasks": ("Law",)}, {"law"}),
        (
            {"id": "x/bge-reranker", "kind": "embed", "summary": "A multilingual one."},
            {"multilingual", "rerank"},
        ),
        ({"id": "x/minilm", "kind": "embed"}, {"embedding"}),
        ({"id": "x/sdxl-turbo", "kind": "diffusion"}, {"turbo"}),
        ({"id": "x/scoder-itself", "summary": "decode, edit, think again"}, {"reasoning"}),
    ],
)
def test_an_entry_s_tasks_are_what_it_says_itself(facts: dict[str, Any], tasks: set[str]) -> None:
    item = ModelConfiguration(**{"kind": "llm", **facts})
    assert tasks_of(item, named(own_kinds())[item.kind]) == tasks


def test_only_models_for_the_task_are_recommended(registry: ModelRegistry) -> None:
    registry.register(entry("d/coder-1B-4bit", "1B", "4bit"))
    registry.register(entry("d/law-3B-4bit", "3B", "4bit", tasks=("law",)))
    found = registry.recommend("llm", gpu(8 * GIB), "code")
    assert (found.model.id, found.alternatives) == ("d/coder-1B-4bit", ())
    assert "for code" in found.reason
    assert registry.recommend("llm", gpu(8 * GIB), task="law").model.id == "d/law-3B-4bit"


def test_an_unknown_task_names_near_ones_and_one_that_nothing_is_for_says_so(registry: ModelRegistry) -> None:
    with pytest.raises(InvalidParameterError, match="Did you mean reasoning"):
        registry.recommend("llm", gpu(GIB), "reasonning")
    with pytest.raises(ModelNotFoundError, match=r"'reasoning'.*chat"):
        registry.recommend("llm", gpu(GIB), "reasoning")
    with pytest.raises(InvalidParameterError, match="Tasks: chat"):
        registry.recommend("llm", gpu(GIB), "xyz")


def test_what_is_preferred_changes_the_choice(registry: ModelRegistry) -> None:
    assert registry.recommend("llm", gpu(8 * GIB), prefer="small").model.id == "b/tiny-135M-Instruct"
    assert registry.recommend("llm", gpu(10 * GIB), prefer="speed").model.id == "a/big-3B-4bit"


def test_a_cpu_gets_what_it_can_talk_with(registry: ModelRegistry) -> None:
    assert registry.recommend("llm", gpu(64 * GIB, "cpu")).model.id == "b/tiny-135M-Instruct"
    registry.register(entry("a/small-1B-4bit", "1B", "4bit"))
    assert registry.recommend("llm", gpu(64 * GIB, "cpu")).model.id == "a/small-1B-4bit"


def test_unchecked_entries_are_marked_and_left_out_on_request(registry: ModelRegistry) -> None:
    found = registry.recommend("embed", gpu(GIB))
    assert not found.checked
    assert "not checked" in found.reason
    with pytest.raises(ModelNotFoundError):
        registry.recommend("embed", gpu(GIB), checked_only=True)


def test_the_choice_can_be_limited_to_what_is_there(registry: ModelRegistry) -> None:
    found = registry.recommend("llm", gpu(64 * GIB), among={"B/tiny-135m-instruct", "c/vectors"})
    assert found.model.id == "b/tiny-135M-Instruct"
    assert found.alternatives == ()


def test_nothing_that_fits_says_what_the_smallest_needs(registry: ModelRegistry) -> None:
    with pytest.raises(ModelNotFoundError, match=r"b/tiny-135M-Instruct, needs about"):
        registry.recommend("llm", gpu(GIB // 4))


@pytest.mark.parametrize("budget", [0, -1, True])
def test_a_budget_that_is_no_number_of_bytes_is_refused(registry: ModelRegistry, budget: int) -> None:
    with pytest.raises(InvalidParameterError, match="budget"):
        registry.recommend("llm", gpu(GIB), budget=budget)


def test_an_unknown_kind_names_the_kinds_there_are(registry: ModelRegistry) -> None:
    with pytest.raises(InvalidParameterError, match="embed, llm"):
        registry.recommend("speech", gpu(GIB))
    with pytest.raises(InvalidParameterError, match="quality, speed, small"):
        registry.recommend("llm", gpu(GIB), prefer="fastest")
