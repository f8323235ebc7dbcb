"""What cannot be spread over ranks is refused from the card, before anything is read; each by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llm_harness import card_of, write_tiny
from mlxengine import Fit, InferenceEngine, ModelConfiguration, TextWorkload
from mlxengine.errors import (
    FeatureUnavailableError,
    IncompatibleWeightsError,
    InvalidParameterError,
    MLXEngineError,
    UnsupportedArchitectureError,
)
from mlxengine_llm import features as llm
from mlxengine_shard import plugin
from mlxengine_shard._claim import HONOURS
from shard_harness import running


def edited(source: Path, folder: Path, **config: Any) -> Path:
    """The model with another configuration; its weights are never looked at."""
    folder.mkdir()
    for file in source.iterdir():
        folder.joinpath(file.name).write_bytes(file.read_bytes())
    old = json.loads(source.joinpath("config.json").read_text())
    folder.joinpath("config.json").write_text(json.dumps({**old, **config}))
    return folder


def refusal(folder: Path, ranks: int, **flags: object) -> Exception | None:
    settings = {"shard.ranks": ranks, **{f"shard.{name}": value for name, value in flags.items()}}
    claim = plugin.claim_model(card_of(folder, features=tuple(settings.items())))
    assert claim is not None
    assert claim.fit is Fit.CHOSEN
    return claim.problem


@pytest.mark.parametrize(
    ("config", "ranks", "named"),
    [
        ({"num_attention_heads": 9, "num_key_value_heads": 3}, 2, "num_attention_heads=9"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, 2, "num_key_value_heads=3"),
        ({"num_attention_heads": 8, "num_key_value_heads": 1}, 2, "num_key_value_heads=1"),
        ({"num_attention_heads": 3, "num_key_value_heads": None}, 2, "num_attention_heads=3"),
        ({"intermediate_size": 65}, 2, "intermediate_size=65"),
        ({"model_type": "qwen3_moe", "moe_intermediate_size": 33}, 2, "moe_intermediate_size=33"),
        ({}, 3, "num_attention_heads=4"),
        ({}, 4, "num_key_value_heads=2"),
        ({"quantization": {"group_size": 64, "bits": 4}}, 2, "groups of 64 packed weights"),
    ],
)
def test_what_does_not_divide(
    tiny: Path, tmp_path: Path, config: dict[str, Any], ranks: int, named: str
) -> None:
    found = refusal(edited(tiny, tmp_path / "model", **config), ranks)
    assert isinstance(found, IncompatibleWeightsError)
    assert named in found.message


def test_the_numbers_of_ranks_that_fit_are_named(tiny: Path) -> None:
    assert refusal(tiny, 2) is None
    assert "among 2." in str(refusal(tiny, 3))


@pytest.mark.parametrize(
    ("config", "split", "error"),
    [
        ({"model_type": "gemma3_text"}, "tensor", UnsupportedArchitectureError),
        ({"model_type": "llama"}, "pipeline", UnsupportedArchitectureError),
        ({"model_type": "qwen2", "num_hidden_layers": 1}, "pipeline", IncompatibleWeightsError),
    ],
)
def test_what_cannot_be_split_so(
    tiny: Path, tmp_path: Path, config: dict[str, Any], split: str, error: type[MLXEngineError]
) -> None:
    assert isinstance(refusal(edited(tiny, tmp_path / "model", **config), 2, split=split), error)


def test_only_a_load_that_asks_for_ranks_is_claimed(tiny: Path) -> None:
    assert plugin.claim_model(card_of(tiny)) is None
    with InferenceEngine() as engine:
        assert engine.explain(str(tiny)).record.name == "llm"
    with InferenceEngine(features={"shard.ranks": 2}) as engine:  # and one whose engine does
        assert engine.explain(str(tiny)).record.name == "shard"
    with InferenceEngine() as engine, pytest.raises(InvalidParameterError, match="over how many"):
        engine.load(str(tiny), plugin="shard")


@pytest.mark.parametrize("ranks", [1, 0, 2.5, "many"])
def test_numbers_that_are_none(tiny: Path, ranks: object) -> None:
    with InferenceEngine() as engine, pytest.raises(InvalidParameterError, match=r"shard\.ranks"):
        engine.load(str(tiny), features={"shard.ranks": ranks})


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_a_step_takes_some_time(tiny: Path, seconds: float) -> None:
    with InferenceEngine() as engine, pytest.raises(InvalidParameterError, match=r"shard\.step_seconds"):
        engine.load(str(tiny), features={"shard.ranks": 2, "shard.step_seconds": seconds})
    assert running() == []


def test_one_load_of_an_engine_with_ranks_can_go_without(tiny: Path) -> None:
    with InferenceEngine(features={"shard.ranks": 2}) as engine:
        handle = engine.load(str(tiny), features={"shard.ranks": None})
        assert "ranks" not in handle.info
    assert running() == []


@pytest.mark.parametrize("flag", [item for item in llm.FEATURES if item not in HONOURS], ids=lambda f: f.name)
def test_flags_that_are_not_mirrored_are_refused_by_name(tiny: Path, flag: Any) -> None:
    value: Any = {"llm.kv_bits": 8, "llm.kv_tokens": 64}.get(flag.name, flag.default or True)
    value = "somewhere" if flag.name in ("llm.draft_model", "llm.prompt_cache_folder") else value
    with InferenceEngine() as engine, pytest.raises(FeatureUnavailableError, match=flag.name):
        engine.load(str(tiny), features={"shard.ranks": 2, flag.name: value})
    assert running() == []


def test_flags_that_are_set_further_out_too(tiny: Path) -> None:
    with (
        InferenceEngine(features={"llm.kv_bits": 8}) as engine,
        pytest.raises(FeatureUnavailableError, match=r"llm\.kv_bits cannot be used with shard\.ranks"),
    ):
        engine.load(str(tiny), features={"shard.ranks": 2})
    assert running() == []


def test_an_adapter_of_the_load_is_refused(tiny: Path) -> None:
    wanted = ModelConfiguration(id=str(tiny), adapter="somewhere", features=(("shard.ranks", 2),))
    with InferenceEngine() as engine, pytest.raises(FeatureUnavailableError, match="adapters"):
        engine.load(wanted)


def test_a_model_whose_weights_are_damaged_is_a_load_error_and_leaves_nobody(
    tiny: Path, tmp_path: Path
) -> None:
    folder = edited(tiny, tmp_path / "model", num_hidden_layers=3)
    with InferenceEngine() as engine, pytest.raises(IncompatibleWeightsError):
        engine.load(str(folder), features={"shard.ranks": 2})
    assert running() == []


def test_memory_is_reckoned_for_all_ranks_here_and_for_one_on_cuda(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model")
    with InferenceEngine() as engine:
        whole = engine.explain(str(folder)).claim
    with InferenceEngine(features={"shard.ranks": 2}) as engine:
        spread = engine.explain(str(folder)).claim
    assert whole.estimate is not None
    assert spread.estimate is not None
    for backend, more in (("metal", True), ("cuda", False)):
        workload = TextWorkload(context_length=1024, backend=backend)
        one, each = whole.estimate(workload).weights, spread.estimate(workload).weights
        assert (one < each < 2 * one) if more else (one / 2 < each < one)


def test_a_model_that_sees_is_left_to_the_plugin_for_such(tiny: Path, tmp_path: Path) -> None:
    folder = edited(tiny, tmp_path / "model", vision_config={"model_type": "siglip"})
    assert plugin.claim_model(card_of(folder, features=(("shard.ranks", 2),))) is None
