"""What is told before weights are fetched, and what is fetched."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from architectures import write_model
from llm_harness import Plugin, card_of
from mlx_lm.models.cache import make_prompt_cache
from mlxengine.errors import BackendUnavailableError, IncompatibleWeightsError
from mlxengine.toolkit.loading import building
from mlxengine_llm._claim import claim
from mlxengine_llm.library import module_of


def problem(folder: Path) -> Exception | None:
    found = claim(card_of(folder))
    assert found is not None
    return found.problem


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer.model", "tiktoken.model", "qwen.tiktoken", "vocab.txt"]
)
def test_every_form_of_a_tokenizer_is_fetched(tiny: Path, name: str) -> None:
    found = claim(card_of(tiny))
    assert found is not None
    assert any(fnmatch.fnmatch(name, pattern) for pattern in found.files)


@pytest.mark.parametrize(
    "config",
    [{"model_type": "bitnet"}, {"quantization_config": {"quant_method": "bitnet"}}],
    ids=["architecture", "weights"],
)
def test_a_model_for_metal_alone_is_refused_elsewhere_before_its_weights_are_fetched(
    edited: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, config: dict[str, object]
) -> None:
    folder = edited(config=config)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(BackendUnavailableError, match="Metal only"):
        raise problem(folder) or AssertionError
    monkeypatch.setattr(sys, "platform", "darwin")
    assert problem(folder) is None


def test_a_package_without_which_mlx_lm_ends_the_program_is_named_before(
    edited: Callable[..., Path],
) -> None:
    """The first OLMo's module calls ``sys.exit`` where it is imported without ``hf_olmo``."""
    folder = edited(config={"model_type": "olmo"})
    assert module_of({"model_type": "olmo"}) == "olmo"
    with pytest.raises(BackendUnavailableError, match="hf_olmo"):
        raise problem(folder) or AssertionError


def test_a_library_that_ends_the_program_while_a_model_is_built_does_not() -> None:
    with pytest.raises(IncompatibleWeightsError, match="SystemExit"), building("org/name"):
        sys.exit(1)


@pytest.mark.parametrize("name", ["plamo3", "gemma3_text"])
def test_what_a_model_says_does_not_depend_on_the_size_of_the_pieces_that_it_reads(
    plugin: Plugin, tmp_path: Path, name: str
) -> None:
    """PLaMo 3's masks are a token wider than its caches, which the first token of each piece would miss."""
    network = plugin.load(write_model(tmp_path / name, name)).network
    tokens = [3 + (7 * at * at + at) % 50 for at in range(60)]

    def last(size: int) -> mx.array:
        layers = make_prompt_cache(network)
        for at in range(0, len(tokens), size):
            logits = network(mx.array([tokens[at : at + size]]), cache=layers)
        return logits[0, -1]

    with plugin.backend.stream():
        whole = last(len(tokens))
        for size in (1, 7, 16):
            assert mx.abs(last(size) - whole).max().item() < 1e-4
