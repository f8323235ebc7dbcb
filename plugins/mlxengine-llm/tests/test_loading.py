"""What is told before weights are fetched, and what is fetched."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from llm_harness import card_of
from mlxengine.errors import BackendUnavailableError, IncompatibleWeightsError
from mlxengine.toolkit.loading import building
from mlxengine_llm._claim import claim
from mlxengine_llm._library import module_of


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
