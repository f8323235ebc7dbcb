"""Prompts with weights: the syntax of AUTOMATIC1111's web UI, and what is refused of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import geometry as g
import numpy as np
import pytest
from mlxengine import ImageHandle, InferenceEngine
from mlxengine.errors import InvalidParameterError
from mlxengine_diffusion._plan import _check_prompts
from mlxengine_diffusion.sd.prompts import parse

VALUES: dict[str, Any] = {"steps": 2, "guidance": 3.0, "seed": 0}


@pytest.fixture(scope="module")
def model(shared_engine: InferenceEngine, tiny_folder: Path) -> Iterator[ImageHandle]:
    with shared_engine.load_images(tiny_folder) as handle:
        yield handle


def pieces(text: str) -> list[tuple[str, float]]:
    return [(piece.text, round(piece.weight, 6)) for part in parse(text) for piece in part]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a cat", [("a cat", 1)]),
        ("a (cat)", [("a ", 1), ("cat", 1.1)]),
        ("((cat)) [dog]", [("cat", 1.21), (" ", 1), ("dog", 0.909091)]),
        ("a (big cat:1.5), (dog:.5)", [("a ", 1), ("big cat", 1.5), (", ", 1), ("dog", 0.5)]),
        ("(a (b:2):0.5)", [("a ", 0.5), ("b", 1)]),
        (r"a \(cat\) \[x\] \\", [("a (cat) [x] \\", 1)]),
        ("ratio 16:9, 1:2) and ] left", [("ratio 16:9, 1:2) and ] left", 1)]),
        ("(open [and", [("open ", 1.1), ("and", 1.0)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        ("", []),
    ],
    ids=str,
)
def test_brackets_weigh_what_they_hold(text: str, wanted: list[tuple[str, float]]) -> None:
    assert pieces(text) == wanted


def test_break_begins_another_chunk() -> None:
    assert [[piece.text for piece in part] for part in parse("a cat BREAK a dog")] == [["a cat"], ["a dog"]]
    assert len(parse("BREAKFAST")) == 1


def test_the_weighed_prompt_of_the_references_is_what_they_were_made_of() -> None:
    found = [(text.strip(), weight) for text, weight in pieces(g.WEIGHED) if text.strip()]
    wanted = [(text, round(weight, 6)) for text, weight in g.FRAGMENTS]
    assert found == wanted


def test_a_weight_changes_the_picture_and_a_plain_prompt_reads_letters(model: ImageHandle) -> None:
    plain = model.image("a red circle", **VALUES)
    heavy = model.image("a (red:1.5) circle", **VALUES)
    letters = model.image("a (red:1.5) circle", prompt_weights=False, **VALUES)
    one = model.image("a (red:1.0) circle", **VALUES)
    assert np.array_equal(one.numpy(), plain.numpy())
    assert not np.array_equal(heavy.numpy(), plain.numpy())
    assert not np.array_equal(heavy.numpy(), letters.numpy())
    assert (heavy.recipe["prompt_weights"], letters.recipe["prompt_weights"]) == (True, False)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prompt": "a cat <lora:style:0.8>"}, "lora=(('style', 0.8),), or --lora style=0.8"),
        ({"prompt": "a", "negative": "<LoRA:bad>"}, "The negative prompt names an adapter"),
        ({"prompt": "a [cat:dog:0.5]"}, "[cat:dog:0.5]"),
        ({"prompt": "a [cat|dog]"}, "[cat|dog]"),
        ({"prompt": "a (cat:1e9)"}, None),
        ({"prompt": "a (cat:1000)"}, "weight of 1000"),
        ({"prompt": "a", "prompt_weights": "no"}, "prompt_weights='no'"),
        ({"prompt": "a", "clip_skip": 0}, "clip_skip=0"),
        ({"prompt": "a", "clip_skip": 99}, "clip_skip=99"),
        ({"prompt": "a", "guidance_rescale": 1.5}, "guidance_rescale=1.5"),
        ({"prompt": "a", "scheduler": "ddim", "sigmas": "karras"}, "has no meaning for ddim"),
        ({"prompt": "a", "sigmas": "magic"}, "sigmas='magic' is not known"),
        ({"prompt": "a", "scheduler": "lcm", "steps": 51}, "distilled with 50 steps"),
    ],
    ids=str,
)
def test_what_is_not_understood_is_said(
    model: ImageHandle, values: dict[str, Any], words: str | None
) -> None:
    if words is None:
        assert model.image(**VALUES, **values)  # letters, as there is no such number in a weight
        return
    with pytest.raises(InvalidParameterError) as caught:
        model.image(**{**VALUES, **values})
    assert words in str(caught.value)


def test_a_model_without_weights_says_that_it_reads_them_as_letters(caplog: pytest.LogCaptureFixture) -> None:
    pipeline: Any = SimpleNamespace(
        abilities=SimpleNamespace(prompt_weights=False), info={"library": "another"}
    )
    request: Any = SimpleNamespace(prompt="a (red:1.2) cat", negative=None, prompt_weights=None)
    with caplog.at_level(logging.WARNING, "mlxengine.diffusion"):
        _check_prompts(pipeline, request)
    assert "reads (words:1.2) in the prompt as letters" in caplog.text
