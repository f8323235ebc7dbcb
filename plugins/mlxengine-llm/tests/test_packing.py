"""Packed key-value caches are offered where they work, for every architecture, and nowhere else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlxengine_llm.plugin
import pytest
from architectures import CONFIGS, write_model
from llm_harness import Plugin, raw, tokens_of, write_tiny
from mlx_lm.models.cache import make_prompt_cache
from mlxengine import GenerateParams, InferenceEngine, TextWorkload
from mlxengine.errors import FeatureUnavailableError
from mlxengine_llm._caches import packing

pytestmark = pytest.mark.feature("llm.kv_bits")
PROMPTS = ["ab", "one that is longer", "and the longest one of all of them " * 3, "the last"]
SERVED = [name for name in CONFIGS if name != "bitnet"]  # that one needs Metal
DAILY = ("llama", "gemma2", "phi3small", "gpt2", "pixtral", "deepseek_v3", "jamba")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("heads") / "model", hidden_size=128)


def answers(plugin: Plugin, model: Any, *, together: bool) -> list[list[int]]:
    def start(prompt: str) -> Any:
        request = raw(prompt, max_tokens=6, ignore_eos=True, temperature=0.0)
        return plugin.start(model, request, prompt_cache=False)

    if together:
        found = plugin.run([start(prompt) for prompt in PROMPTS])
    else:
        found = [plugin.run([start(prompt)])[0] for prompt in PROMPTS]
    for events in found:
        assert not isinstance(events[-1], Exception), events[-1]
    return [tokens_of(events) for events in found]


@pytest.mark.parametrize(
    "name", [name if name in DAILY else pytest.param(name, marks=pytest.mark.slow) for name in SERVED]
)
def test_an_architecture_answers_from_packed_caches_or_says_when_it_is_loaded_that_it_cannot(
    plugin: Plugin, tmp_path: Path, name: str
) -> None:
    folder = write_model(tmp_path / name, name)
    why = plugin.load(folder).missing.get("llm.kv_bits")
    if why is not None:
        assert "pack" in why
        with pytest.raises(FeatureUnavailableError, match=re.escape(why)):
            plugin.load(folder, flags={"kv_bits": 8})
        return
    model = plugin.load(folder, flags={"kv_bits": 8})
    assert answers(plugin, model, together=True) == answers(plugin, model, together=False)
    plain = [type(layer).__name__ for layer in make_prompt_cache(model.network)]
    found = [type(layer).__name__ for layer in model._caches()]
    assert found == ["PackedKVCache" if name == "KVCache" else name for name in plain]


def test_the_heads_own_sizes_say_what_is_packed_together(plugin: Plugin, tmp_path: Path) -> None:
    """A configuration that speaks of heads in its own words (GPT-2's ``n_embd``) says nothing about it."""
    for name, group in {"gpt2": 32, "glm4": 64}.items():
        assert plugin.load(write_model(tmp_path / name, name), flags={"kv_bits": 4}).serving.kv_group == group


def test_packed_caches_that_change_what_the_model_says_are_refused(plugin: Plugin, wide: Path) -> None:
    model = plugin.load(wide)

    class Deaf:
        """Does not look back where its caches are packed."""

        def __getattr__(self, name: str) -> Any:
            return getattr(model.network, name)

        def __call__(self, tokens: mx.array, cache: list[Any]) -> Any:
            return model.network(tokens, cache=None if hasattr(cache[0], "bits") else cache)

    with plugin.backend.stream():
        list(packing(model.network).check(8, 32))
        with pytest.raises(FeatureUnavailableError, match="changes what this model says"):
            list(packing(Deaf()).check(8, 32))


@pytest.mark.feature("core.degrade")
@pytest.mark.parametrize(
    ("name", "words", "bits", "why"),
    [
        ("exaone", "1024 tokens of context", None, "cannot be packed"),
        ("gpt2", "a key-value cache of 8 bits", 8, "memory"),
    ],
)
def test_where_memory_is_short_packed_caches_are_for_models_that_can_read_them(
    tmp_path: Path, name: str, words: str, bits: int | None, why: str
) -> None:
    folder = write_model(tmp_path / name, name)
    plugins = [("llm", mlxengine_llm.plugin)]
    with InferenceEngine(plugins=plugins) as engine:
        needed = engine.fit(folder, TextWorkload(context_length=2048, kv_bits=8)).needed
    with InferenceEngine(plugins=plugins, memory_budget=needed) as engine, engine.load_text(folder) as chat:
        assert chat.info["degraded"].endswith(words)
        explained = chat.explain("llm.kv_bits")
        assert (explained.value, explained.available) == (bits, bits is not None)
        assert why in explained.reason
        assert chat.generate("ab", GenerateParams(max_tokens=2, ignore_eos=True)).usage.completion_tokens == 2
