"""Checkpoints in eight bits, plain and scaled, and autoencoders of one's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import geometry as g
import numpy as np
import pytest
from mlxengine import InferenceEngine
from mlxengine.errors import IncompatibleWeightsError, UnsupportedArchitectureError
from safetensors.numpy import load_file, save_file
from test_single_file import MUCH, VALUES, WORDS, configs, write_file, write_folder

Tensors = dict[str, np.ndarray[Any, Any]]
_TYPES = {"float16": "F16", "float32": "F32", "uint8": "F8_E4M3"}


def decoded(codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What bytes mean as e4m3fn: a sign, four bits of exponent (bias 7), three of mantissa, no infinities."""
    sign = np.where(codes >> 7, -1.0, 1.0)
    exponent, mantissa = (codes >> 3 & 15).astype(int), (codes & 7) / 8
    return (sign * np.where(exponent, (1 + mantissa) * 2.0 ** (exponent - 7), mantissa * 2.0**-6)).astype(
        np.float32
    )


def write(tensors: Tensors, file: Path) -> None:
    """A safetensors file whose bytes are e4m3fn: numpy has no such type."""
    header, at = {}, 0
    for name, value in tensors.items():
        shape, ends = list(value.shape), [at, at + value.nbytes]
        header[name] = {"dtype": _TYPES[str(value.dtype)], "shape": shape, "data_offsets": ends}
        at += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(value.tobytes() for value in tensors.values())
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def packed(tensors: Tensors, *, scaled: bool) -> tuple[Tensors, Tensors]:
    """The weights of linear layers and convolutions in eight bits, and what they mean in float32."""
    import mlx.core as mx

    small: Tensors = {"scaled_fp8": np.zeros(2, np.uint8)} if scaled else {}
    meant: Tensors = {}
    for name, value in tensors.items():
        if value.ndim < 2 or not name.endswith(".weight") or name.startswith("first_stage"):
            small[name] = meant[name] = value
            continue
        scale = np.float32(np.abs(value).max() / 448) if scaled else np.float32(1)
        codes = np.array(mx.to_fp8(mx.array(value.astype(np.float32) / scale)))
        small[name], meant[name] = codes, decoded(codes) * scale
        if scaled:
            small[name.removesuffix("weight") + "scale_weight"] = np.array(scale)
            small[name.removesuffix("weight") + "scale_input"] = np.array(1, np.float32)
    return small, meant


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
def test_a_checkpoint_in_eight_bits_makes_the_picture_of_what_its_bytes_mean(
    tmp_path: Path, scaled: bool
) -> None:
    small, meant = packed(
        load_file(write_file("sd1", tmp_path / "half.safetensors", configs("sd1"))), scaled=scaled
    )
    shutil.copytree(WORDS, tmp_path / "tokenizer")
    write(small, tmp_path / "small.safetensors")
    write(meant, tmp_path / "meant.safetensors")
    with InferenceEngine(memory_budget=MUCH) as engine:
        one, other, half = (
            engine.load_images(tmp_path / f"{name}.safetensors").image("a red circle", **VALUES).numpy()
            for name in ("small", "meant", "half")
        )
    assert np.array_equal(one, other)
    assert not np.array_equal(one, half)


def test_eight_bits_of_another_kind_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, _ = packed(
        load_file(write_file("sd1", tmp_path / "half.safetensors", configs("sd1"))), scaled=False
    )
    monkeypatch.setitem(_TYPES, "uint8", "F8_E5M2")
    write(small, tmp_path / "other.safetensors")
    with InferenceEngine(memory_budget=MUCH) as engine:
        problem = engine.explain(tmp_path / "other.safetensors").claim.problem
    assert isinstance(problem, UnsupportedArchitectureError)
    assert "F8_E5M2" in str(problem)


def other_vae(folder: Path) -> dict[str, Path]:
    """One other autoencoder as a folder, a file of diffusers', and files of the original code's names."""
    parts = configs("sd1")
    made = write_folder("sd1", folder / "made", parts) / "vae"
    ours = load_file(made / "diffusion_pytorch_model.safetensors")
    save_file(
        {name: value * np.float16(0.5) for name, value in ours.items()},
        made / "diffusion_pytorch_model.safetensors",
    )
    whole = load_file(write_file("sd1", folder / "whole.safetensors", parts))
    prefix = "first_stage_model."
    original = {n.removeprefix(prefix): v * np.float16(0.5) for n, v in whole.items() if n.startswith(prefix)}
    save_file(original, folder / "bare.safetensors")
    save_file({prefix + name: value for name, value in original.items()}, folder / "prefixed.safetensors")
    return {
        "folder": made,
        "file": made / "diffusion_pytorch_model.safetensors",
        "bare": folder / "bare.safetensors",
        "prefixed": folder / "prefixed.safetensors",
    }


@pytest.mark.feature("diffusion.vae")
def test_an_autoencoder_of_ones_own_is_taken_in_every_form(tmp_path: Path) -> None:
    forms = other_vae(tmp_path)
    model = write_folder("sd1", tmp_path / "model", configs("sd1"))
    with InferenceEngine() as engine:
        with engine.load_images(model) as handle:
            usual = handle.image("a red circle", **VALUES).numpy()
        found = {}
        for name, path in forms.items():
            with engine.load_images(model, features={"diffusion.vae": str(path)}) as handle:
                picture = handle.image("a red circle", **VALUES)
                assert picture.recipe["vae"] == str(path)
                found[name] = picture.numpy()
    assert not np.array_equal(found["folder"], usual)
    assert all(np.array_equal(found["folder"], picture) for picture in found.values())


def test_what_is_no_autoencoder_of_this_model_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    save_file({"a": g.picture()}, tmp_path / "other.safetensors")
    (tmp_path / "vae.txt").touch()
    with InferenceEngine() as engine:
        for name, words in (("other.safetensors", "do not fit"), ("vae.txt", "one .safetensors file is")):
            with pytest.raises(IncompatibleWeightsError, match=words):
                engine.load_images(tiny_folder, features={"diffusion.vae": str(tmp_path / name)})


def test_files_that_mlx_saved_without_metadata_are_read(tmp_path: Path) -> None:
    import mlx.core as mx
    from mlxengine_diffusion.sd.adapter_files import read_all
    from mlxengine_diffusion.sd.weights import read_tensors

    file, layer = tmp_path / "x.safetensors", "unet.mid_block.attentions.0.proj_in"
    pair = {f"{layer}.lora_A.weight": mx.ones((2, 4)), f"{layer}.lora_B.weight": mx.ones((4, 2))}
    mx.save_safetensors(str(file), pair)  # its header has a null for them
    assert read_tensors([file]).keys() == pair.keys()
    assert read_all(((file, 1.0),), ("denoiser",))
