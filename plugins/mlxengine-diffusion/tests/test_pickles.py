"""What a request or a flag names is never loaded where it is a pickle: one answer for every kind of file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import geometry as g
import pytest
from mlxengine import ImageControl, InferenceEngine, IPAdapter
from mlxengine.errors import InvalidParameterError

KINDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "lora": lambda file: {"lora": ((file, 1.0),)},
    "controls": lambda file: {"controls": (ImageControl(source=file, image=g.picture()),)},
    "ip_adapters": lambda file: {"ip_adapters": (IPAdapter(source=file, image=g.picture()),)},
    "textual_inversions": lambda file: {"textual_inversions": (file,)},
    "upscale": lambda file: {"upscale": file},
}


def _refused(caught: Any, words: str) -> None:
    assert "is a pickle" in str(caught.value)
    assert words in caught.value.hint


@pytest.mark.parametrize("ending", [".bin", ".pt", ".PTH", ".ckpt"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_a_pickle_is_refused_with_the_way_to_convert_it(
    shared_engine: InferenceEngine, tiny_folder: Path, kind: str, ending: str
) -> None:
    model = shared_engine.load_images(tiny_folder)
    with pytest.raises(InvalidParameterError) as caught:
        model.image("a", **KINDS[kind](f"things/some{ending}"))
    _refused(caught, f"mlxengine convert things/some{ending} some.safetensors --from-bin")


def test_a_folder_of_pickles_alone_is_refused_and_one_beside_safetensors_is_let_be(
    shared_engine: InferenceEngine, tiny_folder: Path, tmp_path: Path
) -> None:
    net = g.write_tiny_control(tiny_folder, tmp_path / "net")
    (net / "old.bin").write_bytes(b"")
    told = ImageControl(source=str(net), image=g.picture())
    model = shared_engine.load_images(tiny_folder)
    asked: dict[str, Any] = {"size": (32, 32), "steps": 1, "guidance": 1.0, "seed": 1}
    assert model.image("a", controls=(told,), **asked).size == (32, 32)
    for file in net.glob("*.safetensors"):
        file.rename(net / "diffusion_pytorch_model.bin")
    with pytest.raises(InvalidParameterError) as caught:
        model.image("a", controls=(told,), **asked)
    _refused(caught, f"mlxengine convert {net} net-safetensors --from-bin")


@pytest.mark.parametrize("flag", ["vae", "taesd"])
def test_an_autoencoder_that_is_a_pickle_is_refused(
    shared_engine: InferenceEngine, tiny_folder: Path, flag: str
) -> None:
    with pytest.raises(InvalidParameterError) as caught:
        shared_engine.load_images(tiny_folder, features={f"diffusion.{flag}": "kl-f8.pt"})
    _refused(caught, "kl-f8.safetensors")
