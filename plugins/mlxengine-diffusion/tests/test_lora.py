"""LoRA adapters: three forms of keys, one effect; nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import geometry as g
import mlx.core as mx
import numpy as np
import pytest
from mlxengine import ImageHandle, InferenceEngine
from mlxengine.errors import IncompatibleWeightsError, InvalidParameterError, ModelNotFoundError
from mlxengine_diffusion.sd.adapter_files import read_adapters
from safetensors.numpy import load_file, save_file

RANK, ALPHA = 4, 2.0
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0"
GATED = "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"
CONVOLUTION = "down_blocks.0.resnets.0.conv1"
TEXT = "encoder.layers.0.self_attn.q_proj"
# The same layers in the original latent-diffusion code (one layer a level, three levels).
ORIGINAL = {
    ATTENTION: "input_blocks_3_1_transformer_blocks_0_attn1_to_q",
    OUT: "output_blocks_3_1_transformer_blocks_0_attn2_to_out_0",
    GATED: "middle_block_1_transformer_blocks_0_ff_net_0_proj",
    CONVOLUTION: "input_blocks_1_0_in_layers_2",
}


@pytest.fixture(scope="module")
def model(shared_engine: InferenceEngine, tiny_folder: Path) -> Iterator[ImageHandle]:
    with shared_engine.load_images(tiny_folder) as handle:
        yield handle


@pytest.fixture(scope="module")
def layers(tiny_folder: Path) -> dict[str, tuple[Any, Any]]:
    """Layer to (down, up), for the UNet's layers and one of the text encoder."""
    unet = load_file(tiny_folder / "unet" / "diffusion_pytorch_model.safetensors")
    text = load_file(tiny_folder / "text_encoder" / "model.safetensors")
    numbers = np.random.RandomState(0)
    found = {}
    for name in (ATTENTION, OUT, GATED, CONVOLUTION, TEXT):
        shape = (text if name == TEXT else unet)[f"{name}.weight"].shape
        down = numbers.standard_normal((RANK, *shape[1:])).astype(np.float32)
        up = numbers.standard_normal((shape[0], RANK, *(1 for _ in shape[2:]))).astype(np.float32)
        found[name] = (down / np.sqrt(np.prod(shape[1:])).astype(np.float32), up)
    return found


def diffusers(layers: dict[str, tuple[Any, Any]], folder: Path) -> Path:
    tensors = {}
    for name, (down, up) in layers.items():
        prefix = "text_encoder.text_model." if name == TEXT else "unet."
        if name == ATTENTION:  # the oldest form: one file per attention processor
            processor = name.replace(".to_q", ".processor.to_q_lora")
            tensors[f"{prefix}{processor}.down.weight"] = down
            tensors[f"{prefix}{processor}.up.weight"] = up
        else:
            tensors[f"{prefix}{name}.lora.down.weight"] = down
            tensors[f"{prefix}{name}.lora.up.weight"] = up
        tensors[f"{prefix}{name}.alpha"] = np.array(ALPHA, dtype=np.float32)
    save_file(tensors, folder / "diffusers.safetensors")
    return folder / "diffusers.safetensors"


def peft(layers: dict[str, tuple[Any, Any]], folder: Path) -> Path:
    tensors = {}
    for name, (down, up) in layers.items():
        prefix = "text_encoder.text_model." if name == TEXT else "unet."
        tensors[f"{prefix}{name}.lora_A.weight"] = down
        tensors[f"{prefix}{name}.lora_B.weight"] = up
    alphas = {"unet.r": RANK, "unet.lora_alpha": ALPHA, "text_encoder.lora_alpha": ALPHA}
    save_file(tensors, folder / "peft.safetensors", metadata={"lora_adapter_metadata": json.dumps(alphas)})
    return folder / "peft.safetensors"


def kohya(layers: dict[str, tuple[Any, Any]], folder: Path, *, original: bool = False) -> Path:
    tensors = {}
    for name, (down, up) in layers.items():
        flat = ORIGINAL[name] if original and name in ORIGINAL else name.replace(".", "_")
        key = f"lora_te_text_model_{flat}" if name == TEXT else f"lora_unet_{flat}"
        tensors[f"{key}.lora_down.weight"] = down
        tensors[f"{key}.lora_up.weight"] = up
        tensors[f"{key}.alpha"] = np.array(ALPHA, dtype=np.float16)
    target = folder / f"kohya-{original}.safetensors"
    save_file(tensors, target)
    return target


def rewritten(tiny: Path, folder: Path, layers: Any, change: Callable[[str, Any], Any]) -> Path:
    """The tiny model with the weights of the layers changed."""
    shutil.copytree(tiny, folder, copy_function=shutil.copyfile)
    for file, names in (
        ("unet/diffusion_pytorch_model", [name for name in layers if name != TEXT]),
        ("text_encoder/model", [TEXT]),
    ):
        path = folder / f"{file}.safetensors"
        tensors = {key: value.astype(np.float32) for key, value in load_file(path).items()}
        for name in names:
            tensors[f"{name}.weight"] = change(name, tensors[f"{name}.weight"])
        save_file(tensors, path)
    return folder


def merged(layers: dict[str, tuple[Any, Any]], tiny: Path, folder: Path) -> Path:
    """A model with the adapters added to its weights: what the adapters have to amount to."""

    def change(name: str, weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        down, up = layers[name]
        added: np.ndarray[Any, Any] = up.reshape(len(up), RANK) @ down.reshape(RANK, -1) * (ALPHA / RANK)
        return weight + added.reshape(weight.shape)

    return rewritten(tiny, folder, layers, change)


def picture(model: ImageHandle, **values: Any) -> Any:
    made = model.image("a red circle", steps=3, guidance=3.0, seed=0, **values)
    return made.numpy().astype(int)


def tolerance() -> int:
    """How far two ways to the same picture may be apart, in steps of 1/255.

    On a GPU the denoiser computes in float16: weights with an adapter added to them are rounded where weights
    beside an adapter are not. 5 steps were measured on an H100.
    """
    import mlx.core as mx

    return 1 if mx.default_device().type == mx.DeviceType.cpu else 8


@pytest.mark.feature("diffusion.lora")
def test_every_form_of_keys_does_what_adding_to_the_weights_does(
    model: ImageHandle, engine: InferenceEngine, layers: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    plain = picture(model)
    with engine.load_images(merged(layers, tiny_folder, tmp_path / "merged")) as other:
        wanted = picture(other)
    assert np.abs(wanted - plain).max() > 20
    (tmp_path / "lora").mkdir()
    for write in (diffusers, peft, kohya, lambda a, b: kohya(a, b, original=True)):
        file = write(layers, tmp_path / "lora")
        ours = picture(model, lora=((str(file), 1.0),))
        assert np.abs(ours - wanted).max() <= tolerance(), file.name
    assert np.array_equal(picture(model), plain)  # the model itself is as it was


def test_a_scale_of_zero_changes_nothing_and_two_adapters_add_up(
    model: ImageHandle, layers: Any, tmp_path: Path
) -> None:
    file = str(peft(layers, tmp_path))
    assert np.abs(picture(model, lora=((file, 0.0),)) - picture(model)).max() <= tolerance()
    twice = picture(model, lora=((file, 0.5), (file, 0.5)))
    assert np.abs(twice - picture(model, lora=((file, 1.0),))).max() <= tolerance()


def test_an_adapter_works_on_a_quantized_unet(
    engine: InferenceEngine, layers: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    file = str(kohya(layers, tmp_path))
    with engine.load_images(tiny_folder, features={"diffusion.quantize": 8}) as model:
        assert np.abs(picture(model, lora=((file, 1.0),)) - picture(model)).max() > 20


def peft_folder(layers: dict[str, tuple[Any, Any]], folder: Path, **config: object) -> Path:
    """A folder as PEFT's `save_pretrained` writes it; one network a folder."""
    folder.mkdir()
    tensors = {}
    for name, (down, up) in layers.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = down
        tensors[f"base_model.model.{name}.lora_B.weight"] = up
    save_file(tensors, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 8}, 2.0),
        ({"lora_alpha": 8, "use_rslora": True}, 4.0),
        (
            {"lora_alpha": 2, "alpha_pattern": {"attn1.to_q": 12, "resnets.0.conv1": 12, "(ff|attn2).*": 12}},
            3.0,
        ),
    ],
    ids=["alpha", "rank-stabilised", "by layer"],
)
def test_a_peft_folder_is_applied_with_the_alpha_of_its_configuration(
    model: ImageHandle, layers: Any, tmp_path: Path, config: dict[str, object], scale: float
) -> None:
    unet = {name: layer for name, layer in layers.items() if name != TEXT}
    folder = peft_folder(unet, tmp_path / "adapter", **config)
    plain = {f"{name}.lora_A.weight": down for name, (down, _) in unet.items()}
    plain |= {f"{name}.lora_B.weight": up for name, (_, up) in unet.items()}
    save_file(plain, tmp_path / "plain.safetensors")
    wanted = picture(model, lora=((str(tmp_path / "plain.safetensors"), 0.25 * scale),))
    for path in (folder, folder / "adapter_model.safetensors"):
        ours = picture(model, lora=((str(path), 0.25),))
        assert np.abs(ours - wanted).max() <= tolerance()
    assert np.abs(wanted - picture(model)).max() > 20


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "BOFT"}, "peft_type='BOFT'"),
        ({"bias": "all"}, "bias='all'"),
        ({"alpha_pattern": {"(": 2}}, "alphas cannot be read"),
        ({"lora_alpha": "many"}, "alphas cannot be read"),
        ({"modules_to_save": ["conv_in"]}, "modules_to_save"),
    ],
    ids=["boft", "bias", "pattern", "number", "modules"],
)
def test_a_peft_folder_that_says_more_than_alphas_is_refused_by_name(
    model: ImageHandle, layers: Any, tmp_path: Path, config: dict[str, object], words: str
) -> None:
    unet = {name: layer for name, layer in layers.items() if name != TEXT}
    folder = peft_folder(unet, tmp_path / "adapter", **config)
    with pytest.raises(IncompatibleWeightsError) as caught:
        picture(model, lora=((str(folder), 1.0),))
    assert words in str(caught.value)


KINDS = load_file(g.DATA / "adapters.safetensors")


@pytest.mark.parametrize("kind", ["loha", "loha of factors", "lokr", "lokr of factors", "dora"])
def test_loha_lokr_and_dora_change_a_weight_as_in_peft(kind: str, tmp_path: Path) -> None:
    own = {name.split("|", 1)[1]: value for name, value in KINDS.items() if name.startswith(f"{kind}|")}
    adapter = {name.split("|")[1]: value for name, value in own.items() if name.startswith("adapter|")}
    save_file(adapter, tmp_path / "adapter_model.safetensors")
    config = {
        "peft_type": kind.split()[0].upper().replace("DORA", "LORA"),
        "r": 1 if kind == "lokr of factors" else 3,
        "lora_alpha" if kind == "dora" else "alpha": 6,
        "use_dora": kind == "dora",
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = read_adapters(tmp_path).networks["denoiser"]
    for layer in ("linear", "conv"):
        made = found[layer].changed(mx.array(own[f"before|{layer}"]), slice(None))
        assert (
            np.abs(np.array(made) - own[f"after|{layer}"]).max() <= 1e-4 * np.abs(own[f"after|{layer}"]).max()
        )


def loha(layers: dict[str, tuple[Any, Any]], folder: Path, *, dora: bool) -> tuple[Path, dict[str, Any]]:
    """A file of LyCORIS's form (or LoRA with DoRA's magnitudes), and what its layers' weights become."""
    tensors, numbers = {}, np.random.RandomState(1)
    for name, (down, up) in layers.items():
        key = f"lora_te_text_model_{name}" if name == TEXT else f"lora_unet_{name}"
        key = key.replace(".", "_")
        outputs, inputs = len(up), down[0].size
        if dora:
            tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down, up
            tensors[f"{key}.dora_scale"] = np.abs(numbers.standard_normal((outputs, 1))).astype(np.float32)
        else:
            for number in (1, 2):
                a, b = numbers.standard_normal((outputs, RANK)), numbers.standard_normal((RANK, inputs))
                tensors[f"{key}.hada_w{number}_a"] = a.astype(np.float32) / 2
                tensors[f"{key}.hada_w{number}_b"] = b.astype(np.float32) / np.float32(inputs**0.5)
        tensors[f"{key}.alpha"] = np.array(ALPHA, np.float32)
    save_file(tensors, folder / "adapter.safetensors")
    return folder / "adapter.safetensors", tensors


@pytest.mark.parametrize("dora", [False, True], ids=["loha", "dora"])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_loha_and_dora_make_the_picture_of_a_model_with_the_changed_weights(
    model: ImageHandle,
    engine: InferenceEngine,
    layers: Any,
    tiny_folder: Path,
    tmp_path: Path,
    dora: bool,
    strength: float,
) -> None:
    file, tensors = loha(layers, tmp_path, dora=dora)

    def change(name: str, weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        key = (f"lora_te_text_model_{name}" if name == TEXT else f"lora_unet_{name}").replace(".", "_")
        flat = weight.reshape(len(weight), -1)
        if dora:
            down, up = tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"]
            made = flat + up.reshape(len(up), RANK) @ down.reshape(RANK, -1) * (ALPHA / RANK)
            made = made / np.linalg.norm(made, axis=1, keepdims=True) * tensors[f"{key}.dora_scale"]
        else:
            one, two = (tensors[f"{key}.hada_w{n}_a"] @ tensors[f"{key}.hada_w{n}_b"] for n in (1, 2))
            made = flat + one * two * (ALPHA / RANK)
        return (flat + strength * (made - flat)).reshape(weight.shape)

    with engine.load_images(rewritten(tiny_folder, tmp_path / "merged", layers, change)) as other:
        wanted = picture(other)
    ours = picture(model, lora=((str(file), strength),))
    assert np.abs(ours - wanted).max() <= tolerance()
    assert np.abs(wanted - picture(model)).max() > 5
    with engine.load_images(tiny_folder, features={"diffusion.quantize": 8}) as packed:
        near = picture(packed, lora=((str(file), strength),))
    assert np.abs(near - wanted).mean() < 10


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"unet.nowhere.lora_A.weight": (4, 8), "unet.nowhere.lora_B.weight": (8, 4)}, "nowhere"),
        (
            {"lora_unet_nowhere.lora_down.weight": (4, 8), "lora_unet_nowhere.lora_up.weight": (8, 4)},
            "nowhere",
        ),
        ({f"unet.{ATTENTION}.lora_A.weight": (4, 64)}, "without all matrices"),
        (
            {f"unet.{ATTENTION}.lora_A.weight": (4, 9), f"unet.{ATTENTION}.lora_B.weight": (64, 4)},
            "(4, 9) and (64, 4)",
        ),
        ({f"unet.{ATTENTION}.hada_w1_a": (4, 9)}, "without all matrices"),
        ({f"unet.{ATTENTION}.lokr_w1": (2, 2), f"unet.{ATTENTION}.lokr_w2": (3, 3)}, "does not fit"),
        ({f"unet.{ATTENTION}.oft_blocks": (4, 9)}, "LoRA, LoHa, LoKr, and DoRA by outputs are"),
        ({f"unet.{ATTENTION}.dora_scale": (1, 9)}, "dora_scale"),
        ({"unet.conv_in.weight": (4, 9)}, "no adapter that is implemented: it has unet.conv_in.weight"),
    ],
    ids=[
        "unknown",
        "unknown flat",
        "half",
        "misshapen",
        "half of another kind",
        "misshapen kronecker",
        "another kind",
        "by inputs",
        "no adapter",
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_by_name(
    model: ImageHandle, tmp_path: Path, tensors: dict[str, tuple[int, ...]], words: str
) -> None:
    file = tmp_path / "bad.safetensors"
    save_file({name: np.zeros(shape, np.float32) for name, shape in tensors.items()}, file)
    with pytest.raises(IncompatibleWeightsError) as caught:
        picture(model, lora=((str(file), 1.0),))
    assert words in str(caught.value)


def test_a_file_that_mlx_wrote_is_read(layers: Any, model: ImageHandle, tmp_path: Path) -> None:
    import mlx.core as mx

    file = kohya(layers, tmp_path)
    mx.save_safetensors(str(tmp_path / "mlx.safetensors"), mx.load(str(file)))  # its metadata is null
    mine, theirs = (picture(model, lora=((str(tmp_path / name), 1.0),)) for name in ("mlx.safetensors", file))
    assert np.array_equal(mine, theirs)


def test_an_adapter_that_is_not_there_is_an_error(model: ImageHandle, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="holds 0"):
        picture(model, lora=((str(tmp_path), 1.0),))
    with pytest.raises(InvalidParameterError, match="lora scale"):
        picture(model, lora=((str(tmp_path), float("inf")),))


def test_an_adapter_on_a_hub_is_fetched_while_the_request_waits(
    layers: Any, tiny_folder: Path, tmp_path: Path, hub: Any
) -> None:
    file = peft(layers, tmp_path)
    hub.repos.add("org/adapter", {file.name: file.read_bytes()})
    with InferenceEngine(endpoint=hub.endpoint, cache_dir=tmp_path / "cache") as engine:
        model = engine.load_images(tiny_folder)
        fetched = picture(model, lora=(("org/adapter", 1.0),))
        assert np.abs(fetched - picture(model, lora=((str(file), 1.0),))).max() <= tolerance()
        assert np.abs(fetched - picture(model)).max() > tolerance()
