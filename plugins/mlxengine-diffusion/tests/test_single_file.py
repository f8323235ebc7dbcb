"""Checkpoints in one file, as Civitai and the web UIs have them: the pictures of the same model's folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import geometry as g
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlxengine import InferenceEngine
from mlxengine.errors import IncompatibleWeightsError, InvalidModelRefError, UnsupportedArchitectureError
from mlxengine_diffusion.backends.sd import _build
from mlxengine_diffusion.sd import single_file
from mlxengine_diffusion.sd.autoencoder import build_vae
from mlxengine_diffusion.sd.clip import build_clip
from mlxengine_diffusion.sd.unet import build_unet
from mlxengine_diffusion.sd.weights import _expected, origin
from safetensors.numpy import load_file, save_file

WORDS = Path(__file__).parents[3] / "tests" / "models" / "tiny-shapes-sd" / "tokenizer"
NAMES = json.loads((g.DATA / "single.names.json").read_text())
CLIP = {
    ("sd1", "text_encoder"): "cond_stage_model.transformer.text_model.",
    ("sdxl", "text_encoder"): "conditioner.embedders.0.transformer.text_model.",
}
MUCH = 2**40
VALUES: dict[str, Any] = {"steps": 2, "guidance": 3.0, "seed": 1, "size": (32, 24), "negative": "a ring"}


def configs(family: str) -> dict[str, dict[str, Any]]:
    """The tiny family with the facts that no checkpoint tells: groups, heads and scales of the real ones."""
    made = g.configs(family)
    made["unet"] |= {"block_out_channels": [32, 64], "norm_num_groups": 32}
    made["unet"]["attention_head_dim"] = 8 if family == "sd1" else [1, 1]
    made["unet"]["sample_size"] = 128 if family == "sdxl" else 64
    scale = 0.13025 if family == "sdxl" else 0.18215
    made["vae"] |= {"block_out_channels": [32, 64], "norm_num_groups": 32, "scaling_factor": scale}
    for part, config in made.items():
        if part.startswith("text_encoder"):
            config["num_attention_heads"] = 1
    if family == "sdxl":
        made["text_encoder"]["hidden_act"] = "quick_gelu"
    return made


def tensors(family: str, part: str, config: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Random weights under diffusers' names, in half precision."""
    built = {"unet": build_unet, "vae": build_vae}
    kind = part if part in built else "text_encoder"
    made = built[part](config) if part in built else build_clip(config, projection=part == "text_encoder_2")
    found = {}
    for path, value in tree_flatten(made.parameters()):
        place = origin(kind, path)
        shape = tuple(_expected(value.shape, place.half))
        if len(shape) == 2 and "proj_in" in place.name + "proj_out" and family == "sd1" and part == "unet":
            shape = (*shape, 1, 1) if place.name.endswith(("proj_in.weight", "proj_out.weight")) else shape
        found[place.name] = g.weight(family, part, place.name, shape).astype(np.float16)
    return found


def write_folder(family: str, folder: Path, parts: dict[str, dict[str, Any]]) -> Path:
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    for part, config in parts.items():
        target = folder / part
        target.mkdir(parents=True)
        (target / "config.json").write_text(json.dumps(config))
        stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
        save_file(tensors(family, part, config), target / f"{stem}.safetensors")
        if part.startswith("text_encoder"):
            second = part == "text_encoder_2"
            index[part] = ["transformers", "CLIPTextModelWithProjection" if second else "CLIPTextModel"]
            words = folder / part.replace("text_encoder", "tokenizer")
            index[words.name] = ["transformers", "CLIPTokenizer"]
            shutil.copytree(WORDS, words, copy_function=shutil.copyfile)
            if config["hidden_act"] == "gelu":  # OpenCLIP pads with its first token
                settings = json.loads((words / "tokenizer_config.json").read_text())
                first = next(w for w, n in json.loads((words / "vocab.json").read_text()).items() if n == 0)
                (words / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": first}))
                (words / "special_tokens_map.json").unlink()
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(single_file._NOISE))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_file(family: str, file: Path, parts: dict[str, dict[str, Any]]) -> Path:
    """The same weights under the original code's names, as diffusers' converters read them."""
    found: dict[str, np.ndarray[Any, Any]] = {"alphas_cumprod": np.zeros(9, np.float32)}
    for part, config in parts.items():
        own = {name.removeprefix("text_model."): x for name, x in tensors(family, part, config).items()}
        if (family, part) in CLIP:
            found |= {CLIP[family, part] + name: value for name, value in own.items()}
            continue
        joined: dict[str, list[Any]] = {}
        for original, name in NAMES[family][part].items():
            stem, _, how = original.partition("#")
            if how == "T":
                found[stem] = np.ascontiguousarray(own[name].T)
            elif how:
                joined.setdefault(stem, [None] * 3)[int(how)] = own[name]
            else:
                found[stem] = own[name]
        found |= {stem: np.concatenate(values) for stem, values in joined.items()}
    if family == "sd2":  # the file holds one layer more than is used, and a projection
        last = parts["text_encoder"]["num_hidden_layers"] - 1
        prefix = "cond_stage_model.model."
        mark = f"{prefix}transformer.resblocks.{last}."
        found |= {
            x.replace(mark, mark.replace(str(last), str(last + 1))): v for x, v in found.items() if mark in x
        }
        found[f"{prefix}text_projection"] = np.zeros((24, 24), np.float16)
    if family == "sd1":  # attention of the autoencoder stands as convolutions of one pixel
        for name, value in found.items():
            if ".attn_1." in name and value.ndim == 2:
                found[name] = value[..., None, None]
    save_file(found, file)
    return file


@pytest.fixture
def engine() -> Iterator[InferenceEngine]:
    """An engine that lets itself be told what these toys would take at the size of the real models."""
    with InferenceEngine(memory_budget=MUCH) as made:
        yield made


@pytest.mark.parametrize("family", g.FAMILIES)
def test_a_checkpoint_in_one_file_makes_the_picture_of_its_folder(
    engine: InferenceEngine, tmp_path: Path, family: str
) -> None:
    parts = configs(family)
    with engine.load_images(write_folder(family, tmp_path / "folder", parts)) as model:
        wanted = model.image("a red circle", **VALUES)
    file = write_file(family, tmp_path / "model.safetensors", parts)
    shutil.copytree(WORDS, tmp_path / "tokenizer")
    with engine.load_images(file) as model:
        assert model.info["backend"] == "sd"
        made = model.image("a red circle", **VALUES)
    assert np.array_equal(made.numpy(), wanted.numpy())
    assert made.numpy().std() > 5


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_file("sd1", tmp_path / "model.safetensors", configs("sd1"))


def test_the_vocabulary_is_fetched_from_its_authors_where_none_lies_beside_the_file(
    checkpoint: Path, tmp_path: Path, hub: Any
) -> None:
    hub.repos.add("openai/clip-vit-large-patch14", {x.name: x.read_bytes() for x in WORDS.iterdir()})
    with InferenceEngine(endpoint=hub.endpoint, cache_dir=tmp_path / "cache", memory_budget=MUCH) as engine:
        fetched = engine.load_images(checkpoint).image("a red circle", **VALUES)
        shutil.copytree(WORDS, tmp_path / "tokenizer")
        beside = engine.load_images(checkpoint).image("a red circle", **VALUES)
    assert np.array_equal(fetched.numpy(), beside.numpy())


def test_a_checkpoint_whose_name_says_that_it_was_distilled_takes_few_steps(
    engine: InferenceEngine, checkpoint: Path
) -> None:
    shutil.copytree(WORDS, checkpoint.parent / "tokenizer")
    named = checkpoint.rename(checkpoint.with_name("any_lightning_2step.safetensors"))
    recipe = engine.load_images(named).image("a red circle", size=(32, 24), seed=1).recipe
    assert (recipe["steps"], recipe["guidance"]) == (2, 1.0)


def test_a_checkpoint_of_a_hub_repository_is_served(checkpoint: Path, tmp_path: Path, hub: Any) -> None:
    hub.repos.add("openai/clip-vit-large-patch14", {x.name: x.read_bytes() for x in WORDS.iterdir()})
    hub.repos.add("org/checkpoint", {"model.safetensors": checkpoint.read_bytes(), "README.md": b"#"})
    with InferenceEngine(endpoint=hub.endpoint, cache_dir=tmp_path / "cache", memory_budget=MUCH) as engine:
        assert engine.load_images("org/checkpoint").image("a red circle", **VALUES).size == (32, 24)


Change = Callable[[dict[str, Any]], None]


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda t: _drop(t, "first_stage_model."), IncompatibleWeightsError, "UNet without an autoencoder"),
        (lambda t: _drop(t, "cond_stage_model."), IncompatibleWeightsError, "without a text encoder"),
        (
            lambda t: t.update({"conditioner.embedders.0.model.ln_final.weight": np.zeros(4)}),
            UnsupportedArchitectureError,
            "refiner",
        ),
        (
            lambda t: _drop(t, "model.diffusion_model.out.2"),
            IncompatibleWeightsError,
            "out.2.weight' is missing",
        ),
    ],
    ids=["no vae", "no text encoder", "refiner", "no output"],
)
def test_a_file_that_is_no_whole_checkpoint_is_refused_by_what_it_lacks(
    engine: InferenceEngine, checkpoint: Path, change: Change, kind: type[Exception], words: str
) -> None:
    found = load_file(checkpoint)
    change(found)
    save_file(found, checkpoint)
    problem = engine.explain(checkpoint).claim.problem
    assert isinstance(problem, kind)
    assert words in str(problem)


def test_a_tensor_that_has_no_place_is_named(engine: InferenceEngine, checkpoint: Path) -> None:
    shutil.copytree(WORDS, checkpoint.parent / "tokenizer")
    found = load_file(checkpoint)
    found["model.diffusion_model.surprise.weight"] = np.zeros(3, np.float16)
    save_file(found, checkpoint)
    with pytest.raises(IncompatibleWeightsError, match="surprise"):
        engine.load_images(checkpoint)


def test_pickles_are_refused_with_a_hint_and_two_checkpoints_ask_which(
    engine: InferenceEngine, checkpoint: Path
) -> None:
    pickle = checkpoint.with_suffix(".ckpt")
    pickle.write_bytes(b"\x80\x02")
    with pytest.raises(InvalidModelRefError, match="never loaded") as caught:
        engine.load_images(pickle)
    assert caught.value.hint is not None
    assert ".safetensors" in caught.value.hint
    pickle.unlink()
    shutil.copyfile(checkpoint, checkpoint.with_name("other.safetensors"))
    assert "2 checkpoints" in str(engine.explain(checkpoint.parent).claim.problem)


def _drop(tensors: dict[str, Any], prefix: str) -> None:
    for name in [name for name in tensors if name.startswith(prefix)]:
        del tensors[name]


def test_parts_are_built_lazily(checkpoint: Path) -> None:
    import mlx.core as mx

    before = mx.get_active_memory()
    _build("vae", configs("sd1")["vae"], [checkpoint], mx.float32, 0, single=True)
    assert mx.get_active_memory() - before < checkpoint.stat().st_size / 4
