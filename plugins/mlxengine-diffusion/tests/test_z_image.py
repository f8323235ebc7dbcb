"""Z-Image on mlx-vlm's networks against diffusers, on a tiny random model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlxengine import ImageReady, ImageRequest, InferenceEngine, Progress
from mlxengine.errors import (
    FeatureUnavailableError,
    IncompatibleWeightsError,
    RemoteCodeRefusedError,
)
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent / "extras"))

import tiny_kit as k
import tiny_z_image as z


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return z.write(tmp_path_factory.mktemp("z-image") / "model")


@pytest.fixture(scope="module")
def model(shared_engine: InferenceEngine, folder: Path) -> Iterator[Any]:
    with shared_engine.load_images(folder) as handle:
        yield handle


@pytest.mark.parametrize(("name", "guidance"), [("plain", 0.0), ("guided", 4.0)])
def test_the_picture_is_that_of_diffusers(
    load_pipeline: Callable[..., Any], folder: Path, name: str, guidance: float
) -> None:
    import mlx.core as mx

    pipeline = load_pipeline(folder)
    job = k.job(z, guidance, z.NEGATIVE if guidance else None)
    ours = k.pixels(pipeline, job, mx.array(k.noise())[:, :, None])
    reference = load_file(k.DATA / "z_image.pictures.safetensors")[name]
    assert np.abs(ours - reference.astype(int)).max() <= 2


def test_it_is_served_by_the_engine_with_the_same_events(model: Any) -> None:
    assert model.info["backend"] == "mlx_vlm"
    request = ImageRequest(prompt="a red circle", size=(64, 64), steps=2, seed=1, preview_every=1)
    events = list(model.stream(request))
    assert [event.done for event in events if isinstance(event, Progress)] == [1, 2]
    ready = [event for event in events if isinstance(event, ImageReady)]
    assert ready[0].pixels.shape == (64, 64, 3)
    again = model.image("a red circle", size=(64, 64), steps=2, seed=1)
    assert np.array_equal(again.numpy(), ready[0].pixels.numpy())


@pytest.mark.parametrize("flag", [{"dtype": "float16"}, {"compile": "on"}], ids=str)
def test_a_flag_that_would_have_no_effect_is_refused(
    load_pipeline: Callable[..., Any], folder: Path, flag: dict[str, Any]
) -> None:
    with pytest.raises(FeatureUnavailableError, match="no effect on mlx_vlm"):
        load_pipeline(folder, **flag)


def test_low_memory_makes_the_same_picture(model: Any) -> None:
    options: dict[str, Any] = {"size": (64, 64), "steps": 2, "seed": 1}
    usual = model.image("a red circle", **options).numpy()
    assert np.array_equal(model.image("a red circle", low_memory=True, **options).numpy(), usual)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("transformer", "all_final_layer.2-1.adaLN_modulation.1.bias"),
        ("text_encoder", "layers.2.mlp.up_proj.weight"),
        ("vae", "decoder.conv_out.bias"),
    ],
)
def test_a_missing_tensor_is_an_error_that_names_it(
    engine: InferenceEngine, tmp_path: Path, part: str, name: str
) -> None:
    folder = z.write(tmp_path / "model")
    file = folder / part / "model.safetensors"
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file)
    with pytest.raises(IncompatibleWeightsError) as caught:
        engine.load_images(folder)
    assert name in str(caught.value)


def test_a_tokenizer_with_code_of_its_own_is_refused(engine: InferenceEngine, tmp_path: Path) -> None:
    folder = z.write(tmp_path / "model")
    path = folder / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": "x.Y"}}))
    assert isinstance(engine.explain(folder).claim.problem, RemoteCodeRefusedError)
