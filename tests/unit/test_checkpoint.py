"""Configurations of transformers 5 are readable for models that know only the flat keys, and the reverse."""

from __future__ import annotations

import pytest
from mlxengine.readonly import freeze
from mlxengine.toolkit.checkpoint import normalise_config

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_the_base_of_the_rotary_positions_is_hoisted() -> None:
    found = normalise_config({"rope_parameters": {"rope_theta": 100000, "rope_type": "default"}})
    assert found["rope_theta"] == 100000
    assert "rope_scaling" not in found
    assert found["rope_parameters"] == {"rope_theta": 100000, "rope_type": "default"}


def test_the_nested_value_wins_over_a_stale_flat_one() -> None:
    found = normalise_config({"rope_theta": 10000.0, "rope_parameters": {"rope_theta": 5e5}})
    assert found["rope_theta"] == 5e5


def test_scaled_positions_keep_their_scaling_without_the_base() -> None:
    found = normalise_config({"rope_parameters": {**LLAMA3, "rope_theta": 5e5}})
    assert found["rope_scaling"] == {**LLAMA3, "type": "llama3"}
    assert found["original_max_position_embeddings"] == 8192


def test_an_inner_text_model_is_treated_likewise() -> None:
    found = normalise_config({"text_config": {"rope_parameters": {"rope_theta": 1e6}}, "vision_config": {}})
    assert found["text_config"]["rope_theta"] == 1e6
    assert found["vision_config"] == {}


def test_full_and_sliding_layers_have_each_their_base_and_period() -> None:
    layers = ["sliding_attention"] * 2 + ["full_attention"] + ["sliding_attention"] * 2
    rope = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    found = normalise_config({"rope_parameters": rope, "layer_types": layers})
    assert (found["rope_theta"], found["rope_local_base_freq"], found["local_rope_theta"]) == (1e6, 1e4, 1e4)
    assert found["sliding_window_pattern"] == 3
    leading = normalise_config({"rope_parameters": rope, "layer_types": layers[2:] + layers[2:3]})
    assert leading["global_attn_every_n_layers"] == 3
    assert "sliding_window_pattern" not in leading


@pytest.mark.parametrize(
    "config",
    [{}, {"rope_theta": 5.0}, {"rope_parameters": None}, {"rope_parameters": {}}, {"layer_types": None}],
)
def test_a_configuration_without_news_passes_unchanged(config: dict[str, object]) -> None:
    assert normalise_config(config) == config


def test_the_card_s_read_only_config_becomes_plain_and_is_not_touched() -> None:
    frozen = freeze({"rope_parameters": {"rope_theta": 7.0}, "eos_token_id": [1, 2]})
    found = normalise_config(frozen)
    found["eos_token_id"].append(3)
    assert frozen["eos_token_id"] == (1, 2)
    assert "rope_theta" not in frozen


def test_mlx_lm_s_llama_turns_by_the_base_that_transformers_5_wrote() -> None:
    from mlxengine.toolkit import backend  # noqa: F401  (the BLAS first)

    llama = pytest.importorskip("mlx_lm.models.llama")
    config = {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": 16,
        "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
    }
    model = llama.Model(llama.ModelArgs.from_dict(normalise_config(config)))
    assert model.layers[0].self_attn.rope.base == 100000.0


def test_the_interval_of_full_attention_among_linear_layers_is_told_from_the_layers() -> None:
    linear, full = "linear_attention", "full_attention"
    assert normalise_config({"layer_types": [linear, linear, full] * 2})["full_attention_interval"] == 3
    assert normalise_config({"layer_types": [linear, full], "full_attention_interval": 4}) == {
        "layer_types": [linear, full],
        "full_attention_interval": 4,
    }
    assert "full_attention_interval" not in normalise_config({"layer_types": [linear, full, full]})


def test_heads_that_are_stated_by_layer_become_those_of_full_attention() -> None:
    kinds = ["sliding_attention", "full_attention"]
    own = {"01": {"head_dim": 512, "num_key_value_heads": 1}}
    config = {"layer_types": kinds, "head_dim": 256, "num_key_value_heads": 4, "per_layer_config": own}
    found = normalise_config(config)
    assert (found["global_head_dim"], found["num_global_key_value_heads"]) == (512, 1)
    alike = normalise_config({**config, "per_layer_config": {}})
    assert (alike["global_head_dim"], alike["num_global_key_value_heads"]) == (256, 4)
    assert "global_head_dim" not in normalise_config({"layer_types": kinds, "head_dim": 256})


@pytest.mark.parametrize(
    ("outer", "inner", "version", "wanted"),
    [
        (True, False, "4.57.0", True),
        (True, None, "5.2.0", True),
        (False, True, "5.2.0", False),
        (False, True, "4.57.0", True),
        (False, None, "4.57.0", False),
        (None, True, "5.2.0", True),
    ],
)
def test_the_outer_flag_says_whether_embeddings_are_tied(
    outer: bool | None, inner: bool | None, version: str, wanted: bool
) -> None:
    text = {} if inner is None else {"tie_word_embeddings": inner}
    config = {"transformers_version": version, "text_config": text}
    if outer is not None:
        config["tie_word_embeddings"] = outer
    assert normalise_config(config)["text_config"] == {"tie_word_embeddings": wanted}


def test_what_transformers_5_renamed_or_left_out_has_both_names() -> None:
    assert normalise_config({"model_type": "qwen3_moe", "num_local_experts": 4})["num_experts"] == 4
    assert "num_experts" not in normalise_config({"model_type": "mixtral", "num_local_experts": 4})
    text = normalise_config({"text_config": {"model_type": "llama4_text", "rope_theta": 5e5}})["text_config"]
    assert text["rope_scaling"] is None
