"""Pictures from pictures, by models of flow matching: from one, a part of one, and looking at others."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlxengine import ImageRequest, InferenceEngine, Progress
from mlxengine.errors import InvalidParameterError, UnsupportedInputError
from PIL import Image
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parent / "extras"))

import tiny_adapters as a
import tiny_flux2 as f
import tiny_kit as k
import tiny_z_image as z
from test_image_verb import run

STORED = load_file(k.DATA / "flow.pictures.safetensors")
MODELS: dict[str, tuple[Any, float]] = {"flux2": (f, 1.0), "z_image": (z, 0.0)}
MADE = [(name, change) for name in MODELS for change in a.changes() if f"{name}/{change}" in STORED]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("flow")
    return {name: module.write(root / name) for name, (module, _) in MODELS.items()}


@pytest.fixture(scope="module")
def pipelines(folders: dict[str, Path], load_pipeline: Callable[..., Any]) -> dict[str, Any]:
    return {name: load_pipeline(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path], shared_engine: InferenceEngine) -> dict[str, Any]:
    return {name: shared_engine.load_images(folder) for name, folder in folders.items()}


@pytest.mark.parametrize(("name", "change"), MADE)
def test_the_picture_is_that_of_diffusers(pipelines: dict[str, Any], name: str, change: str) -> None:
    import mlx.core as mx

    module, guidance = MODELS[name]
    job = a.job(module, guidance, **a.changes()[change])
    ours = k.pixels(pipelines[name], job, mx.array(a.noise(name)))
    assert np.abs(ours - STORED[f"{name}/{change}"].astype(int)).max() <= 2


@pytest.mark.parametrize(("strength", "steps"), [(0.0, 0), (0.01, 1), (0.5, 2), (0.6, 3), (1.0, 4)])
def test_the_strength_is_the_share_of_the_steps_that_are_done_rounded_up(
    models: dict[str, Any], strength: float, steps: int
) -> None:
    request = ImageRequest(prompt="a", init_image=a.start(), strength=strength, steps=4, seed=1)
    events = list(models["z_image"].stream(request))
    assert sum(isinstance(event, Progress) for event in events) == steps


@pytest.mark.feature("diffusion.image_to_image")
@pytest.mark.parametrize("name", MODELS)
def test_what_the_mask_keeps_is_kept_to_the_pixel_and_the_rest_is_anew(
    models: dict[str, Any], name: str
) -> None:
    assert {"image_to_image", "inpainting"} <= models[name].capabilities
    made = models[name].image("a", init_image=a.start(), mask=a.mask(), steps=2, seed=1)
    changed = (made.numpy() != a.start()).any(axis=2)
    assert not changed[a.mask() == 0].any()
    assert changed[a.mask() > 0].mean() > 0.9


def test_low_memory_makes_the_same_picture_of_pictures(models: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"references": (a.other(),), "init_image": a.start(), "steps": 2, "seed": 1}
    usual = models["flux2"].image("a", **asked).numpy()
    assert np.array_equal(models["flux2"].image("a", low_memory=True, **asked).numpy(), usual)


def test_a_picture_to_look_at_is_cut_to_whole_steps_and_gives_its_size(models: dict[str, Any]) -> None:
    wide = Image.fromarray(np.pad(a.other(), ((3, 4), (5, 6), (0, 0)), mode="edge"))
    made = models["flux2"].image("a", references=(wide,), steps=1, seed=1)
    assert made.size == (96, 64)
    exact = models["flux2"].image("a", references=(a.other(),), steps=1, seed=1)
    assert np.array_equal(made.numpy(), exact.numpy())
    assert made.recipe["references_sha256"] == exact.recipe["references_sha256"]


def test_a_large_picture_to_look_at_is_scaled_to_a_million_pixels() -> None:
    from mlxengine_diffusion._pictures import reference_pixels

    assert reference_pixels(Image.new("RGB", (4000, 1000)), 16, ()).shape == (512, 2048, 3)
    sizes = ((1568, 672), (1024, 1024))
    assert reference_pixels(Image.new("RGB", (4000, 1000)), 16, sizes).shape == (672, 1568, 3)


@pytest.mark.parametrize(
    ("size", "area", "wanted"),  # as diffusers' calculate_dimensions has them
    [
        ((100, 75), 128 * 128, (160, 96)),
        ((1024, 1024), 1024 * 1024, (1024, 1024)),
        ((1920, 1080), 1024 * 1024, (1376, 768)),
        ((9, 900), 384 * 384, (32, 3840)),
    ],
)
def test_a_picture_that_is_edited_keeps_its_ratio_in_steps_of_32(
    size: tuple[int, int], area: int, wanted: tuple[int, int]
) -> None:
    from mlxengine_diffusion._pictures import area_size

    assert area_size(size, area) == wanted


@pytest.mark.parametrize(
    ("name", "references", "error", "words"),
    [
        ("z_image", (a.start(),), UnsupportedInputError, "looks at no other pictures"),
        ("flux2", (a.start(),) * 11, InvalidParameterError, "at 10 at most"),
        ("flux2", (np.zeros((8, 64, 3), np.uint8),), InvalidParameterError, "references has 64 × 8"),
        ("flux2", a.start(), InvalidParameterError, "references=(picture,)"),
        ("flux2", ("no-such-file.png",), UnsupportedInputError, "references cannot be read"),
    ],
)
def test_pictures_to_look_at_that_cannot_be_are_refused(
    models: dict[str, Any], name: str, references: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        models[name].image("a", references=references)
    assert words in f"{caught.value} {getattr(caught.value, 'hint', '')}"


def test_the_verb_takes_pictures_to_look_at_and_asks_for_them_again(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    Image.fromarray(a.other()).save(tmp_path / "other.png")
    asked = (
        "a red circle",
        "-m",
        folders["flux2"],
        "--steps",
        1,
        "--reference",
        "other.png",
        "--out",
        "x.png",
    )
    assert run(*asked, folder=tmp_path).stdout == "x.png\n"
    assert Image.open(tmp_path / "x.png").size == (96, 64)
    again = run("--recipe", "x.png", "--out", "y.png", folder=tmp_path)
    assert (again.returncode, "--reference" in again.stderr) == (2, True)


@pytest.mark.parametrize("name", MODELS)
def test_where_weights_are_in_half_precision_everything_is_computed_in_it(
    folders: dict[str, Path], load_pipeline: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import mlx.core as mx
    from mlxengine_diffusion.backends import _networks

    monkeypatch.setattr(_networks, "usual_dtype", lambda: mx.bfloat16)
    pipeline = load_pipeline(folders[name])
    module, guidance = MODELS[name]
    made: list[Any] = []

    def noted(call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *values, **named: made.append(call(*values, **named)) or made[-1]

    predict = pipeline._predict
    monkeypatch.setattr(pipeline, "_predict", lambda network, *rest: predict(noted(network), *rest))
    with pipeline.parts.use("vae") as vae:
        if name == "flux2":  # Z-Image's is in float32 everywhere
            monkeypatch.setattr(vae, "decode", noted(vae.decode))
        k.pixels(pipeline, a.job(module, guidance), mx.array(a.noise(name)))
    assert made
    assert {item.dtype for item in made} == {mx.bfloat16}
