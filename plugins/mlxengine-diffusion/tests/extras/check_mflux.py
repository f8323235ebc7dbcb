"""FLUX.2 klein on mflux against diffusers, where mflux is installed: `make test-mflux`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_flux2 as f
import tiny_kit as k
from mlxengine import ImageHandle, ImagePreview, ImageReady, ImageRequest, InferenceEngine, Progress
from mlxengine.errors import IncompatibleWeightsError, InvalidParameterError, UnsupportedInputError
from mlxengine_diffusion import plugin
from mlxengine_diffusion.backends import Job
from safetensors.numpy import load_file, save_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return f.write(tmp_path_factory.mktemp("flux2") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[ImageHandle]:
    with InferenceEngine() as engine, engine.load_images(folder) as handle:
        yield handle


def pipeline(folder: Path) -> Any:
    from mlxengine import LoadContext

    with InferenceEngine() as engine:
        card = engine.resolve(folder)
        context = LoadContext(
            path=folder,
            configuration=card.configuration,
            features=engine.features.view(),
            device=engine.device,
        )
        return plugin.load_model(card, context).model.pipeline


@pytest.mark.parametrize("name", f.GUIDANCES)
def test_the_picture_is_that_of_diffusers(folder: Path, name: str) -> None:
    import mlx.core as mx

    job = Job(
        prompt=f.PROMPT,
        negative=None,
        width=f.SIDE,
        height=f.SIDE,
        steps=f.STEPS,
        guidance=f.GUIDANCES[name],
        seed=0,
        scheduler="",
    )
    made = pipeline(folder)
    *_, last = made.denoise(job, mx.array(f.noise()))
    walk = made.decode(last.latents, job)
    next(walk)
    with pytest.raises(StopIteration) as end:
        next(walk)
    reference = load_file(k.DATA / "flux2.pictures.safetensors")[name].astype(int)
    difference = np.abs(end.value.value.astype(int) - reference)
    print(f"{name}: difference {difference.max()}, mean {difference.mean():.4f}")
    assert difference.max() <= 2


def test_it_is_served_by_the_engine_with_the_same_events(model: ImageHandle) -> None:
    assert model.info["backend"] == "mflux"
    request = ImageRequest(prompt="a red circle", size=(64, 64), steps=2, seed=1, preview_every=1)
    events = list(model.stream(request))
    assert [event.done for event in events if isinstance(event, Progress)] == [1, 2]
    assert [event.pixels.shape for event in events if isinstance(event, ImagePreview)] == [(32, 32, 3)]
    ready = [event for event in events if isinstance(event, ImageReady)]
    assert ready[0].pixels.shape == (64, 64, 3)
    again = model.image("a red circle", size=(64, 64), steps=2, seed=1)
    assert np.array_equal(again.numpy(), ready[0].pixels.numpy())


def test_what_it_cannot_do_is_refused(model: ImageHandle) -> None:
    with pytest.raises(UnsupportedInputError, match="from text only"):
        model.image("a", init_image=np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(InvalidParameterError, match="multiple of 16"):
        model.image("a", size=(72, 64))


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("transformer", "x_embedder.weight"),
        ("text_encoder", "model.layers.3.mlp.up_proj.weight"),
        ("vae", "decoder.conv_out.bias"),
    ],
)
def test_a_missing_tensor_is_an_error_that_names_it(tmp_path: Path, part: str, name: str) -> None:
    folder = f.write(tmp_path / "model")
    file = folder / part / "model.safetensors"
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file)
    with InferenceEngine() as engine, pytest.raises(IncompatibleWeightsError) as caught:
        engine.load_images(folder)
    assert name.rpartition(".")[0].split(".")[-1] in str(caught.value)
