"""Who serves each model type of mlx-lm and mlx-vlm, told from cards that are made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from mlxengine import FileInfo, ModelCard, ModelConfiguration, ModelRef, Source, TensorInfo
from mlxengine._engine.host import Host
from mlxengine.contract.plugins import Owner
from mlxengine.errors import (
    BackendUnavailableError,
    LoadError,
    MLXEngineError,
    NoPluginForModelError,
    ResolutionError,
)

from tests.families.model_types import lm_types, model_types, vlm_types
from tests.families.remote import PICTURES, REMOTE, plain_text

KNOWN = json.loads((Path(__file__).parent / "families.json").read_text())
ELSEWHERE = ("bitnet", "olmo")  # need Metal, and a package that is not installed
ENCODER_DECODERS = ("florence2", "nemotron_parse")
TYPES = sorted(model_types() - PICTURES)


@pytest.fixture(scope="module")
def host() -> Host:
    return Host()


def entry(kind: str) -> dict[str, Any]:
    return KNOWN.get(kind) or REMOTE.get(kind) or plain_text(kind)


def card(kind: str, config: dict[str, Any], tensors: list[str], **settings: Any) -> ModelCard:
    files = ("config.json", "model.safetensors", "tokenizer.json")
    return ModelCard(
        ref=ModelRef(repo_id=f"org/{kind}"),
        configuration=ModelConfiguration(id=f"org/{kind}", **settings),
        source=Source.HUB,
        commit="0" * 40,
        files=tuple(FileInfo(path=name, size=10) for name in files),
        documents={"config.json": {"model_type": kind, **config}},
        tensors=tuple(
            TensorInfo(name=name, dtype="BF16", shape=(8, 8), nbytes=128, file=files[1]) for name in tensors
        ),
    )


def owner(host: Host, made: ModelCard) -> Owner | MLXEngineError:
    """Who serves it, or why nobody does; a plugin that crashes fails the test."""
    for record in host.active():
        host.call(record, "claim_model", card=made)
    try:
        found = host.owner(made, made.configuration.plugin)
    except MLXEngineError as error:
        return error
    return found.claim.problem or found


@pytest.mark.parametrize("known", [True, False], ids=["weights' names", "no names"])
@pytest.mark.parametrize("kind", TYPES)
def test_one_plugin_serves_a_model_type_or_its_refusal_is_typed(kind: str, known: bool, host: Host) -> None:
    made = entry(kind)
    found = owner(host, card(kind, made["config"], made["tensors"] if known else []))
    if kind in ENCODER_DECODERS:
        assert "encoder-decoder" in str(found)
    elif kind in ELSEWHERE and isinstance(found, BackendUnavailableError):
        assert found.hint
    elif made["task"] == "vlm" and kind in vlm_types():
        assert isinstance(found, Owner), found
        assert found.record.name == "vlm"
    elif made["task"] == "llm" and kind in lm_types():
        assert isinstance(found, Owner), found
        assert found.record.name == "llm"
    elif isinstance(found, MLXEngineError):
        assert isinstance(found, ResolutionError | LoadError)
        assert found.hint
        assert "install" not in found.hint


SHARED = sorted(kind for kind in TYPES if entry(kind)["task"] == "vlm" and kind in lm_types())


@pytest.mark.parametrize("left", ["audio_config", "vision_config", "nothing"])
@pytest.mark.parametrize("kind", SHARED)
def test_a_conversion_without_encoders_is_a_language_models_whatever_its_configuration_kept(
    kind: str, left: str, host: Host
) -> None:
    config = {key: value for key, value in entry(kind)["config"].items() if key not in _MEDIA}
    if left != "nothing":
        config[left] = {"model_type": "kept"}
    names = ["language_model.model.layers.0.self_attn.q_proj.weight", "language_model.lm_head.weight"]
    found = owner(host, card(kind, config, names))
    assert isinstance(found, Owner), found
    assert found.record.name == "llm"
    assert found.claim.capabilities == {"text"}


_MEDIA = ("vision_config", "audio_config", "vit_config", "thinker_config")


def test_a_conversion_without_encoders_that_mlx_lm_lacks_is_served_for_text(host: Host) -> None:
    found = owner(host, card("glm_ocr", KNOWN["glm_ocr"]["config"], ["language_model.lm_head.weight"]))
    assert isinstance(found, Owner), found
    assert (found.record.name, found.claim.capabilities) == ("vlm", {"text"})


@pytest.mark.parametrize("kind", SHARED)
def test_the_language_plugin_serves_a_seeing_model_for_text_where_it_is_named(kind: str, host: Host) -> None:
    made = entry(kind)
    found = owner(host, card(kind, made["config"], made["tensors"], plugin="llm"))
    assert isinstance(found, Owner), found
    assert found.record.name == "llm"
    assert "text only" in str(found.claim.reason)


def test_a_plugin_that_is_named_says_which_library_lacks_the_model(host: Host) -> None:
    made = REMOTE["molmo"]
    found = owner(host, card("molmo", made["config"], made["tensors"], plugin="llm"))
    assert "mlx-lm does not implement" in str(found)


def test_what_no_plugin_claims_is_not_told_to_install_what_is_there(host: Host) -> None:
    found = owner(host, card("blip", {"architectures": ["BlipModel"], "vision_config": {"a": 1}}, []))
    assert isinstance(found, NoPluginForModelError)
    assert "'vlm', whose plugin does not know it" in str(found)
    alone = owner(Host([]), card("blip", {"architectures": ["BlipModel"], "vision_config": {"a": 1}}, []))
    assert 'install "mlxengine[vlm]"' in str(alone)


@pytest.mark.parametrize("kind", sorted(PICTURES))
def test_makers_of_pictures_are_no_language_models(kind: str, host: Host) -> None:
    made = card(kind, {}, ["transformer.blocks.0.attn.to_q.weight"])
    made = evolve(made, documents={"model_index.json": {"_class_name": f"{kind.title()}Pipeline"}})
    found = owner(host, made)
    assert isinstance(found, LoadError), found
    assert found.hint
