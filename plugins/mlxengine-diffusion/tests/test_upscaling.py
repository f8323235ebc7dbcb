"""ESRGAN's network against the same in torch, in tiles, and at the end of a request."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import geometry as g
import numpy as np
import pytest
from mlxengine import InferenceEngine
from mlxengine.errors import IncompatibleWeightsError
from mlxengine_diffusion import upscaling
from safetensors.numpy import load_file, save_file
from test_parity_with_diffusers import finished

CORNER = g.picture()[:16, :12]


def tensors(scale: int) -> dict[str, np.ndarray[Any, Any]]:
    """The network of `geometry.ESRGAN` under Real-ESRGAN's names."""
    width, growth, blocks = g.ESRGAN["width"], g.ESRGAN["growth"], g.ESRGAN["blocks"]
    sizes = {"conv_first": (width, 3 * (4 // scale) ** 2), "conv_last": (3, width)}
    sizes |= dict.fromkeys(("conv_body", "conv_up1", "conv_up2", "conv_hr"), (width, width))
    for block in range(blocks):
        for part in (1, 2, 3):
            for number in range(5):
                out = growth if number < 4 else width
                sizes[f"body.{block}.rdb{part}.conv{number + 1}"] = (out, width + number * growth)
    found = {}
    for name, (out, inner) in sizes.items():
        for end, shape in (("weight", (out, inner, 3, 3)), ("bias", (out,))):
            found[f"{name}.{end}"] = g.weight("sd1", f"esrgan{scale}", f"{name}.{end}", shape)
    return found


def first_names(found: dict[str, Any]) -> dict[str, Any]:
    """The same under the first ESRGAN's names."""
    numbers = {"conv_first": "0", "conv_up1": "3", "conv_up2": "6", "conv_hr": "8", "conv_last": "10"}
    made = {}
    for name, value in found.items():
        layer, end = name.rsplit(".", 1)
        if match := re.fullmatch(r"body\.(\d+)\.rdb(\d)\.conv(\d)", layer):
            layer = "model.1.sub.{}.RDB{}.conv{}.0".format(*match.groups())
        elif layer == "conv_body":
            layer = f"model.1.sub.{g.ESRGAN['blocks']}"
        else:
            layer = f"model.{numbers[layer]}"
        made[f"{layer}.{end}"] = value
    return made


def read(found: dict[str, Any], folder: Path) -> upscaling.Upscaler:
    save_file(found, folder / "up.safetensors")
    return upscaling.read_upscaler(folder / "up.safetensors")


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("names", [dict, first_names], ids=["Real-ESRGAN", "ESRGAN"])
def test_a_picture_is_enlarged_as_in_torch(tmp_path: Path, scale: int, names: Any) -> None:
    import mlx.core as mx

    network = read(names(tensors(scale)), tmp_path)
    assert network.scale == scale
    made = np.array(finished(network.steps(mx.array(CORNER)[None].astype(mx.float32) / 255)))[0]
    stored = load_file(g.DATA / "size.components.safetensors")[f"esrgan{scale}"]
    assert made.shape == stored.shape
    assert np.abs(made - stored).max() <= 1e-4
    pixels = finished(upscaling.enlarged(network, CORNER))
    assert np.abs(pixels.astype(int) - np.round(np.clip(stored, 0, 1) * 255)).max() <= 1


def test_tiles_with_wide_margins_make_the_whole_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = read(tensors(2), tmp_path)
    whole = finished(upscaling.enlarged(network, g.picture()[:31, :23]))
    assert whole.shape == (62, 46, 3)
    monkeypatch.setattr(upscaling, "_TILE", 8)
    tiles = finished(upscaling.enlarged(network, g.picture()[:31, :23]))
    assert np.abs(tiles.astype(int) - whole).max() <= 2
    monkeypatch.setattr(upscaling, "_MARGIN", 0)
    seams = finished(upscaling.enlarged(network, g.picture()[:31, :23]))
    assert np.abs(seams.astype(int) - whole).max() > 2


def test_a_request_gives_the_enlarged_picture_and_its_recipe_says_so(
    shared_engine: InferenceEngine, tiny_folder: Path, tmp_path: Path
) -> None:
    network = read(tensors(2), tmp_path)
    asked: dict[str, Any] = {"size": (32, 24), "steps": 1, "guidance": 3.0, "seed": 0}
    with shared_engine.load_images(tiny_folder) as model:
        small = model.image("a red circle", **asked)
        large = model.image("a red circle", upscale=str(tmp_path / "up.safetensors"), **asked)
    assert large.size == (64, 48)
    assert (large.recipe["width"], large.recipe["upscale"]) == (32, str(tmp_path / "up.safetensors"))
    assert np.array_equal(large.numpy(), finished(upscaling.enlarged(network, small.numpy())))


def test_what_is_no_upscaler_is_refused(tmp_path: Path) -> None:
    lacking = tensors(4)
    del lacking["conv_hr.weight"], lacking["conv_hr.bias"]
    for found in (lacking, {"a.weight": CORNER}):
        with pytest.raises(IncompatibleWeightsError, match="no ESRGAN network"):
            read(found, tmp_path)
    (tmp_path / "up.pth").write_bytes(b"\x80\x02")
    with pytest.raises(IncompatibleWeightsError, match=r"one \.safetensors file is"):
        upscaling.read_upscaler(tmp_path / "up.pth")
