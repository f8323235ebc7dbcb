"""Adapters for models of flow matching: every form of keys is diffusers' picture; nothing half-applied."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlxengine import InferenceEngine
from mlxengine.errors import IncompatibleWeightsError
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent / "extras"))

import tiny_adapters as a
import tiny_flux2 as f
import tiny_kit as k
import tiny_z_image as z

MODELS: dict[str, Any] = {"flux2": f, "z_image": z}
GUIDANCE = {"flux2": 1.0, "z_image": 0.0}
STORED = load_file(k.DATA / "flow.pictures.safetensors")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("flow")
    return {name: module.write(root / name) for name, module in MODELS.items()}


@pytest.fixture(scope="module")
def pipelines(folders: dict[str, Path], load_pipeline: Callable[..., Any]) -> dict[str, Any]:
    return {name: load_pipeline(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def plain(pipelines: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: picture(pipeline, name) for name, pipeline in pipelines.items()}


def picture(pipeline: Any, name: str, *adapters: tuple[Path, float]) -> np.ndarray[Any, Any]:
    import mlx.core as mx

    return k.pixels(pipeline, a.job(MODELS[name], GUIDANCE[name], lora=adapters), mx.array(a.noise(name)))


def saved(tensors: dict[str, Any], folder: Path) -> Path:
    path = folder / f"{len(list(folder.iterdir()))}.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("form", a.FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_every_form_of_keys_makes_the_picture_of_diffusers(
    pipelines: dict[str, Any], plain: dict[str, Any], name: str, form: str, tmp_path: Path
) -> None:
    file = saved(a.FORMS[form](name), tmp_path)
    ours = picture(pipelines[name], name, (file, 1.0))
    stored = STORED[f"{name}/lora"].astype(int)
    assert np.abs(ours - stored).max() <= 2
    assert np.abs(stored - plain[name]).max() > 50


def test_an_adapter_leaves_nothing_behind(
    pipelines: dict[str, Any], plain: dict[str, Any], tmp_path: Path
) -> None:
    assert (
        picture(pipelines["flux2"], "flux2", (saved(a.peft("flux2"), tmp_path), 1.0)) != plain["flux2"]
    ).any()
    assert np.array_equal(picture(pipelines["flux2"], "flux2"), plain["flux2"])


def test_two_adapters_add_up_at_their_strengths(pipelines: dict[str, Any], tmp_path: Path) -> None:
    one, other = (saved(a.FORMS[form]("flux2"), tmp_path) for form in ("peft", "kohya"))
    both = picture(pipelines["flux2"], "flux2", (one, 0.25), (other, 0.75))
    assert np.abs(both - STORED["flux2/lora"]).max() <= 2


KINDS = ("loha", "lokr", "dora", "final norm")


def changed(kind: str, weight: np.ndarray[Any, Any], name: str) -> tuple[dict[str, Any], Any]:
    """Tensors of an adapter for a layer, and the layer's weight with it."""
    numbers = np.random.RandomState(2)
    outputs, inputs = weight.shape

    def some(*shape: int) -> Any:
        return numbers.standard_normal(shape).astype(np.float32) / np.float32(2)

    alpha = {"alpha": np.array(a.ALPHA, np.float32)}
    if kind == "loha":
        factors = {
            f"hada_w{n}_{side}": 3 * some(*shape)
            for n in (1, 2)
            for side, shape in (("a", (outputs, a.RANK)), ("b", (a.RANK, inputs)))
        }
        one, two = (factors[f"hada_w{n}_a"] @ factors[f"hada_w{n}_b"] for n in (1, 2))
        made = weight + one * two * (a.ALPHA / a.RANK)
    elif kind == "lokr":
        factors = {"lokr_w1": some(4, 4), "lokr_w2": some(outputs // 4, inputs // 4)}
        made, alpha = weight + np.kron(factors["lokr_w1"], factors["lokr_w2"]), {}
    else:
        factors = {"lora_down.weight": some(a.RANK, inputs), "lora_up.weight": some(outputs, a.RANK)}
        made = weight + factors["lora_up.weight"] @ factors["lora_down.weight"] * (a.ALPHA / a.RANK)
        if kind == "dora":
            factors["dora_scale"] = np.abs(some(outputs, 1)) + np.float32(4)
            made = made / np.linalg.norm(made, axis=1, keepdims=True) * factors["dora_scale"]
    return {f"lora_unet_{name}.{key}": value for key, value in {**factors, **alpha}.items()}, made


@pytest.mark.parametrize("kind", KINDS)
def test_a_stacked_layer_is_changed_as_a_whole_and_its_parts_get_their_rows(
    pipelines: dict[str, Any],
    plain: dict[str, Any],
    folders: dict[str, Path],
    load_pipeline: Callable[..., Any],
    kind: str,
    tmp_path: Path,
) -> None:
    file = folders["flux2"] / "transformer" / "model.safetensors"
    weights = load_file(file)
    names = [f"transformer_blocks.0.attn.{part}.weight" for part in ("to_q", "to_k", "to_v")]
    first = "double_blocks_0_img_attn_qkv"
    if kind == "final norm":  # whose halves stand the other way round where it was published first
        names, first = ["norm_out.linear.weight"], "final_layer_adaLN_modulation_1"
    whole = np.concatenate([weights[name] for name in names])
    if kind == "final norm":
        whole = k._halves_swapped(whole)
    tensors, made = changed(kind, whole, first)
    if kind == "final norm":
        made = k._halves_swapped(made)
    rows = np.split(made, len(names))
    other = tmp_path / "model"
    MODELS["flux2"].write(other)
    save_file(
        {**weights, **{name: np.ascontiguousarray(part) for name, part in zip(names, rows, strict=True)}},
        other / "transformer" / "model.safetensors",
    )
    wanted = picture(load_pipeline(other), "flux2")
    (tmp_path / "adapters").mkdir()
    adapter = saved(tensors, tmp_path / "adapters")
    assert np.abs(wanted - plain["flux2"]).max() > 5
    assert np.abs(picture(pipelines["flux2"], "flux2", (adapter, 1.0)) - wanted).max() <= 2


@pytest.mark.parametrize(("name", "bits"), [("flux2", 4), ("z_image", 8)])
def test_an_adapter_works_on_a_quantized_transformer(
    pipelines: dict[str, Any],
    plain: dict[str, Any],
    folders: dict[str, Path],
    load_pipeline: Callable[..., Any],
    name: str,
    bits: int,
    tmp_path: Path,
) -> None:
    import mlx.nn as nn

    packed = load_pipeline(folders[name], quantize=bits)
    with packed.parts.use("transformer") as network:
        assert any(isinstance(item, nn.QuantizedLinear) for _, item in network.named_modules())
    file = saved(a.kohya(name), tmp_path)
    without, made = picture(packed, name), picture(packed, name, (file, 1.0))
    wanted = STORED[f"{name}/lora"].astype(int)
    # Quantizing costs something; the adapter's effect is far larger.
    assert np.abs(made - wanted).mean() < (2 if bits == 8 else 12)
    assert np.abs(made - without).mean() > 2 * np.abs(without - plain[name]).mean()


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"lora_unet_double_blocks_9_img_attn_qkv": (4, 64, 192)}, "double_blocks_9_img_attn_qkv"),
        ({"diffusion_model.double_blocks.0.img_attn.qkv": (4, 64, 128)}, "(4, 64) and (128, 4)"),
        ({"lora_te2_encoder_block_0_layer_0_SelfAttention_q": (4, 32, 32)}, "text_encoder_2"),
        (
            {
                "transformer.transformer_blocks.0.attn.to_q": (4, 64, 64),
                "diffusion_model.double_blocks.0.img_attn.qkv": (4, 64, 192),
            },
            "adapts one layer twice, as transformer_blocks.0.attn.to_q and as double_blocks.0.img_attn.qkv",
        ),
        (
            {
                "transformer.transformer_blocks.0.attn.to_q": (4, 64, 64),
                "unet.down_blocks.0.attentions.0.proj_in": (4, 64, 64),
            },
            "down_blocks.0.attentions.0.proj_in",
        ),
    ],
    ids=["unknown block", "misshapen", "a part that is not there", "twice", "half of another model"],
)
def test_an_adapter_that_does_not_fit_is_refused_by_name_before_any_step(
    pipelines: dict[str, Any], tmp_path: Path, tensors: dict[str, tuple[int, int, int]], words: str
) -> None:
    made = {}
    for name, (rank, inputs, outputs) in tensors.items():
        made[f"{name}.lora_down.weight"] = np.ones((rank, inputs), np.float32)
        made[f"{name}.lora_up.weight"] = np.ones((outputs, rank), np.float32)
    job = a.job(f, 1.0, lora=((saved(made, tmp_path), 1.0),))
    steps = pipelines["flux2"].denoise(job)
    with pytest.raises(IncompatibleWeightsError) as caught:
        for step in steps:
            assert step is None
    assert words in str(caught.value)


@pytest.mark.feature("diffusion.lora")
def test_a_request_names_adapters_and_the_recipe_keeps_them(
    engine: InferenceEngine, folders: dict[str, Path], tmp_path: Path
) -> None:
    file = saved(a.comfyui("z_image"), tmp_path)
    with engine.load_images(folders["z_image"], features={"diffusion.quantize": 8}) as model:
        assert "lora" in model.capabilities
        made = model.image("a red circle", size=(64, 64), steps=1, seed=0, lora=((str(file), 0.5),))
        assert made.recipe["lora"] == ((str(file), 0.5),)
        assert made.recipe["bits"] == 8
