"""What is done once for all steps, and the step that is put together while another is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve
from mlxengine_diffusion.backends._work import Job
from mlxengine_diffusion.sd import blocks, pipeline

JOB = Job(
    prompt="a red circle",
    negative=None,
    width=32,
    height=32,
    steps=3,
    guidance=3.0,
    seed=1,
    scheduler="euler",
)


@pytest.fixture(scope="module")
def model(load_pipeline: Callable[..., Any], tiny_folder: Path) -> Any:
    return load_pipeline(tiny_folder)


def walk(model: Any, **changes: Any) -> tuple[list[int | None], np.ndarray[Any, Any]]:
    """Which steps were done when, and the latents at the end."""
    walked = list(model.denoise(evolve(JOB, **changes)))
    done = [None if step is None else step.done for step in walked]
    while done and done[0] is None:  # the prompts
        del done[0]
    return done, np.array(walked[-1].latents)


def test_prompts_are_read_once_for_all_steps(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    read = blocks._Attention.read

    def counted(self: Any, memory: Any) -> Any:
        rows.append(memory.shape[1])
        return read(self, memory)

    monkeypatch.setattr(blocks._Attention, "read", counted)
    walk(model)
    layers = sum(isinstance(item, blocks._Attention) for _, item in model.parts._get("unet").named_modules())
    assert rows.count(77) == layers // 2  # every second one looks at prompts
    assert len(rows) == (1 + JOB.steps) * layers // 2


@pytest.mark.parametrize("scheduler", ["euler", "heun", "euler_ancestral", "dpmpp_2m"])
def test_a_step_put_together_ahead_is_the_same_and_comes_in_its_order(
    model: Any, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    usual = walk(model, scheduler=scheduler)
    monkeypatch.setattr(pipeline, "_ahead", lambda: True)
    ahead = walk(model, scheduler=scheduler)
    assert ahead[0] == usual[0]
    assert [done for done in ahead[0] if done is not None] == [1, 2, 3]
    assert np.array_equal(ahead[1], usual[1])
    none = evolve(JOB, init=np.zeros((32, 32, 3), np.uint8), strength=0.0)
    assert [step.total for step in model.denoise(none) if step is not None] == [0]


def test_a_walk_that_is_ended_early_leaves_nothing_for_the_next(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_ahead", lambda: True)
    wanted = walk(model)
    steps = model.denoise(evolve(JOB, steps=9))
    while next(steps) is None:
        pass
    steps.close()
    assert np.array_equal(walk(model)[1], wanted[1])
