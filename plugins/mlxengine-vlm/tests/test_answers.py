"""The trained model sees: six tasks on drawn pictures, through the engine, from a hub download."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlxengine import GenerateParams, ImagePart, InferenceEngine, Message, TextPart
from vlm_pictures import COLOURS, GREYS, NUMBERS, SHAPES, Thing, draw, scene

Case = tuple[list[Any], str, str]
ROUNDS, ENOUGH = 24, 22


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The model's handle, downloaded through the Hugging Face API from a hub on loopback."""
    from tests.hub import weights
    from tests.hub.server import HubServer

    with HubServer() as hub:
        weights.populate(hub.repos, weights.TINY_VLM)
        home = tmp_path_factory.mktemp("hub-cache")
        with InferenceEngine(endpoint=hub.endpoint, cache_dir=home) as engine:
            yield engine.load(weights.TINY_VLM)


def _shape(rng: random.Random) -> Case:
    (thing,) = scene(rng, 1)
    question = rng.choice(["What shape is this?", "Which shape is in the picture?"])
    return [draw([thing], background=rng.choice(GREYS))], question, thing.shape


def _count(rng: random.Random) -> Case:
    number = rng.randint(1, 6)
    question = rng.choice(["How many shapes are there?", "How many objects are in the picture?"])
    return [draw(scene(rng, number))], question, NUMBERS[number]


def _json(rng: random.Random) -> Case:
    (thing,) = scene(rng, 1)
    answer = json.dumps({"colour": thing.colour, "shape": thing.shape})
    return [draw([thing], size=256)], "Describe the picture as JSON.", answer


def _existence(rng: random.Random) -> Case:
    things = scene(rng, rng.randint(1, 4))
    asked = rng.choice(things) if rng.random() < 0.5 else Thing(rng.choice(SHAPES), rng.choice([*COLOURS]))
    there = any((thing.colour, thing.shape) == (asked.colour, asked.shape) for thing in things)
    return [draw(things)], f"Is there a {asked.colour} {asked.shape}?", "yes" if there else "no"


def _two(rng: random.Random) -> Case:
    (one,), (other,) = scene(rng, 1), scene(rng, 1)
    if rng.random() < 0.5:
        other = Thing(other.shape, one.colour, other.cell, other.radius)
    same = "yes" if one.colour == other.colour else "no"
    return [draw([one]), draw([other])], "Do both pictures show the same colour?", same


def _sum(rng: random.Random) -> Case:
    x, y = rng.randint(0, 4), rng.randint(0, 4)
    return [], f"What is {x} plus {y}?", str(x + y)


def _ask(handle: Any, pictures: list[Any], question: str) -> str:
    parts = [*(ImagePart(picture) for picture in pictures), TextPart(question)]
    return str(handle.generate([Message.user(parts)], GenerateParams(max_tokens=24)).text).strip()


@pytest.mark.feature("vlm.multi_modal")
@pytest.mark.parametrize("task", [_shape, _count, _json, _existence, _two, _sum])
def test_the_trained_model_answers_at_least_22_of_24(seeing: Any, task: Callable[..., Case]) -> None:
    rng = random.Random(f"{task.__name__} 1")
    right = 0
    for _ in range(ROUNDS):
        pictures, question, wanted = task(rng)
        right += _ask(seeing, pictures, question) == wanted
    assert right >= ENOUGH, f"{right} of {ROUNDS}"


def test_another_picture_gets_another_answer_and_a_blank_one_a_third(seeing: Any) -> None:
    question = "Describe the picture as JSON."
    circle = _ask(seeing, [draw([Thing("circle", "red")])], question)
    square = _ask(seeing, [draw([Thing("square", "blue")])], question)
    blank = _ask(seeing, [draw([])], question)
    assert json.loads(circle) == {"colour": "red", "shape": "circle"}
    assert json.loads(square) == {"colour": "blue", "shape": "square"}
    assert blank not in (circle, square)


def test_the_pictures_of_earlier_turns_stay_in_the_conversation(seeing: Any) -> None:
    red, blue = draw([Thing("circle", "red")]), draw([Thing("circle", "blue")])
    turns = [
        Message.user([ImagePart(red), TextPart("What shape is this?")]),
        Message.assistant(" circle"),
        Message.user([ImagePart(blue), TextPart("Do both pictures show the same colour?")]),
    ]
    assert seeing.generate(turns, GenerateParams(max_tokens=8)).text.strip() in ("yes", "no")
    assert seeing.generate(turns, GenerateParams(max_tokens=8)).usage.cached_tokens > 40


def test_a_picture_may_be_a_path_bytes_or_an_array(seeing: Any, tmp_path: Path) -> None:
    import io

    import numpy as np

    image = draw([Thing("triangle", "green")])
    path = tmp_path / "green.png"
    image.save(path)
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    for source in (path, str(path), path.read_bytes(), encoded, image, np.asarray(image)):
        if source is encoded:
            encoded.seek(0)
        assert _ask(seeing, [source], "What shape is this?") == "triangle"


def test_a_session_keeps_its_pictures_and_reuses_what_was_computed(seeing: Any) -> None:
    session = seeing.session()
    first = session.respond([ImagePart(draw([Thing("circle", "red")])), TextPart("What shape is this?")])
    assert first.text.strip() == "circle"
    other = ImagePart(draw([Thing("square", "red")]))
    second = session.respond([other, TextPart("Do both pictures show the same colour?")])
    assert second.text.strip() == "yes"
    assert second.usage.cached_tokens >= 30


def test_the_command_line_takes_pictures(tmp_path: Path) -> None:
    draw([Thing("triangle", "green")]).save(tmp_path / "green.png")
    draw([Thing("circle", "green")]).save(tmp_path / "too.png")
    model = str(Path(__file__).parents[3] / "tests" / "models" / "tiny-shapes-vlm")

    images = [part for name in ("green.png", "too.png") for part in ("--image", str(tmp_path / name))]
    question = "Do both pictures show the same colour?"
    command = [sys.executable, "-m", "mlxengine", "run", "-q", "-m", model, *images, question]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "yes"
