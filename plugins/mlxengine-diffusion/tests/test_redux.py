"""Redux, FLUX.1's image-prompt adapter: what diffusers' tells of a picture; what is none refused by name.

The pictures that FLUX.1 makes of it are compared where mflux is installed: extras/check_mflux.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlxengine.errors import IncompatibleWeightsError, MLXEngineError, ModelNotFoundError
from mlxengine_diffusion.backends._redux import load_redux
from safetensors.numpy import load_file, save_file
from test_parity_with_diffusers import finished

sys.path.insert(0, str(Path(__file__).parent / "extras"))

import tiny_adapters as a
import tiny_flux1 as f1
import tiny_kit as k

STORED = load_file(k.DATA / "redux.pictures.safetensors")
WIDTH = f1.T5["d_model"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return f1.write_redux(tmp_path / "redux")


def test_a_picture_becomes_the_words_of_diffusers(folder: Path) -> None:
    redux = load_redux(folder, WIDTH, mx.float32)
    words = [np.array(finished(redux.told(item)))[0] for item in (a.other(), a.start())]
    assert np.abs(words[0] - STORED["a picture/words"]).max() < 1e-4
    one, other = f1.REDUX["two pictures"][1]
    assert np.abs(one * words[0] + other * words[1] - STORED["two pictures/words"]).max() < 1e-4
    assert np.abs(words[0] - words[1]).max() > 0.1


def test_the_form_of_diffusers_is_the_same_adapter(folder: Path) -> None:
    wanted = finished(load_redux(folder, WIDTH, mx.float32).told(a.other()))
    place = folder / "image_embedder" / "diffusion_pytorch_model.safetensors"
    place.parent.mkdir()
    (folder / "flux1-redux-dev.safetensors").rename(place)
    for path in (folder, place):
        assert mx.array_equal(finished(load_redux(path, WIDTH, mx.float32).told(a.other())), wanted)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ("nothing", ModelNotFoundError, "holds no flux1-redux-dev"),
        ("no encoder", ModelNotFoundError, "no image encoder"),
        ("another model", IncompatibleWeightsError, "no Redux for this model"),
        ("an IP-Adapter", IncompatibleWeightsError, "no Redux for this model"),
        ("a norm", IncompatibleWeightsError, "post_layernorm.weight"),
        ("a bias", IncompatibleWeightsError, "redux_up.bias"),
        ("another encoder", IncompatibleWeightsError, "redux_up.weight"),
        ("no width", IncompatibleWeightsError, "hidden_size"),
    ],
)
def test_what_does_not_fit_is_refused_by_what_it_is(
    folder: Path, change: str, error: type[MLXEngineError], words: str
) -> None:
    file, encoder = folder / "flux1-redux-dev.safetensors", folder / "image_encoder"
    gone = {"a norm": (encoder / "model.safetensors", "vision_model.post_layernorm.weight")}
    gone["a bias"] = file, "redux_up.bias"
    width = WIDTH
    if change == "nothing":
        file.unlink()
    elif change == "no encoder":
        (encoder / "config.json").unlink()
    elif change == "another model":
        width = 48
    elif change == "an IP-Adapter":
        save_file({"image_proj.norm.weight": np.ones(3, np.float32)}, file)
    elif change in gone:
        place, name = gone[change]
        tensors = load_file(place)
        del tensors[name]
        save_file(tensors, place)
    elif change == "another encoder":
        tensors = load_file(file)
        save_file({**tensors, "redux_up.weight": tensors["redux_up.weight"][:, :20].copy()}, file)
    else:
        config = {name: value for name, value in f1.SIGLIP.items() if name != "hidden_size"}
        (encoder / "config.json").write_text(json.dumps(config))
    with pytest.raises(error) as caught:
        load_redux(folder, width, mx.float32)
    assert words in str(caught.value)
