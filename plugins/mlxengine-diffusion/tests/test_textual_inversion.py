"""Words that textual inversion taught, against diffusers and in each file's form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import geometry as g
import numpy as np
import pytest
from mlxengine import InferenceEngine
from mlxengine.errors import IncompatibleWeightsError, InvalidParameterError
from mlxengine_diffusion.backends._work import Job
from safetensors.numpy import load_file, save_file
from test_parity_with_diffusers import SharedNoise, finished, same_picture

ASK: dict[str, Any] = {"steps": 1, "guidance": 3.0, "seed": 0, "size": (32, 32)}


@pytest.mark.parametrize(
    ("family", "name", "tensors"),
    [
        ("sd1", "any.safetensors", {g.WORD: g.vectors(24)}),
        ("sd1", f"{g.WORD}.safetensors", {"emb_params": g.vectors(24)}),
        ("sdxl", f"{g.WORD}.safetensors", {"clip_l": g.vectors(24), "clip_g": g.vectors(20)}),
    ],
    ids=["diffusers", "web ui", "web ui, xl"],
)
def test_a_taught_word_makes_the_picture_that_it_makes_in_diffusers(
    tmp_path: Path,
    tiny_folder: Path,
    load_pipeline: Callable[..., Any],
    family: str,
    name: str,
    tensors: dict[str, Any],
) -> None:
    scheduler = g.scheduler_config("euler", "epsilon", "leading")
    pipeline = load_pipeline(
        g.write_repository(family, tmp_path / "model", tiny_folder / "tokenizer", scheduler)
    )
    save_file(tensors, tmp_path / name)
    job = Job(
        prompt=g.TAUGHT,
        negative=g.NEGATIVE,
        width=g.WIDTH,
        height=g.HEIGHT,
        steps=g.STEPS,
        guidance=g.GUIDANCE,
        seed=0,
        scheduler="euler",
        textual_inversions=(tmp_path / name,),
    )
    assert pipeline.read_prompt(job).tokens == 2 + pipeline.read_prompt(_without(job)).tokens
    *_, last = pipeline.denoise(job, SharedNoise())
    same_picture(
        finished(pipeline.decode(last.latents, job)), load_file(g.DATA / "size.pictures.safetensors")[family]
    )


def _without(job: Job) -> Job:
    from attrs import evolve

    return evolve(job, prompt=g.TAUGHT.replace(g.WORD, ""), textual_inversions=())


def test_a_taught_word_is_found_in_any_case_with_a_weight_and_not_inside_another_word(
    shared_engine: InferenceEngine, tiny_folder: Path, tmp_path: Path
) -> None:
    width = 64
    save_file({"emb_params": g.vectors(width)}, tmp_path / "toy.safetensors")
    asked = {**ASK, "textual_inversions": (str(tmp_path / "toy.safetensors"),)}
    with shared_engine.load_images(tiny_folder) as model:
        plain = model.image("a toy circle", **ASK)
        taught = model.image("a toy circle", **asked)
        assert not np.array_equal(plain.numpy(), taught.numpy())
        assert np.array_equal(model.image("a TOY circle", **asked).numpy(), taught.numpy())
        assert not np.array_equal(model.image("a (toy:1.3) circle", **asked).numpy(), taught.numpy())
        assert taught.recipe["textual_inversions"] == (str(tmp_path / "toy.safetensors"),)
        model.image("a circle", negative="a toy", **asked)
        with pytest.raises(InvalidParameterError, match="does not hold 'toy'"):
            model.image("a toyshop", **asked)


@pytest.mark.parametrize(
    ("name", "tensors", "words"),
    [
        ("toy.txt", {"emb_params": g.vectors(64)}, "one .safetensors file is"),
        (
            "toy.safetensors",
            {"emb_params": g.vectors(48)},
            "of width 48; the text encoders of this model take 64",
        ),
        ("toy.safetensors", {"a": g.vectors(64), "b": g.vectors(64)}, "it holds 2 tensors"),
        ("toy.safetensors", {"clip_l": g.vectors(64), "clip_g": g.vectors(20)}, "width 64 and 20"),
        ("toy.safetensors", {"emb_params": np.zeros((76, 64), np.float32)}, "1 to 75 are"),
    ],
    ids=["another ending", "another model", "no word", "of xl", "too many"],
)
def test_what_taught_no_word_of_this_model_is_refused_by_what_it_is(
    shared_engine: InferenceEngine,
    tiny_folder: Path,
    tmp_path: Path,
    name: str,
    tensors: dict[str, Any],
    words: str,
) -> None:
    save_file(tensors, tmp_path / name)
    refused = pytest.raises(IncompatibleWeightsError, match=words)
    with shared_engine.load_images(tiny_folder) as model, refused:
        model.image("a toy", textual_inversions=(str(tmp_path / name),), **ASK)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"textual_inversions": (5,)}, "5 names no textual inversion"),
        ({"upscale": 5}, "5 names no upscaler"),
        ({"vae_tiling": "on"}, "vae_tiling='on' must be True or False"),
    ],
    ids=str,
)
def test_a_value_that_names_nothing_is_refused(
    shared_engine: InferenceEngine, tiny_folder: Path, values: dict[str, Any], words: str
) -> None:
    refused = pytest.raises(InvalidParameterError, match=words)
    with shared_engine.load_images(tiny_folder) as model, refused:
        model.image("a", **ASK, **values)
