"""IP-Adapters: the pictures of diffusers, and what does not fit refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geometry as g
import numpy as np
import pytest
from alike import alike
from mlxengine import InferenceEngine, IPAdapter
from mlxengine.errors import (
    FeatureUnavailableError,
    IncompatibleWeightsError,
    InvalidParameterError,
    MLXEngineError,
    ModelNotFoundError,
)
from mlxengine_diffusion.backends._work import Guide, Seen
from PIL import Image
from safetensors.numpy import load_file, save_file
from test_image_verb import run
from test_parity_with_diffusers import Family, family_of, same_picture

STORED = load_file(g.DATA / "ip.pictures.safetensors")


family = family_of("sd1", "sdxl")


@pytest.fixture(scope="module")
def files(family: Family, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("ip")
    return {kind: g.write_ip(family.name, kind, root) for kind in ("plain", "plus", "full")}


def seen(files: dict[str, Path], label: str) -> tuple[Seen, ...]:
    told = g.SEEN[label]
    return tuple(Seen(path=files[kind], pixels=g.ip_picture(), strength=strength) for kind, strength in told)


@pytest.mark.parametrize("label", g.SEEN)
def test_a_picture_that_counts_as_a_prompt_makes_that_of_diffusers(
    family: Family, files: dict[str, Path], label: str
) -> None:
    pipeline = family.pipeline()
    ours = family.picture(pipeline, "euler", ip_adapters=seen(files, label))
    same_picture(ours, STORED[f"{family.name}/{label}"])
    plain = family.picture(pipeline, "euler")
    assert np.abs(ours.astype(int) - plain).max() > 20
    same_picture(plain, family.pictures["euler/epsilon/leading"])  # nothing is left behind


@pytest.mark.parametrize("family", ["sd1"], indirect=True)
def test_it_goes_with_adapters_control_and_a_picture_to_start_from(
    family: Family, files: dict[str, Path], tmp_path: Path
) -> None:
    pipeline, told = family.pipeline(), seen(files, "plain")
    same_picture(
        family.picture(pipeline, "euler", ip_adapters=told, guidance=1.0, negative=None),
        STORED["sd1/no guidance"],
    )
    net = g.write_control("sd1", "edges", tmp_path / "net")
    guide = Guide(path=net, pixels=g.control_picture("edges"), strength=1.0, start=0.0, end=1.0)
    down, up = g.adapter_of_one()
    save_file(
        {f"unet.{g.ADAPTED}.lora_A.weight": down, f"unet.{g.ADAPTED}.lora_B.weight": up},
        tmp_path / "one.safetensors",
    )
    for label, more in (
        ("from picture", {"init": g.picture(), "strength": g.STRENGTH}),
        ("controlled", {"controls": (guide,)}),
        ("adapted", {"lora": ((tmp_path / "one.safetensors", 1.0),)}),
    ):
        ours = family.picture(pipeline, "euler", ip_adapters=told, **more)
        same_picture(ours, STORED[f"sd1/{label}"])
        spared = family.picture(pipeline, "euler", ip_adapters=told, low_memory=True, **more)
        assert np.array_equal(spared, ours), label
    assert not pipeline.kept  # low memory let all of it go


def _change(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ("another family", IncompatibleWeightsError, "another model"),
        ("another unet", IncompatibleWeightsError, "another model"),
        ("no encoder", ModelNotFoundError, "no image encoder"),
        ("another encoder", IncompatibleWeightsError, "projection_dim is 28"),
        ("pickled encoder", ModelNotFoundError, "--from-bin"),
        ("a matrix", IncompatibleWeightsError, "to_k_ip"),
        ("the norm", IncompatibleWeightsError, "norm.weight"),
        ("faces", IncompatibleWeightsError, "FaceID"),
        ("something else", IncompatibleWeightsError, "no IP-Adapter"),
    ],
)
@pytest.mark.parametrize("family", ["sd1"], indirect=True)
def test_an_adapter_that_does_not_fit_is_refused_by_what_it_is(
    family: Family, tmp_path: Path, change: str, error: type[MLXEngineError], words: str
) -> None:
    file = g.write_ip("sdxl" if change == "another family" else "sd1", "plain", tmp_path)
    encoder = file.parent / "image_encoder"
    if change == "another unet":
        _change(file, lambda item: [item.pop(f"ip_adapter.1.to_{kind}_ip.weight") for kind in "kv"])
    elif change == "no encoder":
        (encoder / "config.json").unlink()
    elif change == "another encoder":
        (encoder / "config.json").write_text(json.dumps({**g.IMAGE_ENCODER, "projection_dim": 28}))
    elif change == "pickled encoder":
        (encoder / "model.safetensors").rename(encoder / "pytorch_model.bin")
    elif change == "a matrix":
        _change(file, lambda item: item.pop("ip_adapter.3.to_k_ip.weight"))
    elif change == "the norm":
        _change(file, lambda item: item.pop("image_proj.norm.weight"))
    elif change == "faces":
        _change(file, lambda item: item.update({"image_proj.proj.0.w": item.pop("image_proj.proj.weight")}))
    elif change == "something else":
        _change(file, lambda item: item.update({"other.weight": np.zeros(2, np.float32)}))
    with pytest.raises(error) as caught:
        family.picture(family.pipeline(), "euler", ip_adapters=seen({"plain": file}, "plain"))
    assert words in f"{caught.value} {caught.value.hint}"


def test_a_request_and_the_verb_name_adapters_and_pictures(
    engine: InferenceEngine, tiny_folder: Path, tmp_path: Path
) -> None:
    file = g.write_ip("tiny", "plain", tmp_path)
    usual = file.rename(file.with_name("ip-adapter_sd15.safetensors"))
    Image.fromarray(g.ip_picture()).save(tmp_path / "style.png")
    asked: dict[str, Any] = {"size": (32, 32), "steps": 2, "guidance": 3.0, "seed": 1}
    size = sum(
        value.nbytes
        for item in (usual, usual.parent / "image_encoder" / "model.safetensors")
        for value in load_file(item).values()
    )
    with engine.load_images(tiny_folder) as model:
        assert "ip_adapter" in model.capabilities
        told = IPAdapter(source=str(tmp_path), image=tmp_path / "style.png", strength=0.8)
        made = model.image("a red circle", ip_adapters=(told,), **asked)
        assert engine.memory().models[0].caches == size
        assert not alike(made, model.image("a red circle", **asked))
        assert made.recipe["ip_adapters"][0][:2] == (str(tmp_path), 0.8)
        twice = model.image("a red circle", ip_adapters=(told,), n=2, **asked)
        assert np.abs(twice[0].numpy().astype(int) - made.numpy()).max() <= 1
        for wrong, words in (
            (
                IPAdapter(source=str(tmp_path), image=g.ip_picture(), strength=float("inf")),
                "IP-Adapter's strength",
            ),
            (IPAdapter(source="ip-adapter_sd15.bin", image=g.ip_picture()), "is a pickle"),
            (7, "are IPAdapter values"),
        ):
            with pytest.raises(InvalidParameterError, match=words):
                model.image("a red circle", ip_adapters=(wrong,), **asked)  # type: ignore[arg-type]
    words = ("a red circle", "-m", tiny_folder, "--size", "32x32", "--steps", 2, "--guidance", 3, "--seed", 1)
    told = run(*words, "--ip-adapter", f"{usual}=style.png@0.8", "--out", "x.png", folder=tmp_path)
    assert told.returncode == 0, told.stderr
    assert alike(np.array(Image.open(tmp_path / "x.png")), made)
    again = run("--recipe", "x.png", "--out", "y.png", folder=tmp_path)
    assert (again.returncode, "--ip-adapter" in again.stderr) == (2, True)
    Image.fromarray(g.picture()).save(tmp_path / "other.png")
    for name, warned in (("style.png", False), ("other.png", True)):
        more = ("--recipe", "x.png", "--out", "y.png", "--ip-adapter", f"{usual}={name}@0.8")
        again = run(*more, folder=tmp_path)
        text = " ".join(again.stderr.split())
        assert again.returncode == 0, text
        assert ("The IP-Adapter's picture of the recipe was another" in text) is warned, text


def test_other_models_refuse_them(tmp_path: Path, engine: InferenceEngine) -> None:
    import sys

    sys.path.insert(0, str(Path(__file__).parent / "extras"))
    import tiny_z_image as z

    with engine.load_images(z.write(tmp_path / "model")) as model:
        told = IPAdapter(source=str(tmp_path), image=g.ip_picture())
        with pytest.raises(FeatureUnavailableError, match="no IP-Adapters"):
            model.image("a", ip_adapters=(told,))


@pytest.mark.parametrize("file", ["", "/other/some_vit-h.safetensors"])
def test_an_adapter_on_a_hub_is_fetched_with_its_image_encoder_alone(
    tiny_folder: Path, tmp_path: Path, hub: Any, file: str
) -> None:
    own = g.write_ip("tiny", "plain", tmp_path / "local")
    held = {
        f"models/image_encoder/{path.name}": path.read_bytes()
        for path in (own.parent / "image_encoder").iterdir()
    }
    held[file.removeprefix("/") or "models/ip-adapter_sd15.safetensors"] = own.read_bytes()
    others = ("models/other.safetensors", "models/image_encoder/pytorch_model.bin")
    held |= {name: own.read_bytes() for name in others}
    hub.repos.add("org/ip", held)
    asked: dict[str, Any] = {"size": (32, 32), "steps": 1, "guidance": 3.0, "seed": 1}
    with InferenceEngine(endpoint=hub.endpoint, cache_dir=tmp_path / "cache") as engine:
        model = engine.load_images(tiny_folder)
        made = model.image(
            "a", ip_adapters=(IPAdapter(source=f"org/ip{file}", image=g.ip_picture()),), **asked
        )
        local = model.image("a", ip_adapters=(IPAdapter(source=str(own), image=g.ip_picture()),), **asked)
    assert np.array_equal(made.numpy(), local.numpy())
    fetched = [str(path) for path in (tmp_path / "cache").rglob("*") if not path.is_dir()]
    assert not [path for path in fetched if path.endswith(others)]
