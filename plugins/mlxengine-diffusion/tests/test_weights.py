"""What is loaded: every tensor accounted for, refusals before a download, quantization, low memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlxengine import ImageHandle, ImageRequest, InferenceEngine
from mlxengine.errors import (
    BackendUnavailableError,
    CorruptFileError,
    FeatureUnavailableError,
    IncompatibleWeightsError,
    UnsupportedArchitectureError,
)
from safetensors.numpy import load_file, save_file

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model", copy_function=shutil.copyfile))


@pytest.fixture(scope="module")
def model(shared_engine: InferenceEngine, tiny_folder: Path) -> Iterator[ImageHandle]:
    with shared_engine.load_images(tiny_folder) as handle:
        yield handle


def edit(file: Path, change: Change) -> None:
    file.chmod(0o644)
    if file.suffix == ".json":
        document = json.loads(file.read_text())
        change(document)
        file.write_text(json.dumps(document))
    else:
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)


UNET, VAE, TEXT = "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (UNET, lambda t: t.pop("conv_in.bias"), "1 missing (conv_in.bias)"),
        (
            UNET,
            lambda t: t.pop("mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight"),
            "1 missing (mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight)",
        ),
        (UNET, lambda t: t.update(surprise=np.zeros(3, np.float16)), "1 not known (surprise)"),
        (
            UNET,
            lambda t: t.update({"conv_in.weight": np.zeros((32, 4, 5, 5), np.float16)}),
            "conv_in.weight (32, 4, 5, 5), not (32, 4, 3, 3)",
        ),
        (VAE, lambda t: t.pop("quant_conv.weight"), "weights of vae do not fit its config.json: 1 missing"),
        (
            VAE,
            lambda t: t.update({"decoder.conv_out.bias": np.zeros(4, np.float16)}),
            "decoder.conv_out.bias (4,), not (3,)",
        ),
        (TEXT, lambda t: t.pop("final_layer_norm.weight"), "1 missing (text_model.final_layer_norm.weight)"),
    ],
    ids=[
        "unet missing",
        "half missing",
        "extra",
        "misshapen",
        "vae missing",
        "vae misshapen",
        "text missing",
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    engine: InferenceEngine, copy: Path, file: str, change: Change, words: str
) -> None:
    edit(copy / f"{file}.safetensors", change)
    with pytest.raises(IncompatibleWeightsError) as caught:
        engine.load_images(copy)
    assert words in str(caught.value)


def test_buffers_that_no_inference_reads_are_let_pass(engine: InferenceEngine, copy: Path) -> None:
    edit(copy / f"{TEXT}.safetensors", lambda t: t.update(position_ids=np.arange(77)[None]))
    with engine.load_images(copy) as model:
        assert model.image("a red circle", steps=1, seed=0).size == (64, 64)


def test_a_damaged_file_is_an_error_that_names_it(engine: InferenceEngine, copy: Path) -> None:
    file = copy / f"{VAE}.safetensors"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises((CorruptFileError, IncompatibleWeightsError)) as caught:
        engine.load_images(copy)
    assert "diffusion_pytorch_model" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("unet/config.json", lambda c: c.update(in_channels=5), "in_channels=5 for latents of 4"),
        ("unet/config.json", lambda c: c.update(class_embed_type="timestep"), "class_embed_type='timestep'"),
        ("unet/config.json", lambda c: c.update(down_block_types=["KDownBlock2D"] * 3), "KDownBlock2D"),
        ("vae/config.json", lambda c: c.update(shift_factor=0.1), "vae: shift_factor=0.1"),
        ("scheduler/scheduler_config.json", lambda c: c.update(prediction_type="flow"), "prediction_type"),
        ("scheduler/scheduler_config.json", lambda c: c.update(_class_name="FlowMatch"), "FlowMatch"),
        ("model_index.json", lambda c: c.update(text_encoder=["x", "T5EncoderModel"]), "T5EncoderModel"),
        ("model_index.json", lambda c: c.update(_class_name="KandinskyPipeline"), "KandinskyPipeline"),
    ],
    ids=["depth", "classes", "blocks", "vae", "prediction", "scheduler", "encoder", "pipeline"],
)
def test_what_is_not_implemented_is_refused_by_name_from_the_configuration_alone(
    engine: InferenceEngine, copy: Path, file: str, change: Change, words: str
) -> None:
    edit(copy / file, change)
    claim = engine.explain(copy).claim
    assert isinstance(claim.problem, UnsupportedArchitectureError)
    assert words in str(claim.problem)
    with pytest.raises(UnsupportedArchitectureError):
        engine.load_images(copy)


def test_stable_diffusion_3_in_diffusers_format_is_refused_with_a_hint_at_what_is_served(
    engine: InferenceEngine, copy: Path
) -> None:
    edit(copy / "model_index.json", lambda c: c.update(_class_name="StableDiffusion3Pipeline"))
    problem = engine.explain(copy).claim.problem
    assert isinstance(problem, UnsupportedArchitectureError)
    assert problem.hint is not None
    assert "argmaxinc/mlx-stable-diffusion-3-medium" in problem.hint
    assert "3.5" not in problem.hint.partition("argmaxinc")[0]


def test_pickled_weights_are_never_asked_for(engine: InferenceEngine, copy: Path) -> None:
    (copy / f"{UNET}.safetensors").rename(copy / f"{UNET}.bin")
    problem = engine.explain(copy).claim.problem
    assert isinstance(problem, IncompatibleWeightsError)
    assert "no safetensors weights for unet" in str(problem)


def test_of_two_precisions_only_the_half_is_fetched(engine: InferenceEngine, copy: Path) -> None:
    for part in ("unet", "vae"):
        file = copy / f"{part}/diffusion_pytorch_model.safetensors"
        shutil.copyfile(file, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    files = engine.explain(copy).claim.files
    assert [name for name in files if name.endswith(".safetensors")] == [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]


def test_weights_in_shards_are_put_together(engine: InferenceEngine, copy: Path, model: ImageHandle) -> None:
    file = copy / f"{UNET}.safetensors"
    tensors = load_file(file)
    file.unlink()
    for index in (0, 1):
        part = {name: value for number, (name, value) in enumerate(tensors.items()) if number % 2 == index}
        save_file(part, copy / f"{UNET}-0000{index + 1}-of-00002.safetensors")
    with engine.load_images(copy) as other:
        ours = other.image("a red circle", steps=2, seed=0).numpy()
    assert np.array_equal(ours, model.image("a red circle", steps=2, seed=0).numpy())


def test_convolutions_find_their_weights_in_order_in_memory(
    load_pipeline: Callable[..., Any], tiny_folder: Path
) -> None:
    from mlx.utils import tree_flatten

    pipeline = load_pipeline(tiny_folder)
    list(pipeline.warm())
    for part in ("unet", "vae"):
        with pipeline.parts.use(part) as network:
            for name, value in tree_flatten(network.parameters()):
                assert np.array(value, copy=False).flags.c_contiguous, name


@pytest.mark.feature("diffusion.quantize")
@pytest.mark.parametrize(("bits", "tolerance"), [(8, 6), (4, 40)])
def test_a_quantized_unet_is_smaller_and_makes_nearly_the_same_picture(
    engine: InferenceEngine, tiny_folder: Path, model: ImageHandle, bits: int, tolerance: int
) -> None:
    plain = model.image("a red circle", steps=4, guidance=3.0, seed=1)
    with engine.load_images(tiny_folder, features={"diffusion.quantize": bits}) as other:
        made = other.image("a red circle", steps=4, guidance=3.0, seed=1)
        assert other.info["unet_bits"] == bits
    difference = np.abs(made.numpy().astype(int) - plain.numpy().astype(int)).mean()
    assert 0 < difference <= tolerance
    assert made.recipe["bits"] == bits


@pytest.mark.feature("diffusion.keep_loaded")
def test_without_keeping_nothing_stays_between_pictures_and_the_peak_is_lower(
    tiny_folder: Path,
) -> None:
    import mlx.core as mx

    def measure(**features: object) -> tuple[int, int, Any]:
        """Bytes held after a picture, the peak while it was made, and the picture."""
        with InferenceEngine() as engine, engine.load_images(tiny_folder, features=features) as model:
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            # One latent: the networks, not their features, are what fills the memory.
            made = model.image("a red circle", size=(8, 8), steps=1, guidance=1.0, seed=1).numpy()
            peak = mx.get_peak_memory()
            list(model.stream(ImageRequest(prompt="", size=(8, 8), steps=1, guidance=1.0)))
            assert before >= 0
            return mx.get_active_memory(), peak, made

    base = mx.get_active_memory()
    held, peak, picture = measure()
    held_low, peak_low, picture_low = measure(**{"diffusion.keep_loaded": False})
    weights = 15_000_000  # 3.8 million parameters in float32
    assert held - base > 0.9 * weights
    assert held_low - base < 0.1 * weights
    # The UNet is 11 of the 15 MB; the text encoder and the autoencoder are not there beside it.
    assert peak_low - base < 0.9 * (peak - base)
    assert np.array_equal(picture, picture_low)


@pytest.mark.feature("diffusion.low_memory")
def test_one_request_can_ask_for_low_memory(model: ImageHandle) -> None:
    import mlx.core as mx

    full = model.image("a red circle", steps=2, seed=1)
    held = mx.get_active_memory()
    low = model.image("a red circle", steps=2, seed=1, low_memory=True)
    assert mx.get_active_memory() < held - 10_000_000
    assert np.array_equal(full.numpy(), low.numpy())
    again = model.image("a red circle", steps=2, seed=1)
    assert np.array_equal(full.numpy(), again.numpy())


def test_a_feature_that_is_off_is_not_silently_used(engine: InferenceEngine, tiny_folder: Path) -> None:
    off = {"diffusion.low_memory": False, "diffusion.image_to_image": False, "diffusion.lora": False}
    with engine.load_images(tiny_folder, features=off) as model:
        for values in ({"low_memory": True}, {"init_image": b""}, {"lora": (("x", 1.0),)}):
            with pytest.raises(FeatureUnavailableError):
                model.image("a red circle", **values)


@pytest.mark.feature("diffusion.dtype")
def test_half_precision_takes_half_the_memory_and_nearly_the_same_picture(
    engine: InferenceEngine, tiny_folder: Path
) -> None:
    import mlx.core as mx

    held, pictures = {}, {}
    for dtype in ("float32", "bfloat16"):
        base = mx.get_active_memory()
        with engine.load_images(tiny_folder, features={"diffusion.dtype": dtype}) as model:
            held[dtype] = mx.get_active_memory() - base
            pictures[dtype] = model.image("a large red circle", steps=2, seed=1).numpy().astype(float)
    # The autoencoder stays in float32.
    assert held["bfloat16"] < 0.75 * held["float32"]
    assert 0 < abs(pictures["float32"] - pictures["bfloat16"]).mean() < 8


@pytest.mark.feature("diffusion.backend")
def test_the_order_of_back_ends_can_be_overridden(engine: InferenceEngine, tiny_folder: Path) -> None:
    with engine.load_images(tiny_folder, features={"diffusion.backend": "sd"}) as model:
        assert model.info["backend"] == "sd"
        assert model.image("a red circle", steps=1, seed=0).numpy().shape == (64, 64, 3)
    with pytest.raises((UnsupportedArchitectureError, BackendUnavailableError)) as caught:
        engine.load_images(tiny_folder, features={"diffusion.backend": "diffusionkit"})
    assert "'diffusionkit' does not serve StableDiffusionPipeline" in str(caught.value)
