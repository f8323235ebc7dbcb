"""The trained tiny model through the engine, from a hub, judged by what its pictures show."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alike import alike
from judge import judge, scenes
from mlxengine import (
    Finished,
    ImageControl,
    ImageHandle,
    ImagePreview,
    ImageReady,
    ImageRequest,
    InferenceEngine,
    Progress,
)
from mlxengine.errors import InvalidParameterError, UnsupportedInputError
from mlxengine.pictures.handle import read_recipe
from mlxengine_diffusion._pictures import open_picture

GREY = np.zeros((8, 8, 3), np.uint8)
EDGES = ImageControl(source="edges", image=GREY)
RECIPE: dict[str, Any] = {"steps": 12, "guidance": 3.0}


@pytest.fixture(scope="module")
def model(shared_engine: InferenceEngine, tiny_folder: Path) -> Iterator[ImageHandle]:
    with shared_engine.load_images(tiny_folder) as handle:
        yield handle


def correct(model: ImageHandle, count: int) -> np.ndarray[Any, Any]:
    """How many of ``count`` pictures have the right colour, shape, background."""
    wanted = scenes(count)
    verdicts = [
        judge(model.image(scene.prompt, seed=number, **RECIPE).numpy(), scene)
        for number, scene in enumerate(wanted)
    ]
    return np.array(verdicts).sum(axis=0)


@pytest.mark.feature("diffusion.images")
def test_twelve_pictures_from_a_hub_download_show_what_their_prompts_say(
    tiny_sd: Any, hub_home: Path, tmp_path: Path
) -> None:
    with InferenceEngine(endpoint=tiny_sd.endpoint, cache_dir=tmp_path) as engine:
        model = engine.load_images(tiny_sd.id)
        colour, shape, background = correct(model, 12)
        assert model.image("a red circle", seed=0, **RECIPE).recipe["commit"] == model.card.commit
    assert (colour, background) == (12, 12)
    assert shape >= 10


@pytest.mark.slow
def test_forty_pictures_show_what_their_prompts_say(tiny_sd: Any, hub_home: Path, tmp_path: Path) -> None:
    with InferenceEngine(endpoint=tiny_sd.endpoint, cache_dir=tmp_path) as engine:
        colour, shape, background = correct(engine.load_images(tiny_sd.id), 40)
    print(f"colour {colour}, shape {shape}, background {background} of 40")
    assert colour >= 38
    assert background >= 38
    assert shape >= 34


def test_a_request_is_one_progress_a_step_then_the_picture_then_the_end(model: ImageHandle) -> None:
    request = ImageRequest(prompt="a blue square", steps=4, guidance=3.0, seed=3, n=2, preview_every=3)
    *events, last = list(model.stream(request))
    steps = [(item.index, item.done, item.total) for item in events if isinstance(item, Progress)]
    assert steps == [(index, done, 4) for done in (1, 2, 3, 4) for index in (0, 1)]
    previews = [item for item in events if isinstance(item, ImagePreview)]
    assert [(item.index, item.step) for item in previews] == [(0, 3), (1, 3)]
    assert all(item.pixels.numpy().shape == (64, 64, 3) for item in previews)
    ready = [item for item in events if isinstance(item, ImageReady)]
    assert [item.index for item in ready] == [0, 1]
    assert [item.recipe["seed"] for item in ready] == [3, 4]
    assert isinstance(last, Finished)
    assert last.usage.prompt_tokens == 5


@pytest.mark.parametrize("scheduler", ["heun", "dpmpp_sde"])
def test_a_sampler_that_asks_the_model_twice_a_step_counts_steps(model: ImageHandle, scheduler: str) -> None:
    for values, total in (({}, 4), ({"init_image": np.full((64, 64, 3), 200, np.uint8), "strength": 0.5}, 2)):
        request = ImageRequest(
            prompt="a blue square", steps=4, guidance=3.0, seed=3, scheduler=scheduler, **values
        )
        steps = [(item.done, item.total) for item in model.stream(request) if isinstance(item, Progress)]
        assert steps == [(done, total) for done in range(1, total + 1)]


def test_the_same_seed_makes_the_same_picture_and_zero_is_a_seed(model: ImageHandle) -> None:
    first = model.image("a green ring", seed=0, steps=3, guidance=3.0)
    again = model.image("a green ring", seed=0, steps=3, guidance=3.0)
    other = model.image("a green ring", seed=1, steps=3, guidance=3.0)
    assert np.array_equal(first.numpy(), again.numpy())
    assert not alike(first, other)
    assert first.recipe["seed"] == 0
    pair = model.image("a green ring", seed=0, steps=3, guidance=3.0, n=2)
    assert alike(pair[0], first)
    assert alike(pair[1], other)


def test_two_pictures_that_share_the_device_come_out_as_they_do_alone(model: ImageHandle) -> None:
    requests = [ImageRequest(prompt=text, seed=5, **RECIPE) for text in ("a red cross", "a black square")]
    alone = [list(model.stream(request))[-2].pixels.data for request in requests]
    streams = [model.stream(request) for request in requests]
    together = [list(stream)[-2].pixels.data for stream in streams]
    assert together == alone


@pytest.mark.parametrize("steps_read", [0, 1, 2])
def test_a_request_that_is_cancelled_at_any_step_gives_its_memory_back(
    model: ImageHandle, steps_read: int
) -> None:
    import mlx.core as mx

    def held() -> int:
        gc.collect()
        model.image("a red circle", seed=0, steps=1, guidance=3.0)  # what was closed before is freed by now
        return mx.get_active_memory()

    before = held()
    stream = model.stream(ImageRequest(prompt="a red circle", size=(128, 128), steps=200, guidance=3.0))
    for _ in range(steps_read):
        next(stream)
    stream.cancel()
    del stream
    assert held() <= before + 64 * 1024


def test_a_recipe_makes_the_picture_again_and_lives_in_the_png(model: ImageHandle, tmp_path: Path) -> None:
    picture = model.image("a yellow triangle on a blue background — ü 🙂", seed=9, **RECIPE)
    found = read_recipe(picture.save(tmp_path / "picture.png"))
    assert found == picture.recipe
    assert found["prompt"] == "a yellow triangle on a blue background — ü 🙂"
    assert (found["scheduler"], found["steps"], found["seed"]) == ("euler", 12, 9)
    again = model.image(
        found["prompt"],
        seed=found["seed"],
        steps=found["steps"],
        guidance=found["guidance"],
        scheduler=found["scheduler"],
        size=(found["width"], found["height"]),
    )
    assert np.array_equal(again.numpy(), picture.numpy())
    from PIL import Image

    assert np.array_equal(np.array(Image.open(tmp_path / "picture.png")), picture.numpy())
    with pytest.raises(InvalidParameterError, match="does not end like a picture"):
        picture.save(tmp_path / "picture.txt")
    assert read_recipe(picture.save(tmp_path / "picture.jpg")) == picture.recipe


@pytest.mark.feature("diffusion.image_to_image")
def test_a_low_strength_stays_near_the_input_and_a_high_one_leaves_it(model: ImageHandle) -> None:
    start = model.image("a red circle on a white background", seed=2, **RECIPE)

    def distance(strength: float) -> float:
        made = model.image(
            "a blue square on a yellow background",
            init_image=start,
            strength=strength,
            seed=4,
            steps=20,
            guidance=3.0,
        )
        return float(np.abs(made.numpy().astype(float) - start.numpy()).mean() / 255)

    kept, nudged, forgotten = distance(0.0), distance(0.05), distance(1.0)
    assert kept <= 0.05
    assert nudged <= 0.15
    assert forgotten > 0.3


def test_pictures_are_taken_as_paths_bytes_pil_and_arrays(model: ImageHandle, tmp_path: Path) -> None:
    start = model.image("a red circle", seed=2, steps=4, guidance=3.0)
    path = start.save(tmp_path / "start.png")
    sources = [path, str(path), path.read_bytes(), start.pil(), start.numpy(), start]
    made = [
        model.image("a circle", init_image=source, strength=0.5, steps=2, guidance=1.0, seed=0).numpy()
        for source in sources
    ]
    assert all(np.array_equal(made[0], other) for other in made[1:])


def test_pictures_of_sixteen_bits_and_arrays_of_other_channels_are_what_they_show(tmp_path: Path) -> None:
    from PIL import Image

    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    wanted = np.repeat(ramp[..., None], 3, axis=2)
    deep = Image.fromarray(ramp.astype(np.uint16) << 8)
    clear = np.dstack([wanted, np.where(ramp < 128, 0, 255).astype(np.uint8)])
    for name in ("depth.png", "depth.tiff", "depth.pgm"):
        deep.save(tmp_path / name)
        assert np.array_equal(np.array(open_picture(tmp_path / name)), wanted)
    assert np.array_equal(np.array(open_picture(ramp)), wanted)
    assert np.array_equal(np.array(open_picture(clear)), np.where(wanted < 128, 255, wanted))


def test_a_transparent_picture_lies_on_white_and_another_size_is_scaled(model: ImageHandle) -> None:
    from PIL import Image

    clear = Image.new("RGBA", (67, 65), (255, 0, 0, 0))
    assert np.array(open_picture(clear)).min() == 255
    made = model.image("a", init_image=clear, strength=0.0, steps=2, guidance=1.0, seed=0)
    assert made.size == (64, 64)  # rounded down to what the model takes, in steps of 4
    assert model.image("a", init_image=clear, strength=0.0, steps=2, size=(64, 32), seed=0).size == (64, 32)


@pytest.mark.parametrize("prompt", ["", "é à ü ñ", "🙂🙃", "一个红色的圆", "A RED CIRCLE"])
def test_any_text_is_a_prompt(model: ImageHandle, prompt: str) -> None:
    assert model.image(prompt, steps=1, guidance=3.0, seed=0).size == (64, 64)


@pytest.fixture(scope="module")
def tokens(tiny_folder: Path) -> Callable[[str], list[int]]:
    """A prompt's tokens, without start and end."""
    from transformers import CLIPTokenizer

    known = CLIPTokenizer.from_pretrained(str(tiny_folder / "tokenizer"), local_files_only=True)
    return lambda text: list(known(text, add_special_tokens=False, verbose=False).input_ids)


def test_a_prompt_of_500_words_is_read_to_its_end(
    model: ImageHandle, tokens: Callable[[str], list[int]]
) -> None:
    text = " ".join(["a red circle on a blue background"] * 71)
    request = ImageRequest(prompt=f"{text} a a purple", steps=1, guidance=3.0, seed=0)
    *_, ready, last = model.stream(request)
    assert isinstance(ready, ImageReady)
    assert "truncated" not in ready.recipe
    assert isinstance(last, Finished)
    own = len(tokens(request.prompt))
    assert last.usage.prompt_tokens == own + 2 * math.ceil(own / 75)
    other = model.image(f"{text} a a white", steps=1, guidance=3.0, seed=0)
    assert not np.array_equal(other.numpy(), ready.pixels.numpy())


def test_a_prompt_of_1600_words_is_cut_and_the_cut_is_reported(
    model: ImageHandle, tokens: Callable[[str], list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    text = " ".join(["a red circle on a blue background"] * 229 + ["a a purple"])
    with caplog.at_level(logging.WARNING, "mlxengine.diffusion"):
        picture = model.image(text, steps=1, guidance=3.0, seed=0)
    assert picture.recipe["truncated"].endswith("a a purple")
    assert text.endswith(picture.recipe["truncated"])
    assert tokens(picture.recipe["truncated"]) == tokens(text)[16 * 75 :]
    assert "left out" in caplog.text
    assert "truncated" not in model.image("a red circle", steps=1, guidance=3.0, seed=0).recipe


def test_sizes_that_do_not_halve_evenly_are_made_as_asked(model: ImageHandle) -> None:
    assert model.image("a red circle", size=(76, 52), steps=1, guidance=3.0, seed=0).numpy().shape == (
        52,
        76,
        3,
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": (65, 64)}, "width=65 must be a multiple of 4 for this model. 64 is the nearest"),
        ({"size": (64, 0)}, "height=0"),
        ({"size": (64, 100_000)}, "height=100000"),
        ({"size": (64.0, 64)}, "width=64.0"),
        ({"size": 64}, "size=64"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 1000}, "steps=1000"),
        ({"steps": True}, "steps=True"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"guidance": -1}, "guidance=-1"),
        ({"guidance": float("nan")}, "guidance=nan"),
        ({"seed": -1}, "seed=-1 is none. Leave it out"),
        ({"seed": -2}, "seed=-2"),
        ({"seed": 2**64}, "seed="),
        ({"n": 0}, "n=0"),
        ({"n": 10_000}, "n=10000"),
        ({"scheduler": "magic"}, "scheduler='magic' is not known. Use one of euler"),
        ({"scheduler": "DPM++ 9M Karras"}, "scheduler='DPM++ 9M Karras' is not known"),
        ({"strength": 0.5}, "strength has no meaning without init_image"),
        ({"strength": 1.5, "init_image": np.zeros((64, 64, 3), np.uint8)}, "strength=1.5"),
        ({"negative": "a", "guidance": 1.0}, "no effect at guidance 1"),
        ({"negative": 5}, "negative=5"),
        ({"lora": (("a", 1.0, 2),)}, "lora holds"),
        ({"lora": (("style.safetensors", 1.0),)}, "There is no adapter style.safetensors. Check the path"),
        ({"textual_inversions": ("/nowhere/words",)}, "There is no textual inversion /nowhere/words"),
        ({"lora": 3}, "lora holds several, also where it is one"),
        ({"controls": EDGES}, "controls holds several, also where it is one"),
        ({"controls": (ImageControl(source=5, image=GREY),)}, "5 names no ControlNet"),
        ({"references": GREY}, "references holds several"),
        ({"textual_inversions": "toy.safetensors"}, "textual_inversions holds several"),
        ({"low_memory": "yes"}, "low_memory='yes'"),
        ({"init_image": np.zeros((2, 2, 3), np.uint8)}, "less than 4 × 4"),
    ],
    ids=str,
)
def test_a_bad_value_is_refused_by_name(model: ImageHandle, values: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidParameterError) as caught:
        model.image("a red circle", **{"n": 1, **values})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"scheduler": "Euler a"}, ("euler_ancestral", None)),
        ({"scheduler": "DPM++ 2M Karras"}, ("dpmpp_2m", "karras")),
        ({"scheduler": "dpm++ 2m karras", "sigmas": "beta"}, ("dpmpp_2m", "beta")),
    ],
    ids=str,
)
def test_a_sampler_may_be_called_as_the_web_ui_calls_it(
    model: ImageHandle, theirs: dict[str, Any], ours: tuple[str, str | None]
) -> None:
    asked: dict[str, Any] = {"steps": 2, "guidance": 1.0, "seed": 1, "size": (16, 16)}
    made = model.image("a red circle", **asked, **theirs)
    same = model.image("a red circle", **asked, scheduler=ours[0], sigmas=ours[1])
    assert (made.recipe["scheduler"], made.recipe["sigmas"]) == ours
    assert np.array_equal(made.numpy(), same.numpy())


@pytest.mark.parametrize(
    "source",
    [b"no picture", "/nonexistent/picture.png", 5, np.zeros((64, 64)), np.zeros((8, 8, 3))],
    ids=["bytes", "no file", "number", "grey", "floats"],
)
def test_what_is_no_picture_is_refused(model: ImageHandle, source: object) -> None:
    with pytest.raises(UnsupportedInputError, match="init_image cannot be read"):
        model.image("a red circle", init_image=source)


def test_an_unknown_parameter_is_refused_by_name(model: ImageHandle) -> None:
    untyped: Callable[..., Any] = model.image
    with pytest.raises(InvalidParameterError, match="Unknown parameter 'sampler'"):
        untyped("a red circle", sampler="euler")


def test_a_preview_of_a_wide_picture_is_small(model: ImageHandle) -> None:
    request = ImageRequest(prompt="a ring", size=(272, 64), steps=2, guidance=1.0, seed=0, preview_every=1)
    previews = [event for event in model.stream(request) if isinstance(event, ImagePreview)]
    assert [event.pixels.shape for event in previews] == [(20, 88, 3)]


def test_a_picture_that_swells_or_is_damaged_is_refused() -> None:
    import io
    import random

    from PIL import Image

    kept = io.BytesIO()
    Image.new("RGB", (48, 32), "red").save(kept, "PNG")
    data = kept.getvalue()
    for seed in range(200):
        chance = random.Random(seed)
        made = bytearray(data)
        for _ in range(8):
            made[chance.randrange(len(made))] = chance.randrange(256)
        try:
            assert open_picture(bytes(made)).mode == "RGB"
        except UnsupportedInputError:
            continue
    with pytest.raises(UnsupportedInputError, match="pixels"):
        open_picture(Image.new("1", (10_000, 10_000)))
    with pytest.raises(UnsupportedInputError, match="cannot be read: cannot identify image file"):
        open_picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
