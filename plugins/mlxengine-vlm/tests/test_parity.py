"""The same weights give the same logits as in transformers, architecture by architecture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_vlm.models.cache import make_prompt_cache
from mlxengine_vlm._claim import FAULTS
from mlxengine_vlm._language import Language
from mlxengine_vlm._network import build
from mlxengine_vlm._prefill import SPLICED, embed, encode
from mlxengine_vlm._sight import TOGETHER
from random_checkpoint import TEXT, pixels, write

PARITY = Path(__file__).parent / "parity"
REFERENCES = json.loads((PARITY / "references.json").read_text())
IMAGE = 7
TOLERANCE = 1e-4
WRONG = {"glm4v", "idefics2"}  # mlx-vlm's encoders are otherwise
RIGHT = sorted(REFERENCES.keys() - WRONG)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Any] = {}

    def network(kind: str) -> Any:
        if kind not in made:
            stored = REFERENCES[kind]
            folder = write(tmp_path_factory.mktemp(kind), stored["config"], stored["shapes"])
            made[kind] = build(folder, stored["config"])
        return made[kind]

    return network


def _media(kind: str) -> dict[str, Any]:
    inputs = REFERENCES[kind]["inputs"]
    others = {
        name: mx.array(np.array(value))
        for name, value in inputs.items()
        if name not in ("input_ids", "pixel_values", "token_type_ids", "mm_token_type_ids")
    }
    return {"pixel_values": mx.array(pixels(inputs["pixel_values"])), **others}


def _logits(network: Any, plan: Any, *chunks: int) -> Any:
    """Logits of the last three positions, the prompt read in chunks of the given sizes."""
    cache = make_prompt_cache(network.language_model)
    found = []
    for chunk in (*chunks, 10**6):
        if plan.left:
            ids, inputs = plan.take(chunk)
            found.append(network.language_model(ids, cache=cache, **inputs).logits[0])
    return np.array(mx.concatenate(found)[-3:])


@pytest.mark.parametrize("kind", sorted(REFERENCES))
def test_logits_match_those_of_transformers_unless_the_familys_fault_is_known(
    kind: str, networks: Any
) -> None:
    stored = REFERENCES[kind]
    ids = stored["inputs"]["input_ids"]
    plan = embed(networks(kind), kind, ids, _media(kind), frozenset({IMAGE}))
    difference = np.abs(_logits(networks(kind), plan) - np.array(stored["logits"]))
    assert bool(difference.max() < TOLERANCE) is (kind not in WRONG)
    assert kind not in WRONG or kind in FAULTS


@pytest.mark.parametrize("kind", sorted(REFERENCES))
def test_logits_of_a_text_match_those_of_transformers(kind: str, networks: Any) -> None:
    plan = embed(networks(kind), kind, TEXT, {}, frozenset({IMAGE}))
    difference = np.abs(_logits(networks(kind), plan) - np.array(REFERENCES[kind]["text"]))
    assert difference.max() < TOLERANCE


@pytest.mark.parametrize("kind", sorted(set(RIGHT) - {"paligemma"}))  # its prompts see what comes behind
def test_tokens_of_an_answer_see_the_picture_as_they_do_in_transformers(kind: str, networks: Any) -> None:
    network, layers = Language(networks(kind)), make_prompt_cache(networks(kind).language_model)
    ids, found = REFERENCES[kind]["inputs"]["input_ids"], []
    given = _media(kind)
    if "cross_attention_mask" in given:
        given["cross_attention_mask"] = given["cross_attention_mask"][:, :-2]
    plan = embed(networks(kind), kind, ids[:-2], given, frozenset({IMAGE}))
    network.read([plan.take(len(ids))], len(ids) - 2, layers)
    for token in ids[-2:]:
        logits = network.follow(mx.array([[token]]), layers, plan.rope_deltas, plan.crossed)
        found.append(np.array(logits[0, -1]))
    assert np.abs(np.array(found) - np.array(REFERENCES[kind]["logits"][-2:])).max() < TOLERANCE


@pytest.mark.parametrize("kind", sorted(SPLICED))
def test_features_that_were_kept_give_the_same_logits_without_encoding_again(
    kind: str, networks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, network = REFERENCES[kind], networks(kind)
    ids = stored["inputs"]["input_ids"]
    first = embed(network, kind, ids, _media(kind), frozenset({IMAGE}))
    if first.features is None:  # a mask over the whole prompt: nothing is kept, so nothing can be wrong
        assert kind == "paligemma"
        return
    tower = next(name for name in ("vision_tower", "vision_model") if name in network)
    monkeypatch.setitem(network, tower, None)
    plan = embed(network, kind, ids, _media(kind), frozenset({IMAGE}), first.features)
    assert np.abs(_logits(network, plan) - np.array(stored["logits"])).max() < TOLERANCE


@pytest.mark.parametrize("kind", sorted(SPLICED))
def test_pictures_of_several_prompts_encoded_in_one_call_have_the_features_that_each_has_alone(
    kind: str, networks: Any
) -> None:
    stored, network = REFERENCES[kind], networks(kind)
    ids, others = stored["inputs"]["input_ids"], _media(kind)
    prompts = []
    for number in range(3):
        shown = others["pixel_values"] * (0.5 + number) + 0.1 * number
        prompts.append(([11 + number, *ids], {**others, "pixel_values": shown}))
    if kind not in TOGETHER:
        with pytest.raises(ValueError, match="no features of its own"):
            encode(network, kind, prompts, frozenset({IMAGE}))
        return
    found = encode(network, kind, prompts, frozenset({IMAGE}))
    alone = [embed(network, kind, *prompt, frozenset({IMAGE})).features for prompt in prompts]
    for one, other in zip(found, alone, strict=True):
        assert other is not None
        assert len(one.deepstack) == len(other.deepstack)
        for mine, theirs in zip(
            (one.vectors, *one.deepstack), (other.vectors, *other.deepstack), strict=True
        ):
            assert mine.shape == theirs.shape
            assert np.abs(np.array(mine) - np.array(theirs)).max() < 1e-5
    first, second = np.array(found[0].vectors), np.array(found[1].vectors)
    assert np.abs(first - second).max() > 1e-3, "other pictures have other features"


@pytest.mark.parametrize("kind", RIGHT)
def test_a_prompt_read_in_chunks_gives_the_same_logits(kind: str, networks: Any) -> None:
    stored, network = REFERENCES[kind], networks(kind)
    plan = embed(network, kind, stored["inputs"]["input_ids"], _media(kind), frozenset({IMAGE}))
    assert np.abs(_logits(network, plan, 5, 2, 3) - np.array(stored["logits"])).max() < TOLERANCE


@pytest.mark.parity
def test_the_stored_references_are_what_transformers_computes(tmp_path: Path) -> None:
    target = tmp_path / "references.json"
    command = [sys.executable, str(PARITY / "make_references.py"), "--out", str(target)]
    subprocess.run(command, check=True)
    again = json.loads(target.read_text())
    assert sorted(again) == sorted(REFERENCES)
    for kind, stored in REFERENCES.items():
        assert again[kind]["shapes"] == stored["shapes"]
        for part in ("logits", "text"):
            assert np.abs(np.array(again[kind][part]) - np.array(stored[part])).max() < 1e-5
