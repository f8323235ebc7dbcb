"""Every part and every sampler against diffusers on torch: same weights, same noise, stored outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import geometry as g
import numpy as np
import pytest
from mlxengine_diffusion.backends._work import Job
from mlxengine_diffusion.sd.scheduler_config import NoiseSettings
from mlxengine_diffusion.sd.schedulers import scheduler
from safetensors.numpy import load_file

COMPONENT_TOLERANCE = 1e-4
PIXEL_TOLERANCE = 2
# All samplers on one family daily, on the others with `slow`.
EVERY = [
    pytest.param(name, *combination, marks=[] if name == "sd1" or number % 7 == 0 else [pytest.mark.slow])
    for name in g.FAMILIES
    for number, combination in enumerate(g.combinations(name))
]


def finished(walk: Generator[None, None, Any]) -> Any:
    """What a generator returns at its end."""
    while True:
        try:
            next(walk)
        except StopIteration as end:
            return end.value


class SharedNoise:
    """The noise that the reference was computed with."""

    def initial(self, shape: tuple[int, ...]) -> Any:
        return self._at(0, shape)

    def fresh(self, index: int, shape: tuple[int, ...]) -> Any:
        return self._at(index + 1, shape)

    def _at(self, index: int, shape: tuple[int, ...]) -> Any:
        import mlx.core as mx

        found = g.noise(index)
        assert found.shape == shape
        return mx.array(found)


class Family:
    """One tiny model, with its stored references."""

    def __init__(self, name: str, root: Path, load: Callable[..., Any]) -> None:
        self.name = name
        self._root = root
        self._load = load
        self._pipelines: dict[str, Any] = {}
        self.components = load_file(g.DATA / f"{name}.components.safetensors")
        self.pictures = load_file(g.DATA / f"{name}.pictures.safetensors")

    def pipeline(self, prediction: str = "epsilon", spacing: str = "leading") -> Any:
        """The model in a repository that asks for Euler."""
        return self.asking(g.scheduler_config("euler", prediction, spacing))

    def filling(self) -> Any:
        """The model for inpainting alone."""
        return self.asking(g.scheduler_config("euler", "epsilon", "leading"), g.FILLING)

    def asking(self, scheduler: dict[str, Any], family: str | None = None) -> Any:
        """The model in a repository with that ``scheduler_config.json``."""
        key = json.dumps([scheduler, family])
        if key not in self._pipelines:
            folder = self._root / str(len(self._pipelines))
            tiny = Path(__file__).parents[3] / "tests" / "models" / "tiny-shapes-sd" / "tokenizer"
            self._pipelines[key] = self._load(
                g.write_repository(family or self.name, folder, tiny, scheduler)
            )
        return self._pipelines[key]

    def picture(self, pipeline: Any, scheduler: str, **changes: Any) -> np.ndarray[Any, Any]:
        values: dict[str, Any] = {
            "prompt": g.PROMPT,
            "negative": g.NEGATIVE,
            "width": g.WIDTH,
            "height": g.HEIGHT,
            "steps": g.STEPS,
            "guidance": g.GUIDANCE,
            "seed": 0,
            "scheduler": scheduler,
            **changes,
        }
        job = Job(**values)
        *_, last = pipeline.denoise(job, SharedNoise())
        return finished(pipeline.decode(last.latents, job))


def family_of(*names: str) -> Any:
    """The fixture ``family`` of a module: one tiny model after the other."""

    @pytest.fixture(scope="module", params=names)
    def family(
        request: pytest.FixtureRequest,
        tmp_path_factory: pytest.TempPathFactory,
        load_pipeline: Callable[..., Any],
    ) -> Family:
        return Family(request.param, tmp_path_factory.mktemp(request.param), load_pipeline)

    return family


family = family_of(*g.FAMILIES)


def close(ours: Any, theirs: np.ndarray[Any, Any]) -> None:
    assert np.array(ours).shape == theirs.shape
    assert np.abs(np.array(ours) - theirs).max() <= COMPONENT_TOLERANCE


def same_picture(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= PIXEL_TOLERANCE


def test_the_text_encoders_say_what_transformers_says(family: Family) -> None:
    pipeline = family.pipeline()
    job = Job(
        prompt=g.PROMPT,
        negative=None,
        width=g.WIDTH,
        height=g.HEIGHT,
        steps=1,
        guidance=1.0,
        seed=0,
        scheduler="euler",
    )
    told = finished(pipeline._condition(job, g.PROMPT, [], 1))
    close(told.context, family.components["context"])
    if family.name == "sdxl":
        close(told.pooled, family.components["pooled"])
    else:
        assert told.pooled is None


def test_the_unet_predicts_what_diffusers_predicts_at_a_size_that_cannot_be_halved(family: Family) -> None:
    import mlx.core as mx

    added = None
    if family.name == "sdxl":
        sizes = mx.array([[g.HEIGHT, g.WIDTH, 0, 0, g.HEIGHT, g.WIDTH]], dtype=mx.float32)
        added = (mx.array(family.components["pooled"]), sizes)
    with family.pipeline().parts.use("unet") as unet:
        context = mx.array(family.components["context"])
        output = unet(mx.array(g.random("odd", (1, 9, 7, 4))), mx.array([321.0]), context, added)
    close(output, family.components["unet"])


def test_the_autoencoder_encodes_and_decodes_as_in_diffusers(family: Family) -> None:
    import mlx.core as mx

    with family.pipeline().parts.use("vae") as vae:
        close(vae.decode(mx.array(g.noise(0))), family.components["decoded"])
        pixels = mx.array(g.picture().astype(np.float32) / 127.5 - 1)[None]
        close(vae.encode(pixels)[0], family.components["encoded"])


@pytest.mark.parametrize(
    ("family", "scheduler", "prediction", "spacing"), EVERY, indirect=["family"], scope="module"
)
def test_every_sampler_prediction_and_spacing_makes_diffusers_picture(
    family: Family, scheduler: str, prediction: str, spacing: str
) -> None:
    ours = family.picture(family.pipeline(prediction, spacing), scheduler)
    same_picture(ours, family.pictures[f"{scheduler}/{prediction}/{spacing}"])


@pytest.mark.parametrize("label", g.walks())
def test_a_sampler_goes_where_diffusers_goes_when_the_model_changes_its_mind(label: str) -> None:
    import mlx.core as mx

    settings = NoiseSettings.read(g.walks()[label])
    walk = scheduler(settings.sampler, settings, g.WALK)
    sample = mx.array(g.walk_noise(0)) * walk.initial_scale
    for index, time in enumerate(walk.timesteps):
        output = mx.array(g.said(np.array(walk.scale_input(sample, index)), time))
        sample, _ = walk.step(output, sample, index, mx.array(g.walk_noise(index + 1)))
    end = load_file(g.DATA / "samplers.safetensors")[label]
    # diffusers' DDPM takes pure noise as it is; everywhere else it is made nearly pure, as here.
    tolerance = 1e-3 if "pure noise" in label else 1e-4
    assert np.abs(np.array(sample) - end).max() <= tolerance * max(1, np.abs(end).max())


@pytest.mark.parametrize("placement", g.PLACEMENTS)
@pytest.mark.parametrize(("family", "scheduler"), [("sd1", name) for name in g.PLACED], indirect=["family"])
def test_noise_levels_can_be_placed_as_diffusers_places_them(
    family: Family, scheduler: str, placement: str
) -> None:
    ours = family.picture(family.pipeline(), scheduler, sigmas=placement)
    same_picture(ours, family.pictures[f"{scheduler}/{placement}"])


@pytest.mark.parametrize(("family", "label"), [("sd1", label) for label in g.SETTINGS], indirect=["family"])
def test_what_a_scheduler_configuration_says_besides_is_followed_as_in_diffusers(
    family: Family, label: str
) -> None:
    name, changes = g.SETTINGS[label]
    config = {**g.scheduler_config(name, "epsilon", "leading"), **changes}
    steps = config.pop("num_steps", g.STEPS)
    ours = family.picture(family.asking(config), name, steps=steps)
    same_picture(ours, family.pictures[label])


def test_guidance_is_rescaled_as_in_diffusers(family: Family) -> None:
    ours = family.picture(family.pipeline(), "euler", guidance_rescale=g.RESCALE)
    same_picture(ours, family.pictures["rescaled"])


def test_another_layer_of_the_text_encoder_is_the_one_that_diffusers_takes(family: Family) -> None:
    values = {"clip_skip": g.LAYER, "negative": None, "guidance": 1.0}
    same_picture(family.picture(family.pipeline(), "euler", **values), family.pictures["another layer"])


def test_weighed_words_make_the_picture_of_embeddings_that_torch_weighed(family: Family) -> None:
    ours = family.picture(family.pipeline(), "euler", prompt=g.WEIGHED, prompt_weights=True)
    same_picture(ours, family.pictures["weighed"])


def test_a_long_prompt_makes_the_picture_of_its_chunks_side_by_side(family: Family) -> None:
    for weights in (False, True):
        ours = family.picture(family.pipeline(), "euler", prompt=g.LONG, prompt_weights=weights)
        same_picture(ours, family.pictures["long"])


FILLED = [
    (name, strength)
    for name in ("euler", "ddim", "dpmpp_2m", "unipc", "lcm", "heun")
    for strength in (1.0, g.STRENGTH)
]


@pytest.mark.parametrize(("scheduler", "strength"), FILLED)
@pytest.mark.parametrize("family", ["sd1"], indirect=True)
def test_a_hole_is_filled_as_in_diffusers(
    family: Family, tmp_path: Path, scheduler: str, strength: float
) -> None:
    told = {"init": g.picture(), "mask": g.mask(), "strength": strength}
    ours = family.picture(family.pipeline(), scheduler, **told)
    same_picture(ours, family.pictures[f"{scheduler}/filled/{strength}"])
    ours = family.picture(family.filling(), scheduler, **told)
    same_picture(ours, family.pictures[f"{scheduler}/filled by nine channels/{strength}"])


@pytest.mark.parametrize("placement", g.PLACEMENTS)
@pytest.mark.parametrize("family", ["sd1"], indirect=True)
def test_a_repository_can_ask_for_a_placement(family: Family, placement: str) -> None:
    config = {**g.scheduler_config("dpmpp_2m", "epsilon", "leading"), f"use_{placement}_sigmas": True}
    same_picture(family.picture(family.asking(config), "dpmpp_2m"), family.pictures[f"dpmpp_2m/{placement}"])


def test_an_absent_negative_prompt_means_what_it_means_in_diffusers(family: Family) -> None:
    ours = family.picture(family.pipeline(), "euler", negative=None)
    same_picture(ours, family.pictures["no negative"])


def test_without_guidance_the_prompt_alone_counts(family: Family) -> None:
    ours = family.picture(family.pipeline(), "euler", negative=None, guidance=1.0)
    same_picture(ours, family.pictures["no guidance"])


@pytest.mark.parametrize("scheduler", g.SCHEDULERS)
def test_a_picture_from_a_picture_is_that_of_diffusers(family: Family, scheduler: str) -> None:
    key = f"{scheduler}/from picture"
    if family.name != "sd1":
        assert key not in family.pictures  # one family is enough: the way in is the same for all
        return
    ours = family.picture(family.pipeline(), scheduler, init=g.picture(), strength=g.STRENGTH)
    same_picture(ours, family.pictures[key])


HERE = Path(__file__).parent
# What computes the stored references, with the CLIP tokenizer's folder or without, and where they are.
SCRIPTS = {
    "make_reference.py": True,
    "make_size_reference.py": True,
    "make_single_names.py": False,
    "make_adapter_reference.py": False,
    "make_control_reference.py": True,
    "make_ip_reference.py": True,
    "make_refiner_reference.py": True,
    "make_sampler_reference.py": False,
    "extras/make_kit_reference.py": True,
    "extras/make_z_image_reference.py": False,
    "extras/make_mflux_reference.py": True,
    "extras/make_flow_reference.py": True,
}


@pytest.mark.parity
def test_the_table_of_scheduler_classes_lists_what_their_constructors_take() -> None:
    import inspect

    import diffusers
    from mlxengine_diffusion.sd.scheduler_classes import CLASSES

    for name, known in CLASSES.items():
        signature = inspect.signature(getattr(diffusers, name).__init__)
        theirs = {key: item.default for key, item in signature.parameters.items() if key != "self"}
        assert known.settings == theirs, name


@pytest.mark.parity
@pytest.mark.parametrize("script", SCRIPTS)
def test_torch_still_computes_the_stored_references(script: str, tmp_path: Path, tiny_folder: Path) -> None:
    python = os.environ.get("MLXENGINE_PARITY_PYTHON", sys.executable)
    path = HERE / script
    words = [tiny_folder / "tokenizer"] if SCRIPTS[script] else []
    subprocess.run([python, path, *words, tmp_path], check=True)
    made = sorted(item.name for item in tmp_path.iterdir())
    assert made
    for name in made:
        stored = path.parent / "reference" / name
        if name.endswith(".json"):
            ours, theirs = (json.loads(item.read_text()) for item in (tmp_path / name, stored))
            if name == "levels.json":
                ours, theirs = (np.concatenate(list(item.values())) for item in (ours, theirs))
                assert np.abs(ours - theirs).max() <= 1e-6
            else:
                assert ours == theirs, name
            continue
        tolerance = 1e-5 if "components" in name else 1
        ours, theirs = load_file(tmp_path / name), load_file(stored)
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert np.abs(ours[key].astype(np.float64) - value).max() <= tolerance, (name, key)
