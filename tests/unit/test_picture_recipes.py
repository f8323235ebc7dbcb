"""A picture's recipe in its file, ours and that of other programs."""

from __future__ import annotations

import json
import logging
import resource
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from mlxengine import Picture
from mlxengine.contract.events import Array
from mlxengine.errors import InvalidParameterError
from mlxengine.pictures.exchange import from_text, to_text
from mlxengine.pictures.handle import read_recipe

PIL = pytest.importorskip("PIL.Image")
RECIPE: dict[str, Any] = {
    "model": "org/name",
    "commit": "0" * 40,
    "prompt": "a (red:1.2) circle,\nSteps: many — ü 🙂",
    "negative": "blurry, grey",
    "width": 24,
    "height": 16,
    "steps": 20,
    "guidance": 7.5,
    "seed": 1234567890123,
    "scheduler": "dpmpp_2m_sde",
    "sigmas": "karras",
    "clip_skip": 2,
    "lora": (),
}
# As the web UI writes it; the second form is that of older versions.
THEIRS = """masterpiece, (sunset:1.3) over a city
second line
Negative prompt: low quality, text
Steps: 28, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 42, Size: 512x768, \
Model hash: 6ce0161689, Model: dreamshaper_8, Clip skip: 2, ADetailer model: "face, hand: n.pt", \
Version: v1.9.4"""
OLDER = "a cat\nSteps: 20, Sampler: Euler a Karras, CFG scale: 7, Seed: 7, Size: 64x64, Model: some"


def picture(recipe: dict[str, Any]) -> Picture:
    pixels = Array(data=bytes(range(256)) * 4 + bytes(128), shape=(16, 24, 3), dtype="uint8")
    return Picture(pixels=pixels, recipe=recipe)


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "webp"])
def test_a_saved_picture_holds_its_whole_recipe(tmp_path: Path, ending: str) -> None:
    made = picture(RECIPE)
    assert read_recipe(made.save(tmp_path / f"x.{ending}")) == made.recipe


def _interrupted(_file: int) -> None:
    raise KeyboardInterrupt  # Ctrl-C before the file has its name


@pytest.mark.parametrize("trouble", ["full", "interrupted"])
def test_a_file_that_cannot_be_overwritten_whole_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    path = picture(RECIPE).save(tmp_path / "x.png")
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if trouble == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))  # no file may grow larger
    else:
        monkeypatch.setattr("os.fsync", _interrupted)
    try:
        with pytest.raises(OSError if trouble == "full" else KeyboardInterrupt):
            picture({**RECIPE, "prompt": "another"}).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]


def test_a_picture_is_written_through_a_link_and_under_a_long_name(tmp_path: Path) -> None:
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / f"{'ü' * 120}.png")
    picture(RECIPE).save(link)
    assert link.is_symlink()
    assert read_recipe(link) == RECIPE


@pytest.mark.parametrize("name", ["x.psd", "x.doc", "x"])
def test_a_name_without_a_format_that_is_written_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidParameterError, match="does not end like a picture") as caught:
        picture(RECIPE).save(tmp_path / name)
    assert caught.value.hint
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_other_programs_find_their_text_where_they_look_for_it(tmp_path: Path, ending: str) -> None:
    path = picture(RECIPE).save(tmp_path / f"x.{ending}")
    with PIL.open(path) as opened:
        if ending == "png":
            text = opened.text["parameters"]
        else:
            comment = opened.getexif().get_ifd(0x8769)[0x9286]
            assert comment[:8] == b"UNICODE\0"
            text = comment[8:].decode("utf-16-be")
    assert text == to_text(RECIPE)
    first, *_, last = text.split("\n")
    assert first == "a (red:1.2) circle,"
    assert last.startswith(
        "Steps: 20, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 7.5, Seed: 1234"
    )
    assert "Size: 24x16" in last


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_programs_that_keep_pictures_find_the_text_as_a_description(tmp_path: Path, ending: str) -> None:
    told = {**RECIPE, "prompt": 'a <red> & "blue" circle\0, ü 🙂'}
    path = picture(told).save(tmp_path / f"x.{ending}")
    with PIL.open(path) as opened:
        packet = opened.info["xmp"]
        pixels = opened.convert("RGB")
    rdf = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
    root = ElementTree.fromstring(packet)
    (item,) = root.findall(f".//{{http://purl.org/dc/elements/1.1/}}description/{rdf}Alt/{rdf}li")
    assert item.text == to_text(told).replace("\0", "")
    # another program kept that and nothing else
    pixels.save(tmp_path / "y.webp", xmp=packet)
    assert read_recipe(tmp_path / "y.webp")["seed"] == told["seed"]
    assert read_recipe(tmp_path / "y.webp")["prompt"] == 'a <red> & "blue" circle, ü 🙂'
    pixels.save(tmp_path / "y.webp", xmp=packet[: packet.index(b"Steps")] + b"</rdf:li>")
    with pytest.raises(InvalidParameterError):
        read_recipe(tmp_path / "y.webp")


def test_the_text_says_what_it_was_made_of() -> None:
    plain = {**RECIPE, "prompt": "a red circle"}
    read = from_text(to_text(plain))
    keys = ("prompt", "negative", "steps", "guidance", "seed", "scheduler", "sigmas", "width", "clip_skip")
    assert {key: read[key] for key in keys} == {key: plain[key] for key in keys}
    assert read["model_name"] == "org/name"


def test_a_web_uis_text_is_read_and_what_has_no_meaning_here_is_kept_apart(tmp_path: Path) -> None:
    assert from_text(THEIRS) == {
        "prompt": "masterpiece, (sunset:1.3) over a city\nsecond line",
        "negative": "low quality, text",
        "steps": 28,
        "guidance": 6.5,
        "seed": 42,
        "clip_skip": 2,
        "width": 512,
        "height": 768,
        "scheduler": "dpmpp_2m",
        "sigmas": "karras",
        "model_name": "dreamshaper_8",
        "other": {"ADetailer model": "face, hand: n.pt"},
    }
    older = from_text(OLDER)
    assert (older["scheduler"], older["sigmas"], older["seed"]) == ("euler_ancestral", "karras", 7)
    assert from_text("only words: here") == {"prompt": "only words: here"}
    named = from_text(OLDER.replace("a cat", "a cat <lora:style:0.8>, <hypernet:x:1>"))
    assert (named["prompt"], named["other"]) == ("a cat ,", {"networks": "<lora:style:0.8> <hypernet:x:1>"})
    unknown = from_text(OLDER.replace("Euler a Karras", "DPM++ 2S a"))
    assert "scheduler" not in unknown
    assert unknown["other"] == {"Sampler": "DPM++ 2S a"}
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text("parameters", THEIRS)
    PIL.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=chunks)
    assert read_recipe(tmp_path / "x.png")["seed"] == 42


def test_a_recipe_that_a_jpeg_cannot_hold_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = {**RECIPE, "prompt": "word " * 20_000}
    with caplog.at_level(logging.WARNING, "mlxengine.pictures"):
        path = picture(long).save(tmp_path / "x.jpg")
    assert "too long for a .jpg" in caplog.text
    with pytest.raises(InvalidParameterError, match="holds no recipe"):
        read_recipe(path)
    assert read_recipe(picture(long).save(tmp_path / "x.png"))["prompt"] == long["prompt"]


def test_a_picture_without_a_recipe_is_an_error(tmp_path: Path) -> None:
    for ending in ("png", "jpg", "bmp"):
        PIL.new("RGB", (8, 8)).save(tmp_path / f"x.{ending}")
        with pytest.raises(InvalidParameterError, match="holds no recipe"):
            read_recipe(tmp_path / f"x.{ending}")


# As ComfyUI writes it: an adapter between checkpoint and sampler, and text that goes through another node.
GRAPH: dict[str, Any] = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "dreamshaper_8.safetensors"}},
    "2": {
        "class_type": "LoraLoader",
        "inputs": {
            "lora_name": "ink.safetensors",
            "strength_model": 0.8,
            "model": ["1", 0],
            "clip": ["1", 1],
        },
    },
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat — ü", "clip": ["2", 1]}},
    "4": {"class_type": "ConditioningSetArea", "inputs": {"conditioning": ["3", 0], "width": 8}},
    "5": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["2", 1]}},
    "6": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "7": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 42,
            "steps": 28,
            "cfg": 6.5,
            "sampler_name": "uni_pc",
            "scheduler": "karras",
            "denoise": 1.0,
            "model": ["2", 0],
            "positive": ["4", 0],
            "negative": ["5", 0],
            "latent_image": ["6", 0],
        },
    },
}
READ = {
    "prompt": "a cat — ü",
    "negative": "blurry",
    "seed": 42,
    "steps": 28,
    "guidance": 6.5,
    "scheduler": "unipc",
    "sigmas": "karras",
    "width": 512,
    "height": 768,
    "model_name": "dreamshaper_8.safetensors",
    "other": {"lora ink.safetensors": "0.8"},
}


def comfy_file(folder: Path, ending: str, text: str) -> Path:
    from PIL.PngImagePlugin import PngInfo

    chunks, exif = PngInfo(), PIL.Exif()
    chunks.add_text("prompt", text)
    exif[0x0110] = f"prompt:{text}"
    path = folder / f"x.{ending}"
    PIL.new("RGB", (8, 8)).save(path, **({"pnginfo": chunks} if ending == "png" else {"exif": exif}))
    return path


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_the_graph_in_a_picture_of_comfyui_is_read(tmp_path: Path, ending: str) -> None:
    assert read_recipe(comfy_file(tmp_path, ending, json.dumps(GRAPH))) == READ


def test_our_pictures_hold_the_graph_that_draws_them(tmp_path: Path) -> None:
    path = picture(RECIPE).save(tmp_path / "x.png")
    with PIL.open(path) as opened:
        text = opened.text["prompt"]
    nodes = json.loads(text)
    links = [link for node in nodes.values() for link in node["inputs"].values() if isinstance(link, list)]
    assert {node for node, _ in links} == set(nodes) - {
        "9"
    }  # each leads to a node, and all but the last are used
    found = read_recipe(comfy_file(tmp_path, "png", text))
    same = ("prompt", "negative", "width", "height", "steps", "guidance", "seed", "scheduler", "sigmas")
    assert {key: found[key] for key in same} == {key: RECIPE[key] for key in same}
    assert found["model_name"] == RECIPE["model"]


@pytest.mark.parametrize("changed", [{"scheduler": "tcd"}, {"strength": 0.5}, {"scheduler": ""}], ids=str)
def test_a_picture_that_the_default_workflow_cannot_draw_holds_no_graph(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    path = picture({**RECIPE, **changed}).save(tmp_path / "x.png")
    with PIL.open(path) as opened:
        assert "prompt" not in opened.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("[1, 2]", "holds no recipe"),
        (
            json.dumps({"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}}, "2": 5}),
            "holds no recipe",
        ),
    ],
    ids=["damaged", "a list", "no sampler"],
)
def test_a_graph_without_a_sampler_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidParameterError, match=words):
        read_recipe(comfy_file(tmp_path, "png", text))


def test_a_graph_that_leads_in_circles_ends(tmp_path: Path) -> None:
    inputs = {"cfg": 7, "positive": ["2", 0], "model": ["2", 0], "latent_image": ["9", 0]}
    graph = {"1": {"inputs": inputs}, "2": {"inputs": {"conditioning": ["2", 0], "model": ["2", 0]}}}
    found = read_recipe(comfy_file(tmp_path, "png", json.dumps(graph)))
    assert found == {"prompt": "", "guidance": 7.0, "other": {"sampler_name": ""}}
