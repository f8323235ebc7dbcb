"""Memory: the autoencoder on tiles, parts one after the other, and estimates beside what was measured."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import geometry as g
import numpy as np
import pytest
from mlxengine import Device, ImageRequest, InferenceEngine, PictureWorkload, Progress
from mlxengine.errors import FeatureUnavailableError, InsufficientMemoryError
from safetensors.numpy import load_file

ALLOWED, ALLOWED_BYTES = 0.15, 4 << 20
SIZE, LARGE = (192, 128), (256, 192)  # larger ones take a CPU long
FLAGS: dict[str, dict[str, object]] = {
    "whole": {},
    "tiles": {"diffusion.vae_tiling": "on"},
    "tiles and stages": {"diffusion.vae_tiling": "on", "diffusion.keep_loaded": False},
}


def finished(walk: Generator[None, None, Any]) -> Any:
    while True:
        try:
            next(walk)
        except StopIteration as end:
            return end.value


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    return load_file(g.DATA / "size.components.safetensors")


@pytest.fixture(scope="module")
def vae(
    tmp_path_factory: pytest.TempPathFactory, load_pipeline: Callable[..., Any], tiny_folder: Path
) -> Any:
    scheduler = g.scheduler_config("euler", "epsilon", "leading")
    folder = g.write_repository(
        "sd1", tmp_path_factory.mktemp("sd1") / "model", tiny_folder / "tokenizer", scheduler
    )
    with load_pipeline(folder).parts.use("vae") as made:
        yield made


def test_tiles_are_decoded_and_joined_as_diffusers_does(vae: Any, stored: dict[str, Any]) -> None:
    import mlx.core as mx
    from mlxengine_diffusion.sd.autoencoder import decoded

    latents = mx.array(g.random("tiles/latents", (1, *g.TILED, 4)))
    made = np.array(finished(decoded(vae, latents, tiled=True)))
    assert np.abs(made - stored["decoded"][0]).max() <= 1e-4
    whole = np.array(finished(decoded(vae, latents, tiled=False)))
    assert np.abs(whole - stored["decoded"][0]).max() > 0.01


def test_tiles_are_encoded_and_joined_as_diffusers_does(vae: Any, stored: dict[str, Any]) -> None:
    import mlx.core as mx
    from mlxengine_diffusion.sd.autoencoder import encoded

    sides = [side * g.PIXELS_PER_LATENT for side in g.TILED]
    pixels = mx.array(np.tanh(g.random("tiles/pixels", (1, *sides, 3))))
    made = np.array(finished(encoded(vae, pixels, tiled=True)))
    assert np.abs(made - stored["encoded"]).max() <= 1e-4
    whole = np.array(finished(encoded(vae, pixels, tiled=False)))
    assert np.abs(whole - stored["encoded"]).max() > 0.01


def test_a_picture_of_one_tile_is_the_same_with_tiles(vae: Any) -> None:
    import mlx.core as mx
    from mlxengine_diffusion.sd.autoencoder import decoded

    latents = mx.array(g.noise(0))
    one, other = (np.array(finished(decoded(vae, latents, tiled=tiled))) for tiled in (True, False))
    assert np.array_equal(one, other)


def _peak(
    engine: InferenceEngine, folder: Path, size: tuple[int, int], flags: dict[str, object]
) -> tuple[int, int]:
    """Bytes that a picture takes with the model: by the estimate, and measured."""
    import mlx.core as mx

    gc.collect()
    base = mx.get_active_memory()
    with engine.load_images(folder, features=flags) as model:
        mx.reset_peak_memory()
        model.image("a red circle", size=size, steps=1, guidance=3.0, seed=0)
        measured = mx.get_peak_memory() - base
    workload = PictureWorkload(
        size=size,
        backend=engine.device.backend,
        vae_tiling="diffusion.vae_tiling" in flags,
        low_memory="diffusion.keep_loaded" in flags,
    )
    report = engine.fit(folder, workload)
    return report.estimate.total, measured


@pytest.mark.feature("diffusion.vae_tiling")
@pytest.mark.parametrize("size", [SIZE, pytest.param(LARGE, marks=pytest.mark.slow)], ids=str)
def test_a_picture_takes_what_was_estimated_and_a_third_less_with_tiles_and_stages(
    engine: InferenceEngine, tiny_folder: Path, size: tuple[int, int]
) -> None:
    if engine.device.backend != "cpu":
        size = LARGE
    found = {name: _peak(engine, tiny_folder, size, flags) for name, flags in FLAGS.items()}
    for name, (estimated, measured) in found.items():
        assert abs(estimated - measured) <= ALLOWED * measured + ALLOWED_BYTES, (name, found)
    assert found["tiles and stages"][1] <= 2 / 3 * found["whole"][1], found


_HEADS, _PLACES, _WORDS = 6, 24, 128


def _flux2() -> tuple[Any, dict[str, Any], int]:
    from mlx_vlm.models.flux2.transformer.transformer import Flux2Transformer
    from mlxengine_diffusion.backends._flux2 import COPIES, _places, adjust

    config = {
        "num_layers": 1,
        "num_single_layers": 3,
        "attention_head_dim": 128,
        "num_attention_heads": _HEADS,
        "joint_attention_dim": 384,
    }
    fixed: dict[str, Any] = {"in_channels": 128, "axes_dims_rope": (32, 32, 32, 32), "guidance_embeds": False}
    network = Flux2Transformer(**config, **fixed)
    adjust(network)
    seen, told = g.random("seen", (1, _PLACES**2, 128)), g.random("told", (1, _WORDS, 384))
    where = {"img_ids": _places(1, _PLACES, _PLACES, 1), "txt_ids": _places(1, 1, 1, _WORDS)}

    def run(mx: Any) -> Any:
        moment = {"timestep": mx.array(500.0), "guidance": None}
        return network(hidden_states=mx.array(seen), encoder_hidden_states=mx.array(told), **where, **moment)

    return (network, run), config, COPIES


def _z_image() -> tuple[Any, dict[str, Any], int]:
    from mlx_vlm.models.z_image.config import ZImageTransformerConfig
    from mlx_vlm.models.z_image.transformer import ZImageTransformer
    from mlxengine_diffusion.backends.mlx_vlm import adjust

    config = {
        "dim": 128 * _HEADS,
        "n_layers": 3,
        "n_refiner_layers": 1,
        "n_heads": _HEADS,
        "n_kv_heads": _HEADS,
        "cap_feat_dim": 256,
        "axes_dims": [32, 48, 48],
        "axes_lens": [1536, 512, 512],
    }
    network = ZImageTransformer(ZImageTransformerConfig.from_dict(config))
    adjust(network)
    seen, told = g.random("seen", (1, 16, 1, 2 * _PLACES, 2 * _PLACES)), g.random("told", (1, _WORDS, 256))
    return (network, lambda mx: network(mx.array(seen), mx.array([0.5]), mx.array(told))), config, 20


@pytest.mark.parametrize("family", [_flux2, _z_image], ids=["flux2", "z_image"])
def test_a_transformer_takes_what_was_estimated(
    family: Callable[[], tuple[Any, dict[str, Any], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx
    from mlx_vlm.models.flux2.constants import ModelConfig
    from mlxengine_diffusion.backends import _memory

    if mx.default_device().type != mx.DeviceType.cpu:
        return  # how far a GPU runs ahead is bounded, not foretold
    monkeypatch.setattr(ModelConfig, "precision", mx.float32)
    (network, run), config, copies = family()
    mx.eval(network.parameters())
    base = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(run(mx))
    measured = mx.get_peak_memory() - base
    shape = _memory.Shape(width=16 * _PLACES, height=16 * _PLACES, on_cpu=True)
    estimated = _memory.transformer(config, _PLACES**2 + _WORDS, shape, 4, copies)
    assert abs(estimated - measured) <= ALLOWED * measured, (estimated, measured)


@pytest.mark.parametrize(
    ("flag", "text", "value"), [("diffusion.quantize", "4", 4), ("diffusion.keep_loaded", "off", False)]
)
def test_a_flag_in_words_is_reckoned_as_what_it_means(
    engine: InferenceEngine, tiny_folder: Path, flag: str, text: str, value: object
) -> None:
    from mlxengine_diffusion.models import DiffusionConfiguration

    plain, worded, valued = (
        engine.fit(DiffusionConfiguration(id=str(tiny_folder), features=given), PictureWorkload()).estimate
        for given in ((), ((flag, text),), ((flag, value),))
    )
    assert worded == valued != plain


@pytest.mark.parametrize(
    "flags",
    [{"diffusion.quantize": 4}, {"diffusion.dtype": "float16"}, {"diffusion.keep_loaded": False}],
    ids=str,
)
def test_a_flag_of_the_engine_is_reckoned_as_one_of_the_model(
    tiny_folder: Path, flags: dict[str, object]
) -> None:
    from mlxengine_diffusion.models import DiffusionConfiguration

    if "diffusion.dtype" in flags and Device.detect().backend != "cpu":
        flags = {"diffusion.dtype": "float32"}  # the other one is usual there
    with InferenceEngine(features=flags) as engine, InferenceEngine() as plain:
        wide, usual = (item.fit(tiny_folder, PictureWorkload()).estimate for item in (engine, plain))
        own = DiffusionConfiguration(id=str(tiny_folder), features=tuple(flags.items()))
        assert wide == plain.fit(own, PictureWorkload()).estimate != usual
        back = DiffusionConfiguration(
            id=str(tiny_folder),
            features=(
                ("diffusion.quantize", 0),
                ("diffusion.dtype", "auto"),
                ("diffusion.keep_loaded", True),
            ),
        )
        assert engine.fit(back, PictureWorkload()).estimate == usual


def test_what_requests_bring_along_can_be_told(engine: InferenceEngine, tiny_folder: Path) -> None:
    given = [option for option in PictureWorkload.options() if option.flag == "--beside"]
    size = given[0].type("3MB")
    assert size == 3_000_000
    with pytest.raises(ValueError, match="amount of memory"):
        given[0].type("much")
    plain, more = (engine.fit(tiny_folder, PictureWorkload(beside=beside)).estimate for beside in (0, size))
    assert more.total - plain.total == size


@pytest.fixture
def budget(engine: InferenceEngine, tiny_folder: Path) -> Callable[..., int]:
    """Bytes that the tiny model takes: ``budget(vae_tiling=…, low_memory=…)``."""

    def total(**asked: bool) -> int:
        workload = PictureWorkload(size=SIZE, backend=engine.device.backend, **asked)
        return engine.fit(tiny_folder, workload).estimate.total

    return total


@pytest.mark.parametrize(
    ("room", "value", "kept", "words"),
    [
        ({"vae_tiling": True}, "on", True, "an autoencoder that works on tiles"),
        ({"vae_tiling": True, "low_memory": True}, "on", False, "parts that are read one after the other"),
    ],
    ids=["tiles", "stages"],
)
def test_where_memory_is_short_a_model_is_loaded_with_tiles_then_with_stages(
    tiny_folder: Path, budget: Callable[..., int], room: dict[str, bool], value: str, kept: bool, words: str
) -> None:
    from mlxengine_diffusion.models import DiffusionConfiguration

    wanted = DiffusionConfiguration(id=str(tiny_folder), image_size=SIZE)
    with InferenceEngine(memory_budget=budget(**room) + 1000) as engine:
        model = engine.load_images(wanted)
        told = model.explain("diffusion.vae_tiling")
        assert (told.value, str(told.source)) == (value, "memory")
        assert model.explain("diffusion.keep_loaded").value is kept
        assert words in model.info["degraded"]
        picture = model.image("a red circle", steps=1, guidance=3.0, seed=0)
        assert picture.recipe["vae_tiling"] is True
    fixed = {"diffusion.vae_tiling": "off", "diffusion.keep_loaded": True}
    refused = pytest.raises(InsufficientMemoryError)
    with InferenceEngine(memory_budget=budget(**room) + 1000) as engine, refused:
        engine.load_images(wanted, features=fixed)


def test_a_picture_too_large_for_the_memory_that_is_left_is_decoded_in_tiles(
    tiny_folder: Path, budget: Callable[..., int]
) -> None:
    with InferenceEngine(memory_budget=budget() - 1000) as engine:
        model = engine.load_images(tiny_folder)
        small = model.image("a red circle", steps=1, guidance=3.0, seed=0)
        large = model.image("a red circle", size=SIZE, steps=1, guidance=3.0, seed=0)
        whole = model.image("a red circle", size=SIZE, steps=1, guidance=3.0, seed=0, vae_tiling=False)
    assert (small.recipe["vae_tiling"], large.recipe["vae_tiling"], whole.recipe["vae_tiling"]) == (
        None,
        True,
        None,
    )
    assert not np.array_equal(large.numpy(), whole.numpy())


def test_a_model_that_decodes_whole_pictures_refuses_tiles(
    load_pipeline: Callable[..., Any], tiny_folder: Path
) -> None:
    from attrs import evolve
    from mlxengine import RunContext
    from mlxengine_diffusion._plan import plan

    pipeline = load_pipeline(tiny_folder)
    pipeline.abilities = evolve(pipeline.abilities, vae_tiling=False)
    with InferenceEngine() as engine:
        context = RunContext(features=engine.features.view())
        with pytest.raises(FeatureUnavailableError, match="decodes whole pictures"):
            plan(pipeline, ImageRequest(prompt="a", vae_tiling=True), context)


def _steps(events: list[Any]) -> list[tuple[int, int]]:
    return [(event.index, event.done) for event in events if isinstance(event, Progress)]


@pytest.mark.parametrize("scheduler", ["euler_ancestral", "dpmpp_sde"])
@pytest.mark.parametrize("given", [{}, {"init_image": g.picture(), "strength": 0.7}], ids=["text", "picture"])
def test_pictures_that_are_made_at_once_are_those_of_their_seeds(
    shared_engine: InferenceEngine, tiny_folder: Path, scheduler: str, given: dict[str, Any]
) -> None:
    asked = {"size": (48, 32), "steps": 3, "guidance": 3.0, "scheduler": scheduler, **given}
    with shared_engine.load_images(tiny_folder) as model:
        together = model.image("a red circle", seed=5, n=3, **asked)
        alone = [model.image("a red circle", seed=5 + place, **asked) for place in range(3)]
    for one, other in zip(together, alone, strict=True):
        assert one.recipe == other.recipe
        assert np.abs(one.numpy().astype(int) - other.numpy()).max() <= 1
    assert not np.array_equal(together[0].numpy(), together[1].numpy())


def test_a_hole_is_filled_in_several_pictures_at_once(
    shared_engine: InferenceEngine, tiny_folder: Path
) -> None:
    asked = {"init_image": g.picture(), "mask": g.mask(), "steps": 3, "guidance": 3.0}
    with shared_engine.load_images(tiny_folder) as model:
        together = model.image("a red circle", seed=5, n=2, **asked)
        alone = [model.image("a red circle", seed=5 + place, **asked) for place in range(2)]
    for one, other in zip(together, alone, strict=True):
        assert np.abs(one.numpy().astype(int) - other.numpy()).max() <= 1


def test_pictures_are_made_one_after_another_where_there_is_no_room_for_all(
    tiny_folder: Path,
) -> None:
    size = (128, 128)
    features = {"diffusion.dtype": "float32"}  # in half precision the autoencoder takes more than three UNets
    request = ImageRequest(prompt="a red circle", size=size, steps=2, n=3, guidance=3.0, seed=0)
    with InferenceEngine(features=features) as engine:
        total = {n: engine.fit(tiny_folder, PictureWorkload(size=size, n=n)).estimate for n in (1, 3)}
    assert total[3].total > total[1].total + (1 << 20)
    at_once, by_turns = [], []
    for estimate, found in ((total[3], at_once), (total[1], by_turns)):
        with InferenceEngine(memory_budget=estimate.total + (1 << 20), features=features) as other:
            found += _steps(list(other.load_images(tiny_folder).stream(request)))
    assert at_once == [(index, done) for done in (1, 2) for index in range(3)]
    assert by_turns == [(index, done) for index in range(3) for done in (1, 2)]
