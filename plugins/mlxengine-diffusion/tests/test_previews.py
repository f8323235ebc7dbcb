"""Previews by a small autoencoder, against diffusers' ``AutoencoderTiny``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import geometry as g
import numpy as np
import pytest
from mlxengine import ImagePreview, ImageRequest, InferenceEngine
from mlxengine.errors import IncompatibleWeightsError
from safetensors.numpy import load_file, save_file

SHAPES = {
    "0": ("weight", "bias"),
    "2": ("conv.0", "conv.2", "conv.4"),
    "3": ("conv.0", "conv.2", "conv.4"),
    "5": ("weight",),
    "6": ("conv.0", "conv.2", "conv.4"),
    "7": ("weight", "bias"),
}
"""Layers of the decoder of `geometry.TAESD`: 4 would double the size, 1 be an activation."""


def tensors(style: str = "diffusers") -> dict[str, np.ndarray[Any, Any]]:
    """The decoder's tensors under diffusers' names, or under the author's, who counts from 1."""
    found = {}
    for layer, parts in SHAPES.items():
        names = (
            [f"{part}.{end}" for part in parts for end in ("weight", "bias")] if "conv.0" in parts else parts
        )
        for part in names:
            name = f"decoder.layers.{layer}.{part}"
            shape = (3 if layer == "7" else 8,)
            if part.endswith("weight"):
                shape = (*shape, 4 if layer == "0" else 8, 3, 3)
            ours = name if style == "diffusers" else f"{int(layer) + 1}.{part}"
            found[ours] = g.weight("sd1", "taesd", name, shape)
    return found


@pytest.mark.parametrize("style", ["diffusers", "author"])
def test_the_small_decoder_gives_what_diffusers_does(tmp_path: Path, style: str) -> None:
    import mlx.core as mx
    from mlxengine_diffusion.sd.taesd import read_small_decoder

    save_file(tensors(style), tmp_path / "taesd.safetensors")
    made = np.array(read_small_decoder(tmp_path / "taesd.safetensors", 4, 2)(mx.array(g.noise(0))))
    stored = load_file(g.DATA / "size.components.safetensors")["taesd"]
    assert made.shape == stored.shape
    assert np.abs(made - stored).max() <= 1e-4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("decoder.layers.7.weight"), "is no decoder"),
        (
            lambda t: t.update({"decoder.layers.0.weight": np.zeros((8, 16, 3, 3), np.float32)}),
            "latents of 4 channels",
        ),
        (lambda t: t.clear() or t.update(a=np.zeros(3, np.float32)), "is no decoder"),
    ],
    ids=["incomplete", "other latents", "something else"],
)
def test_what_is_no_small_decoder_for_the_model_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    from mlxengine_diffusion.sd.taesd import read_small_decoder

    found = tensors()
    change(found)
    save_file(found, tmp_path / "taesd.safetensors")
    with pytest.raises(IncompatibleWeightsError, match=words):
        read_small_decoder(tmp_path / "taesd.safetensors", 4, 2)


@pytest.mark.feature("diffusion.taesd")
def test_previews_are_the_small_decoders_and_the_picture_stays_the_large_ones(
    tmp_path: Path, tiny_folder: Path
) -> None:
    scheduler = g.scheduler_config("euler", "epsilon", "leading")
    folder = g.write_repository("sd1", tmp_path / "model", tiny_folder / "tokenizer", scheduler)
    save_file(tensors(), tmp_path / "taesd.safetensors")
    request = ImageRequest(
        prompt=g.PROMPT, size=(g.WIDTH, g.HEIGHT), steps=3, guidance=1.0, seed=0, preview_every=1
    )
    flags: list[dict[str, object]] = [{}, {"diffusion.taesd": str(tmp_path / "taesd.safetensors")}]
    found = []
    with InferenceEngine() as engine:
        for features in flags:
            with engine.load_images(folder, features=features) as model:
                *events, ready, _ = model.stream(request)
                found.append((ready, [event for event in events if isinstance(event, ImagePreview)]))
    (usual, large), (same, small) = found
    assert usual.pixels.data == same.pixels.data
    assert [event.step for event in small] == [event.step for event in large] == [1, 2]
    assert all(event.pixels.shape == (g.HEIGHT, g.WIDTH, 3) for event in small)
    assert small[0].pixels.data != large[0].pixels.data
