"""Checkpoints as transformers 5 writes them, of families that mlx-vlm knows by other names and layouts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlxengine_vlm._checkpoint import fitted
from mlxengine_vlm._network import build
from random_checkpoint import pixels, write

PARITY = Path(__file__).parent / "parity"
CHECKPOINTS = json.loads((PARITY / "checkpoints.json").read_text())
IMAGE = 7


# mlx-vlm computes llama4's GELU by a fast approximation.
CLOSE = {"llama4": 3e-2}
WORDS = [1, 20, 31, 44, 9, 60, 71, 15]


@pytest.mark.parametrize("kind", sorted(CHECKPOINTS))
def test_a_checkpoint_of_transformers_5_loads_and_every_tensor_is_in_its_place(
    kind: str, tmp_path: Path
) -> None:
    stored = CHECKPOINTS[kind]
    inputs, wanted = stored["inputs"], np.array(stored["features"])
    network = build(write(tmp_path / kind, stored["config"], stored["shapes"]), stored["config"])
    words = mx.array([WORDS])
    given = network.get_input_embeddings(words, None).inputs_embeds
    found = np.array(network.language_model(words, inputs_embeds=given).logits[0, -2:])
    assert np.abs(found - np.array(stored["logits"])).max() < 1e-4

    ids = mx.array([inputs["input_ids"]])
    names = inputs.keys() - {"input_ids", "pixel_values", "mm_token_type_ids"}
    others = {name: mx.array(np.array(inputs[name])) for name in names}
    picture = mx.array(pixels(inputs["pixel_values"]))
    if kind == "paddleocr_vl":  # a batch of patches there
        picture = picture[None]
    merged = network.get_input_embeddings(ids, picture, mask=mx.ones_like(ids), **others).inputs_embeds[0]
    features = np.array(merged)[np.array(inputs["input_ids"]) == IMAGE]
    assert (
        np.abs(features[:, : wanted.shape[1]] - wanted).max() < CLOSE.get(kind, 1e-3) * np.abs(wanted).max()
    )


def test_what_a_family_s_own_class_has_a_default_for_is_not_filled_in() -> None:
    """The heads of Gemma 3 are 256 wide, which its larger checkpoints leave out, and not width by heads."""
    from mlx_vlm.models import gemma3, glm4v_moe, llama4

    large = {"text_config": {"hidden_size": 3840, "num_attention_heads": 16}}
    assert "head_dim" not in fitted(gemma3, large)["text_config"]
    assert fitted(glm4v_moe, large)["text_config"]["head_dim"] == 240
    assert "use_qk_norm" not in fitted(llama4, large)["text_config"]
    assert fitted(llama4, {"vision_config": {"depth": 1}})["vision_config"] == {"vision_feature_layer": -1}


@pytest.mark.parity
def test_the_stored_checkpoints_are_what_transformers_computes(tmp_path: Path) -> None:
    target = tmp_path / "checkpoints.json"
    subprocess.run([sys.executable, str(PARITY / "make_checkpoints.py"), "--out", str(target)], check=True)
    again = json.loads(target.read_text())
    assert sorted(again) == sorted(CHECKPOINTS)
    for kind, stored in CHECKPOINTS.items():
        assert again[kind]["shapes"] == stored["shapes"]
        for name in ("logits", "features"):
            assert np.abs(np.array(again[kind][name]) - np.array(stored[name])).max() < 1e-4
