"""What a repository's scheduler says is followed, or refused by name before anything is fetched."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlxengine import ImageReady, ImageRequest, InferenceEngine, Progress
from mlxengine.errors import InvalidParameterError, UnsupportedArchitectureError


@pytest.fixture
def asking(tiny_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny model whose scheduler_config.json is another."""

    def write(name: str, **settings: object) -> Path:
        folder = Path(shutil.copytree(tiny_folder, tmp_path / name, copy_function=shutil.copyfile))
        file = folder / "scheduler" / "scheduler_config.json"
        own = json.loads(file.read_text())
        kept = {key: own[key] for key in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")}
        file.write_text(json.dumps({"_class_name": name, "clip_sample": False, **kept, **settings}))
        return folder

    return write


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}),
        ("DPMSolverMultistepScheduler", {"solver_order": 4}),
        ("DPMSolverMultistepScheduler", {"thresholding": True}),
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
        ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -5.1}),
        ("DPMSolverMultistepScheduler", {"variance_type": "learned"}),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}),
        ("DPMSolverSDEScheduler", {"noise_sampler_seed": 3}),
        ("DPMSolverSinglestepScheduler", {"solver_order": 3}),
        ("UniPCMultistepScheduler", {"predict_x0": False}),
        ("UniPCMultistepScheduler", {"shift_terminal": 0.1}),
        ("DDIMScheduler", {"thresholding": True}),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}),
        ("DDPMScheduler", {"variance_type": "learned_range"}),
        ("LMSDiscreteScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
        ("EulerDiscreteScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
        ("EulerDiscreteScheduler", {"trained_betas": [0.1, 0.2]}),
        ("EulerDiscreteScheduler", {"prediction_type": "sample"}),
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "sideways"}),
        ("LCMScheduler", {"rescale_betas_zero_snr": True}),
        ("LCMScheduler", {"original_inference_steps": 0}),
        ("HeunDiscreteScheduler", {"beta_schedule": "exp"}),
    ],
    ids=str,
)
def test_a_setting_that_is_not_followed_is_refused_by_name_before_a_download(
    engine: InferenceEngine, asking: Callable[..., Path], name: str, settings: dict[str, Any]
) -> None:
    problem = engine.explain(asking(name, **settings)).claim.problem
    assert isinstance(problem, UnsupportedArchitectureError)
    assert next(iter(settings)) in str(problem)
    assert name in str(problem)


def test_what_other_classes_left_in_the_file_counts_for_nothing(
    engine: InferenceEngine, asking: Callable[..., Path]
) -> None:
    folder = asking("EulerDiscreteScheduler", thresholding=True, solver_order=7, lambda_min_clipped=-math.inf)
    assert engine.explain(folder).claim.problem is None


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
def test_a_distilled_repository_brings_its_sampler_few_steps_and_no_guidance(
    engine: InferenceEngine, asking: Callable[..., Path], name: str
) -> None:
    with engine.load_images(asking(name)) as model:
        recipe = model.image("a red circle", seed=1).recipe
    assert (recipe["scheduler"], recipe["steps"], recipe["guidance"]) == (name[:3].lower(), 4, 1.0)


@pytest.mark.parametrize(
    ("name", "spacing", "steps", "guidance"),
    [
        ("sd-turbo", "trailing", 4, 1.0),
        ("SDXL-Lightning-8step", "trailing", 8, 1.0),
        ("sd-turbo", "leading", 30, 7.5),
        ("turbine", "trailing", 30, 7.5),
    ],
)
def test_a_distilled_model_that_its_name_and_spacing_tell_of_takes_few_steps(
    engine: InferenceEngine, asking: Callable[..., Path], name: str, spacing: str, steps: int, guidance: float
) -> None:
    folder = asking("EulerDiscreteScheduler", timestep_spacing=spacing)
    with engine.load_images(folder.rename(folder.with_name(name))) as model:
        recipe = model.image("a red circle", seed=1, size=(16, 16)).recipe
    assert (recipe["steps"], recipe["guidance"]) == (steps, guidance)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [("PNDMScheduler", "pndm"), ("LMSDiscreteScheduler", "lms"), ("DDPMScheduler", "ddpm")],
)
def test_a_repository_s_own_sampler_is_taken(
    engine: InferenceEngine, asking: Callable[..., Path], name: str, sampler: str
) -> None:
    with engine.load_images(asking(name, skip_prk_steps=True)) as model:
        request = ImageRequest(prompt="a red circle", steps=4, guidance=3.0, seed=1, size=(16, 16))
        events = list(model.stream(request))
    steps = [(event.done, event.total) for event in events if isinstance(event, Progress)]
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [event.recipe["scheduler"] for event in events if isinstance(event, ImageReady)] == [sampler]


def test_pndm_with_runge_kutta_s_method_takes_four_steps_at_least(
    engine: InferenceEngine, asking: Callable[..., Path]
) -> None:
    with engine.load_images(asking("PNDMScheduler")) as model:
        request = ImageRequest(prompt="a red circle", steps=5, guidance=3.0, seed=1, size=(16, 16))
        done = [event.done for event in model.stream(request) if isinstance(event, Progress)]
        assert done == [1, 2, 3, 4, 5]
        with pytest.raises(InvalidParameterError, match="steps=3"):
            model.image("a red circle", steps=3)
        assert (
            model.image("a red circle", steps=3, scheduler="lms", size=(16, 16)).recipe["scheduler"] == "lms"
        )
