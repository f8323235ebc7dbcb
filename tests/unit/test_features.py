"""Feature flags: who decides, what is available, and what is refused."""

from __future__ import annotations

import itertools

import pytest
from mlxengine import Feature, LLMEngineFeatures, Stage
from mlxengine.contract.features import FeatureRegistry, Layer, Level, parse_flags
from mlxengine.errors import (
    FeatureUnavailableError,
    InvalidParameterError,
    PluginContractError,
    UnknownFeatureError,
)

BITS = Feature(name="llm.kv_bits", default=None, choices=(None, 4, 8), summary="Bits of the cache.")
CACHE = Feature(
    name="llm.prompt_cache", default=True, summary="Reuse.", provides=LLMEngineFeatures.PROMPT_CACHE
)
DRAFT = Feature(name="llm.draft", default=False, summary="Guess ahead.", stage=Stage.EXPERIMENTAL)
BROKEN = Feature(name="llm.grammar", default=True, summary="JSON.", probe=lambda: "llguidance is missing")
SHARE = Feature(name="llm.share", default=0.5, summary="A share.")
STRONGEST_FIRST = [Level.CALL, Level.LOAD, Level.ENGINE, Level.ENVIRONMENT, Level.FILE]


def registry(*layers: Layer) -> FeatureRegistry:
    found = FeatureRegistry(layers)
    for feature in (BITS, CACHE, DRAFT, BROKEN, SHARE):
        found.add(feature, "llm")
    return found


@pytest.mark.parametrize(("strong", "weak"), list(itertools.combinations(STRONGEST_FIRST, 2)))
def test_the_stronger_level_wins_and_explain_names_it(strong: Level, weak: Level) -> None:
    outer = [Layer(level, {}) for level in STRONGEST_FIRST if level not in (strong, weak)]
    layers = [Layer(strong, {"llm.kv_bits": 4}), Layer(weak, {"llm.kv_bits": 8})]
    inner = [item for item in layers if item.level in (Level.CALL, Level.LOAD)]
    found = registry(*[item for item in layers if item not in inner], *outer)
    view = found.view(*inner)
    assert view.get(BITS) == 4
    assert view.explain("llm.kv_bits").source is strong
    assert strong.value in view.explain("llm.kv_bits").reason


def test_the_default_holds_where_nobody_says_otherwise() -> None:
    found = registry().explain("llm.prompt_cache")
    assert (found.value, found.source, found.provider, found.available) == (True, Level.DEFAULT, "llm", True)
    assert registry().explain(DRAFT).value is False


def test_an_experimental_feature_is_off_until_it_is_asked_for() -> None:
    assert registry().view().get(DRAFT) is False
    assert registry(Layer(Level.ENVIRONMENT, {"llm.draft": "on"})).view().get(DRAFT) is True


def test_a_feature_whose_probe_failed_is_off_and_says_why() -> None:
    found = registry().explain("llm.grammar")
    assert (found.value, found.available) == (False, False)
    assert "llguidance is missing" in found.reason


@pytest.mark.parametrize("level", STRONGEST_FIRST)
def test_asking_for_what_is_not_available_raises_at_every_level(level: Level) -> None:
    layer = Layer(level, {"llm.grammar": True})
    with pytest.raises(FeatureUnavailableError, match=f"{level.value}.*llguidance is missing"):
        registry(layer).check()


def test_turning_off_what_is_not_available_is_fine() -> None:
    registry(Layer(Level.ENVIRONMENT, {"llm.grammar": "off"})).check()


def test_requiring_a_disabled_feature_raises_with_the_way_to_turn_it_on() -> None:
    view = registry().view(Layer(Level.LOAD, {"llm.prompt_cache": False}))
    with pytest.raises(FeatureUnavailableError, match=r"set to False by load.*features="):
        view.require(CACHE)
    assert registry().view().require(CACHE) is True


def test_a_probe_runs_once_and_one_that_raises_is_a_reason() -> None:
    calls: list[int] = []

    def probe() -> str | None:
        calls.append(1)
        raise OSError("no device")

    found = FeatureRegistry()
    found.add(Feature(name="x.y", default=True, summary="", probe=probe), "x")
    assert "OSError: no device" in str(found.why_not("x.y"))
    found.why_not("x.y")
    assert len(calls) == 1


def test_an_unknown_name_suggests_near_ones() -> None:
    with pytest.raises(UnknownFeatureError, match=r"Did you mean .*llm.kv_bits"):
        registry().view(Layer(Level.CALL, {"llm.kvbits": 4}))
    with pytest.raises(UnknownFeatureError):
        registry(Layer(Level.ENVIRONMENT, {"lmm.kv_bits": 4})).check()


def test_a_flag_of_a_plugin_that_is_not_installed_may_stay_in_the_file() -> None:
    registry(Layer(Level.FILE, {"speech.rate": 2})).check()
    with pytest.raises(UnknownFeatureError):
        registry(Layer(Level.FILE, {"llm.rate": 2})).check()


@pytest.mark.parametrize(
    ("feature", "text", "value"),
    [(BITS, "4", 4), (BITS, "none", None), (CACHE, "off", False), (CACHE, "1", True), (SHARE, "0.25", 0.25)],
)
def test_texts_are_read_as_the_flag_s_type(feature: Feature[object], text: str, value: object) -> None:
    assert feature.coerce(text) == value


@pytest.mark.parametrize(
    ("feature", "value"),
    [(BITS, 5), (BITS, "many"), (CACHE, 1), (CACHE, "maybe"), (SHARE, "x"), (DRAFT, None)],
)
def test_a_value_of_another_type_or_outside_the_choices_is_refused(
    feature: Feature[object], value: object
) -> None:
    with pytest.raises(InvalidParameterError, match=feature.name):
        feature.coerce(value)


def test_zero_is_a_value_and_not_none() -> None:
    assert SHARE.coerce(0) == 0.0
    assert registry(Layer(Level.FILE, {"llm.share": 0})).view().get(SHARE) == 0.0


def test_well_known_names_lead_to_the_features_that_provide_them() -> None:
    assert registry().providers("prompt_cache") == (CACHE,)
    assert registry().providers(LLMEngineFeatures.LORA) == ()
    with pytest.raises(UnknownFeatureError, match="reranking"):
        registry().providers("re_ranking")


@pytest.mark.parametrize("name", ["vlm.kv_bits", "llm.KV", "kv_bits", "llm."])
def test_a_plugin_cannot_list_a_name_outside_its_own(name: str) -> None:
    with pytest.raises(PluginContractError):
        FeatureRegistry().add(Feature(name=name, default=1, summary=""), "llm")
    with pytest.raises(PluginContractError, match="twice"):
        registry().add(BITS, "llm")


def test_flags_are_read_from_one_line() -> None:
    assert parse_flags(" llm.kv_bits=4, -llm.prompt_cache ,llm.draft,") == {
        "llm.kv_bits": "4",
        "llm.prompt_cache": False,
        "llm.draft": True,
    }
