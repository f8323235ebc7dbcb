"""Stable Diffusion XL's refiner: the pictures of diffusers' ensemble, and what is none refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geometry as g
import numpy as np
import pytest
from alike import alike
from mlxengine import InferenceEngine
from mlxengine.errors import (
    FeatureUnavailableError,
    IncompatibleWeightsError,
    InvalidParameterError,
    MLXEngineError,
    ModelNotFoundError,
    UnsupportedArchitectureError,
)
from PIL import Image
from safetensors.numpy import load_file
from test_image_verb import run
from test_parity_with_diffusers import Family, family_of, same_picture

STORED = load_file(g.DATA / "refiner.pictures.safetensors")


family = family_of("sdxl")


@pytest.fixture(scope="module")
def refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return g.write_refiner(tmp_path_factory.mktemp("refiner") / "model")


@pytest.mark.parametrize("label", g.REFINED)
def test_a_refined_picture_is_that_of_diffusers(family: Family, refiner: Path, label: str) -> None:
    name, at, told = g.REFINED[label]
    pipeline = family.pipeline()
    ours = family.picture(pipeline, name, refiner=refiner, refiner_at=at, **told)
    same_picture(ours, STORED[label])
    plain = family.picture(pipeline, name, **told)
    assert np.abs(ours.astype(int) - plain).max() > 20
    assert np.array_equal(family.picture(pipeline, name, refiner=refiner, refiner_at=1.0, **told), plain)


def test_a_picture_to_start_from_is_refined_as_in_diffusers(family: Family, refiner: Path) -> None:
    told = {"init": g.picture(), "strength": g.STRENGTH, "refiner": refiner, "refiner_at": 0.6}
    ours = family.picture(family.pipeline(), "euler", **told)
    same_picture(ours, STORED["from picture"])
    spared = family.picture(family.pipeline(), "euler", low_memory=True, **told)
    assert np.array_equal(spared, ours)


def test_samplers_that_ask_twice_are_cut_at_whole_steps(family: Family, refiner: Path) -> None:
    from mlxengine_diffusion.backends._work import Job

    job = Job(
        prompt="a",
        negative=None,
        width=g.WIDTH,
        height=g.HEIGHT,
        steps=g.STEPS,
        guidance=1.0,
        seed=0,
        scheduler="heun",
        refiner=refiner,
        refiner_at=0.5,
    )
    steps = [step.done for step in family.pipeline().denoise(job) if step is not None]
    assert steps == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"cross_attention_dim": 44}, IncompatibleWeightsError, "no refiner"),
        ({"projection_class_embeddings_input_dim": 68}, IncompatibleWeightsError, "no refiner"),
        ({"act_fn": "gelu"}, UnsupportedArchitectureError, "act_fn='gelu'"),
        ({"norm_num_groups": None}, IncompatibleWeightsError, "norm_num_groups"),
        (None, ModelNotFoundError, "holds no UNet"),
    ],
    ids=str,
)
def test_what_is_no_refiner_is_refused_by_what_it_is(
    family: Family, tmp_path: Path, change: Any, error: type[MLXEngineError], words: str
) -> None:
    folder = g.write_refiner(tmp_path / "model")
    if change is None:
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    else:
        config = {**g.refiner_config(), **change}
        text = json.dumps({key: value for key, value in config.items() if value is not None})
        (folder / "unet" / "config.json").write_text(text)
    with pytest.raises(error) as caught:
        family.picture(family.pipeline(), "euler", refiner=folder, refiner_at=0.6)
    assert words in str(caught.value)


def test_a_request_and_the_verb_name_a_refiner(
    engine: InferenceEngine, refiner: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    scheduler = g.scheduler_config("euler", "epsilon", "leading")
    folder = g.write_repository("sdxl", tmp_path / "model", tiny_folder / "tokenizer", scheduler)
    asked: dict[str, Any] = {"size": (32, 32), "steps": 4, "guidance": 3.0, "seed": 1}
    size = (refiner / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    with engine.load_images(folder) as model:
        assert "refiner" in model.capabilities
        made = model.image("a red circle", refiner=str(refiner), refiner_at=0.5, **asked)
        assert (made.recipe["refiner"], made.recipe["refiner_at"]) == (str(refiner), 0.5)
        assert 0.8 * size < engine.memory().models[0].caches <= size
        assert model.image("a red circle", refiner=str(refiner), **asked).recipe["refiner_at"] == 0.8
        for wrong, words in (({"refiner_at": 0.5}, "without refiner"), ({"refiner_at": 2}, "from 0 to 1")):
            rest = {} if "without" in words else {"refiner": str(refiner)}
            with pytest.raises(InvalidParameterError, match=words):
                model.image("a red circle", **wrong, **rest, **asked)
    words = ("a red circle", "-m", folder, "--size", "32x32", "--steps", 4, "--guidance", 3, "--seed", 1)
    told = run(*words, "--refiner", refiner, "--refiner-at", 0.5, "--out", "x.png", folder=tmp_path)
    assert told.returncode == 0, told.stderr
    again = run("--recipe", "x.png", "--out", "y.png", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    for name in ("x.png", "y.png"):
        assert alike(np.array(Image.open(tmp_path / name)), made)
    with engine.load_images(tiny_folder) as model, pytest.raises(FeatureUnavailableError, match="no refiner"):
        model.image("a", refiner=str(refiner))


@pytest.mark.parametrize("halves", [False, True])
def test_of_a_refiner_on_a_hub_the_unet_alone_is_fetched(
    refiner: Path, tiny_folder: Path, tmp_path: Path, hub: Any, halves: bool
) -> None:
    scheduler = g.scheduler_config("euler", "epsilon", "leading")
    folder = g.write_repository("sdxl", tmp_path / "model", tiny_folder / "tokenizer", scheduler)
    weights = (refiner / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    stem = "unet/diffusion_pytorch_model"
    held = {"unet/config.json": (refiner / "unet" / "config.json").read_bytes(), "vae/config.json": b"{}"}
    held |= {f"{stem}.fp16.safetensors": weights, f"{stem}.bin": weights} if halves else {}
    held |= {f"{stem}.safetensors": weights}
    hub.repos.add("org/refiner", held)
    with InferenceEngine(endpoint=hub.endpoint, cache_dir=tmp_path / "cache") as engine:
        model = engine.load_images(folder)
        model.image("a", size=(32, 32), steps=2, guidance=1.0, refiner="org/refiner", refiner_at=0.5)
    found = {path.name for path in (tmp_path / "cache").rglob("diffusion_pytorch_model*")}
    assert found == {f"diffusion_pytorch_model{'.fp16' if halves else ''}.safetensors"}
