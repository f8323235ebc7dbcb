"""ControlNets: the pictures of diffusers, and what does not fit refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geometry as g
import numpy as np
import pytest
from alike import alike
from mlxengine import ImageControl, InferenceEngine
from mlxengine.errors import (
    FeatureUnavailableError,
    IncompatibleWeightsError,
    InvalidParameterError,
    MLXEngineError,
    ModelNotFoundError,
    UnsupportedArchitectureError,
)
from mlxengine_diffusion.backends._work import Guide, Job
from PIL import Image
from safetensors.numpy import load_file, save_file
from test_image_verb import run
from test_parity_with_diffusers import Family, family_of, same_picture

STORED = load_file(g.DATA / "control.pictures.safetensors")


family = family_of("sd1", "sdxl")


@pytest.fixture(scope="module")
def nets(family: Family, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("nets")
    return {name: g.write_control(family.name, name, root / name) for name in ("edges", "depth")}


def guides(nets: dict[str, Path], label: str) -> tuple[Guide, ...]:
    return tuple(
        Guide(path=nets[name], pixels=g.control_picture(name), strength=strength, start=start, end=end)
        for name, strength, start, end in g.CONTROLS[label]
    )


@pytest.mark.parametrize("label", g.CONTROLS)
def test_a_controlled_picture_is_that_of_diffusers(family: Family, nets: dict[str, Path], label: str) -> None:
    pipeline = family.pipeline()
    ours = family.picture(pipeline, "euler", controls=guides(nets, label))
    same_picture(ours, STORED[f"{family.name}/{label}"])
    plain = family.picture(pipeline, "euler")
    assert np.abs(ours.astype(int) - plain).max() > 20
    same_picture(plain, family.pictures["euler/epsilon/leading"])  # nothing is left behind


@pytest.mark.parametrize("family", ["sd1"], indirect=True)
def test_it_counts_evaluations_as_diffusers_does(family: Family, nets: dict[str, Path]) -> None:
    told = guides(nets, "controlled for a while")
    same_picture(family.picture(family.pipeline(), "heun", controls=told), STORED["sd1/heun"])
    start = {"init": g.picture(), "strength": g.STRENGTH}
    ours = family.picture(family.pipeline(), "euler", controls=told, **start)
    same_picture(ours, STORED["sd1/from picture"])
    spared = family.picture(family.pipeline(), "euler", controls=told, low_memory=True, **start)
    assert np.array_equal(spared, ours)


@pytest.mark.parametrize("family", ["sd1"], indirect=True)
def test_a_model_for_inpainting_is_controlled_by_its_latents_alone(
    family: Family, nets: dict[str, Path]
) -> None:
    told: dict[str, Any] = {"init": g.picture(), "mask": g.mask()}
    plain = family.picture(family.filling(), "euler", **told)
    ours = family.picture(family.filling(), "euler", controls=guides(nets, "controlled"), **told)
    assert np.abs(ours.astype(int) - plain).max() > 20


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"_class_name": "FluxControlNetModel"}, UnsupportedArchitectureError, "FluxControlNetModel"),
        ({"global_pool_conditions": True}, UnsupportedArchitectureError, "global_pool_conditions=True"),
        ({"block_out_channels": None}, UnsupportedArchitectureError, "block_out_channels"),
        ({"block_out_channels": [16, 64]}, IncompatibleWeightsError, "another model"),
        ({"cross_attention_dim": 48}, IncompatibleWeightsError, "another model"),
        ({"conditioning_embedding_out_channels": [8, 12, 12]}, IncompatibleWeightsError, "another model"),
        ("a tensor", IncompatibleWeightsError, "controlnet_mid_block.bias"),
        ("the weights", ModelNotFoundError, "holds no ControlNet"),
        ("the configuration", UnsupportedArchitectureError, "no configuration"),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["sd1"], indirect=True)
def test_a_network_that_does_not_fit_is_refused_by_what_it_is(
    family: Family, tmp_path: Path, change: Any, error: type[MLXEngineError], words: str
) -> None:
    folder = g.write_control("sd1", "edges", tmp_path / "net")
    file = folder / "diffusion_pytorch_model.safetensors"
    if change == "a tensor":
        tensors = load_file(file)
        del tensors["controlnet_mid_block.bias"]
        save_file(tensors, file)
    elif change == "the weights":
        file.unlink()
    elif change == "the configuration":
        (folder / "config.json").write_text("{")
    else:
        config = {**g.control_config("sd1"), **change}
        text = json.dumps({key: value for key, value in config.items() if value is not None})
        (folder / "config.json").write_text(text)
    with pytest.raises(error) as caught:
        family.picture(family.pipeline(), "euler", controls=guides({"edges": folder}, "controlled"))
    assert words in str(caught.value)


def test_a_request_and_the_verb_name_networks_and_pictures(
    engine: InferenceEngine, tiny_folder: Path, tmp_path: Path
) -> None:
    net = g.write_tiny_control(tiny_folder, tmp_path / "net")
    edges = np.zeros((32, 48, 3), np.uint8)
    edges[8:24, 12:36] = 255
    Image.fromarray(edges).save(tmp_path / "edges.png")
    asked: dict[str, Any] = {"size": (32, 32), "steps": 2, "guidance": 3.0, "seed": 1}
    with engine.load_images(tiny_folder) as model:
        assert "controlnet" in model.capabilities
        control = ImageControl(source=str(net), image=tmp_path / "edges.png", strength=0.8, start=0, end=0.5)
        made = model.image("a red circle", controls=(control,), **asked)
        assert not alike(made, model.image("a red circle", **asked))
        assert made.recipe["controls"][0][:4] == (str(net), 0.8, 0.0, 0.5)
        for wrong, words in (
            ({"start": 0.6, "end": 0.5}, "ControlNet's end"),
            ({"strength": float("nan")}, "ControlNet's strength"),
        ):
            bad = ImageControl(source=str(net), image=edges, **wrong)
            with pytest.raises(InvalidParameterError, match=words):
                model.image("a red circle", controls=(bad,), **asked)
    words = ("a red circle", "-m", tiny_folder, "--size", "32x32", "--steps", 2, "--guidance", 3, "--seed", 1)
    told = run(*words, "--control", "net=edges.png@0.8,0,0.5", "--out", "x.png", folder=tmp_path)
    assert told.returncode == 0, told.stderr
    assert alike(np.array(Image.open(tmp_path / "x.png")), made)
    again = run("--recipe", "x.png", "--out", "y.png", folder=tmp_path)
    assert (again.returncode, "--control" in again.stderr) == (2, True)


def _pixels(place: int) -> np.ndarray[Any, Any]:
    return np.full((32, 32, 3), place, np.uint8)


def test_networks_that_stay_count_as_caches_and_go_when_others_need_the_memory(
    tiny_folder: Path, tmp_path: Path
) -> None:
    from mlxengine import PictureWorkload

    nets = [g.write_tiny_control(tiny_folder, tmp_path / f"net{place}") for place in range(3)]
    size = sum(value.nbytes for value in load_file(nets[0] / "diffusion_pytorch_model.safetensors").values())
    asked: dict[str, Any] = {"size": (32, 32), "steps": 1, "guidance": 1.0, "seed": 1}

    def control(*places: int) -> tuple[ImageControl, ...]:
        return tuple(ImageControl(source=str(nets[place]), image=_pixels(place)) for place in places)

    with InferenceEngine() as engine:
        model = engine.load_images(tiny_folder)
        for places, kept in (((0,), 1), ((1,), 2), ((2,), 2), ((0, 1, 2), 2)):
            model.image("a red circle", controls=control(*places), **asked)
            assert engine.memory().models[0].caches == kept * size
        model.image("a red circle", low_memory=True, controls=control(0), **asked)
        assert engine.memory().models[0].caches == 0
        needed = engine.fit(tiny_folder, PictureWorkload(backend=engine.device.backend)).estimate.total
    with InferenceEngine(memory_budget=needed + size + (1 << 20)) as engine:
        model = engine.load_images(tiny_folder)
        for place in (0, 1):
            model.image("a red circle", controls=control(place), **asked)
            assert engine.memory().models[0].caches <= size + (1 << 20)


def test_the_networks_that_stay_are_those_used_last(
    load_pipeline: Callable[..., Any], tiny_folder: Path, tmp_path: Path
) -> None:
    pipeline = load_pipeline(tiny_folder)
    nets = [g.write_tiny_control(tiny_folder, tmp_path / f"net{place}") for place in range(3)]
    for place in (0, 1, 0, 2):
        guide = Guide(path=nets[place], pixels=_pixels(0), strength=1.0, start=0.0, end=1.0)
        job = Job(
            prompt="a",
            negative=None,
            width=32,
            height=32,
            steps=1,
            guidance=1.0,
            seed=0,
            scheduler="euler",
            controls=(guide,),
        )
        assert len(list(pipeline.denoise(job))) > 0
    assert list(pipeline._nets) == [nets[0], nets[2]]


def test_other_models_refuse_control(tmp_path: Path, engine: InferenceEngine) -> None:
    import sys

    sys.path.insert(0, str(Path(__file__).parent / "extras"))
    import tiny_z_image as z

    with engine.load_images(z.write(tmp_path / "model")) as model:
        control = ImageControl(source=str(tmp_path), image=np.zeros((64, 64, 3), np.uint8))
        with pytest.raises(FeatureUnavailableError, match="no ControlNets"):
            model.image("a", controls=(control,))
