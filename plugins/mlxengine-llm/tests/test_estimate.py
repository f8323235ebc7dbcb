"""What is said of caches before a model is loaded is what they take, or said to be a guess."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import attrs
import mlx.core as mx
import pytest
from architectures import CONFIGS, config_of
from llm_harness import card_of
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import _get_classes
from mlxengine import MemoryEstimate, ModelCard, TextWorkload
from mlxengine.toolkit.measuring import measured
from mlxengine_llm._caches import Serving, caches_for, packing
from mlxengine_llm._claim import claim

# Keys that the published configurations of these have.
WHOLE: dict[str, dict[str, Any]] = {
    "youtu_llm": {
        **config_of("youtu_llm"),
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
    },
    "minicpm3": {
        "model_type": "minicpm3",
        "hidden_size": 128,
        "dim_model_base": 64,
        "num_hidden_layers": 4,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "vocab_size": 320,
        "q_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "kv_lora_rank": 16,
        "scale_depth": 1.4,
        "scale_emb": 12,
        "rope_scaling": {"original_max_position_embeddings": 2048},
        "max_position_embeddings": 2048,
    },
    "phixtral": {
        "model_type": "phixtral",
        "num_vocab": 320,
        "model_dim": 128,
        "num_heads": 4,
        "num_layers": 3,
        "rotary_dim": 16,
    },
    "olmo3": {**config_of("olmo3"), "layer_types": ["sliding_attention", "full_attention"] * 4},
}
SILENT = {"youtu_llm", "olmo3", "afmoe"}  # the tiny configurations leave keys out
OWN = {  # networks with more in their caches than keys and values of each token
    "baichuan_m1",
    "bailing_moe_linear",
    "deepseek_v32",
    "falcon_h1",
    "granitemoehybrid",
    "iquestloopcoder",
    "jamba",
    "kimi_linear",
    "lfm2",
    "lfm2-vl",
    "lfm2_moe",
    "llama4",
    "longcat_flash",
    "longcat_flash_ngram",
    "mamba",
    "mamba2",
    "nemotron_h",
    "plamo2",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_next",
    "recurrent_gemma",
    "rwkv7",
}


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    return card_of(tmp_path_factory.mktemp("card"))


def estimate(
    card: ModelCard, config: Mapping[str, Any], tokens: int, kv_bits: int | None = None
) -> MemoryEstimate:
    documents = {"config.json": {"architectures": ["TinyForCausalLM"], **config}}
    found = claim(attrs.evolve(card, documents=documents))
    assert found is not None
    assert found.estimate is not None
    made: MemoryEstimate = found.estimate(TextWorkload(context_length=tokens, kv_bits=kv_bits, backend="cpu"))
    return made


def passes(network: Any) -> Any:
    """What `measured` runs."""
    return lambda tokens, layers: network(mx.zeros((1, tokens), mx.int32), cache=layers)


def wrong(card: ModelCard, config: dict[str, Any]) -> dict[int, float]:
    """Estimates as multiples of what a network's caches measure, where they are off by more than 15 %."""
    network_class, args_class = _get_classes(config)
    network = network_class(args_class.from_dict(config))
    size = measured(passes(network), lambda: make_prompt_cache(network))
    found = {tokens: estimate(card, config, tokens).cache / size(tokens) for tokens in (512, 4096)}
    return {tokens: ratio for tokens, ratio in found.items() if abs(ratio - 1) > 0.15}


def test_an_estimate_is_right_for_every_architecture_or_says_that_it_is_a_guess(card: ModelCard) -> None:
    names = [name for name in CONFIGS if name != "bitnet"]
    told = [name for name in names if estimate(card, config_of(name), 512).cache_known]
    assert {name: off for name in told if (off := wrong(card, config_of(name)))} == {}
    assert set(names) - set(told) == SILENT | OWN


@pytest.mark.parametrize("name", WHOLE)
def test_an_estimate_is_right_where_a_published_configuration_has_all_keys(
    card: ModelCard, name: str
) -> None:
    assert estimate(card, WHOLE[name], 512).cache_known
    assert wrong(card, WHOLE[name]) == {}


@pytest.mark.parametrize("name", ["llama", "glm4"])  # heads of 32 and of 64
def test_packed_caches_are_reckoned_with_the_scales_of_their_groups(card: ModelCard, name: str) -> None:
    config = config_of(name)
    network_class, args_class = _get_classes(config)
    network = network_class(args_class.from_dict(config))
    for bits in (8, 4):
        serving = Serving(kv_bits=bits, kv_group=packing(network).group_size(bits))
        size = measured(passes(network), partial(caches_for, network, serving))
        assert estimate(card, config, 512, bits).cache == pytest.approx(size(512), rel=0.01)


def test_states_are_measured_by_a_pass_over_one_token() -> None:
    """Without Metal theirs are loops over the tokens: many took seconds to write down at each load."""
    config = config_of("qwen3_next")
    network_class, args_class = _get_classes(config)
    network = network_class(args_class.from_dict(config))
    lengths = set()

    def noted(tokens: int, layers: list[Any]) -> None:
        lengths.add(tokens)
        passes(network)(tokens, layers)

    size = measured(noted, partial(make_prompt_cache, network))
    assert lengths == {1}
    layers = make_prompt_cache(network)
    network(mx.zeros((1, 512), mx.int32), cache=layers)
    assert size(512) == sum(layer.nbytes for layer in layers)


def test_where_packed_numbers_cannot_be_multiplied_a_layer_of_them_unpacked_is_reckoned_with(
    card: ModelCard,
) -> None:
    config = config_of("llama")
    found = claim(
        attrs.evolve(card, documents={"config.json": {"architectures": ["LlamaForCausalLM"], **config}})
    )
    assert found is not None
    assert found.estimate is not None
    plain, packed = (
        found.estimate(TextWorkload(context_length=512, kv_bits=bits, backend="cuda")) for bits in (None, 4)
    )
    assert packed.workspace - plain.workspace == plain.cache // config["num_hidden_layers"]
