"""Counts of a configuration are compared with limits and with the weights' headers, in milliseconds."""

from __future__ import annotations

import time
from typing import Any

import pytest
from mlxengine import TensorInfo
from mlxengine.toolkit.counts import config_problem
from mlxengine.toolkit.estimate import architectures, context_length, number

TENSORS = tuple(
    TensorInfo(name=f"model.layers.{i}.w", dtype="F16", shape=(64, 32), nbytes=4096, file="m")
    for i in range(8)
)
GOOD: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 8,
    "hidden_size": 32,
    "vocab_size": 64,
    "num_attention_heads": [4, 4, 2],
    "num_key_value_heads": None,
    "head_dim": 8.0,
    "sliding_window": -1,
    "max_position_embeddings": 10_485_760,
    "rope_theta": 5e7,
    "partial_rotary_factor": [0.5, 1],
    "rope_scaling": None,
    "layer_types": ["full_attention"] * 8,
    "text_config": {"hidden_size": 64, "intermediate_size": [128, 256]},
    "pad_token_id": -1,
    "anything": {"else": [10**30]},
}


def problem(**changes: Any) -> str | None:
    found = config_problem("org/name", {**GOOD, **changes}, TENSORS)
    return None if found is None else found.message


def test_what_models_really_say_is_believed() -> None:
    assert problem() is None
    assert config_problem("org/name", GOOD, ()) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**12},
        {"num_hidden_layers": 9},  # more than tensors
        {"num_hidden_layers": True},
        {"num_hidden_layers": "8"},
        {"num_hidden_layers": -8},
        {"hidden_size": 10**9},
        {"hidden_size": 10**400},
        {"vocab_size": float("inf")},
        {"vocab_size": float("nan")},
        {"num_attention_heads": [4, 10**9]},
        {"num_attention_heads": {}},
        {"max_position_embeddings": 2**40},
        {"layer_types": 7},
        {"layer_types": {"a": 1}},
        {"architectures": 1},
        {"architectures": [1]},
        {"model_type": ["llama"]},
        {"rope_theta": "x"},
        {"rope_theta": [1e4, "x"]},
        {"rope_theta": float("nan")},
        {"rope_scaling": [1]},
        {"text_config": {"hidden_size": 10**9}},
        {"text_config": {"vision_config": {"depth": 10**9}}},
        {"text_config": 5},
        {"num_experts": 10**7},
    ],
)
def test_what_cannot_be_is_named_with_its_place(changes: dict[str, Any]) -> None:
    began = time.perf_counter()
    found = problem(**changes)
    assert time.perf_counter() - began < 0.05
    assert found is not None
    assert next(iter(changes)) in found


def test_numbers_are_read_from_any_configuration() -> None:
    assert number({"a": "x", "b": 10**400}, "a", "b") == 1 << 31
    assert number({"a": True, "b": -3}, "a", "b") == 0
    assert context_length({"max_position_embeddings": 10**400}) is None
    assert architectures({"architectures": 5}) == ()
    assert architectures({"architectures": "One"}) == ("One",)
