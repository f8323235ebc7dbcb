"""FLUX.2 klein on mlx-vlm's networks against diffusers, on a tiny random model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlxengine import ImagePreview, ImageReady, ImageRequest, InferenceEngine, Progress
from mlxengine.errors import IncompatibleWeightsError, InvalidParameterError
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent / "extras"))

import tiny_flux2 as f
import tiny_kit as k


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return f.write(tmp_path_factory.mktemp("flux2") / "model")


@pytest.fixture(scope="module")
def model(shared_engine: InferenceEngine, folder: Path) -> Iterator[Any]:
    with shared_engine.load_images(folder) as handle:
        yield handle


@pytest.mark.parametrize("name", f.GUIDANCES)
def test_the_picture_is_that_of_diffusers(load_pipeline: Callable[..., Any], folder: Path, name: str) -> None:
    import mlx.core as mx

    ours = k.pixels(load_pipeline(folder), k.job(f, f.GUIDANCES[name]), mx.array(f.noise()))
    reference = load_file(k.DATA / "flux2.pictures.safetensors")[name].astype(int)
    assert np.abs(ours - reference).max() <= 2


def test_a_step_with_guidance_takes_no_more_memory_than_one_without(
    load_pipeline: Callable[..., Any], folder: Path
) -> None:
    import mlx.core as mx

    pipeline = load_pipeline(folder)

    def peak(guidance: float) -> int:
        base = 0
        for step in pipeline.denoise(k.job(f, guidance)):
            if step is not None:
                break
            base = mx.get_active_memory()
            mx.reset_peak_memory()  # what reading the prompts took
        return mx.get_peak_memory() - base

    plain, guided = (peak(guidance) for guidance in f.GUIDANCES.values())
    assert guided <= 1.1 * plain


def test_it_is_served_by_the_engine_with_the_same_events(model: Any) -> None:
    assert model.info["backend"] == "mlx_vlm"
    request = ImageRequest(prompt="a red circle", size=(64, 64), steps=2, seed=1, preview_every=1)
    events = list(model.stream(request))
    assert [event.done for event in events if isinstance(event, Progress)] == [1, 2]
    assert [event.pixels.shape for event in events if isinstance(event, ImagePreview)] == [(32, 32, 3)]
    ready = [event for event in events if isinstance(event, ImageReady)]
    again = model.image("a red circle", size=(64, 64), steps=2, seed=1)
    assert np.array_equal(again.numpy(), ready[0].pixels.numpy())


def test_low_memory_makes_the_same_picture_and_leaves_nothing_behind(model: Any) -> None:
    import mlx.core as mx

    options: dict[str, Any] = {"size": (64, 64), "steps": 2, "seed": 1}
    usual = model.image("a red circle", **options).numpy()
    held = mx.get_active_memory()
    assert np.array_equal(model.image("a red circle", low_memory=True, **options).numpy(), usual)
    assert mx.get_active_memory() < held - 500_000


def test_what_it_cannot_do_is_refused(model: Any) -> None:
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
def test_a_missing_or_strange_tensor_is_an_error_that_names_it(
    engine: InferenceEngine, tmp_path: Path, part: str, name: str
) -> None:
    folder = f.write(tmp_path / "model")
    file = folder / part / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "stranger.weight": np.ones(3, np.float32)}, file)
    with pytest.raises(IncompatibleWeightsError, match=r"stranger\.weight"):
        engine.load_images(folder)
    del tensors[name]
    save_file(tensors, file)
    with pytest.raises(IncompatibleWeightsError) as caught:
        engine.load_images(folder)
    assert name in str(caught.value)
