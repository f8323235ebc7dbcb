"""mflux against diffusers on tiny FLUX.1, FLUX.2 klein, Qwen-Image and Qwen-Image-Edit: `make test-mflux`."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_adapters as a
import tiny_flux1 as f1
import tiny_flux2 as f2
import tiny_kit as k
import tiny_qwen_edit as e
import tiny_qwen_image as q
from attrs import evolve
from mlxengine import (
    ImageHandle,
    ImagePreview,
    ImageReady,
    ImageRequest,
    InferenceEngine,
    IPAdapter,
    LoadContext,
    Progress,
)
from mlxengine.contract.features import Layer, Level
from mlxengine.errors import IncompatibleWeightsError, InvalidParameterError
from mlxengine_diffusion import plugin
from mlxengine_diffusion.backends._work import Job, Seen
from safetensors.numpy import load_file, save_file

TOKENIZER = Path(__file__).parents[4] / "tests" / "models" / "tiny-shapes-sd" / "tokenizer"
MFLUX = {"diffusion.backend": "mflux"}
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "flux1": lambda folder: f1.write(folder, TOKENIZER),
    "flux2": f2.write,
    "qwen_image": q.write,
    "qwen_edit": e.write,
}
DEV: dict[str, Any] = {"prompt": f1.PROMPT, "width": f1.SIDE, "height": f1.SIDE, "steps": f1.STEPS}
QWEN: dict[str, Any] = {"prompt": q.PROMPT, "width": q.SIDE, "height": q.SIDE, "steps": q.STEPS}
KLEIN: dict[str, Any] = {"prompt": f2.PROMPT, "width": f2.SIDE, "height": f2.SIDE, "steps": f2.STEPS}
PICTURES: dict[tuple[str, str], dict[str, Any]] = {
    ("flux1", "dev"): {**DEV, "guidance": f1.GUIDANCE},
    ("flux1", "schnell"): {**DEV, "guidance": 0.0},
    **{("flux2", name): {**KLEIN, "guidance": guidance} for name, guidance in f2.GUIDANCES.items()},
    ("qwen_image", "plain"): {**QWEN, "guidance": q.GUIDANCES["plain"]},
    ("qwen_image", "guided"): {**QWEN, "guidance": q.GUIDANCES["guided"], "negative": q.NEGATIVE},
}


def pipeline(folder: Path) -> Any:
    with InferenceEngine() as engine:
        card = engine.resolve(folder)
        context = LoadContext(
            path=folder,
            configuration=card.configuration,
            features=engine.features.view(Layer(Level.LOAD, MFLUX)),
            device=engine.device,
        )
        return plugin.load_model(card, context).model.pipeline


@pytest.mark.parametrize(("family", "name"), PICTURES)
def test_the_picture_is_that_of_diffusers(tmp_path: Path, family: str, name: str) -> None:
    import mlx.core as mx

    write = FAMILIES[family]
    folder = f1.write(tmp_path / "x", TOKENIZER, schnell=True) if name == "schnell" else write(tmp_path / "x")
    job = Job(**{"negative": None, "seed": 0, "scheduler": "", **PICTURES[family, name]})
    noise = f2.noise() if family == "flux2" else k.packed(k.noise())
    ours = k.pixels(pipeline(folder), job, mx.array(noise))
    reference = load_file(k.DATA / f"{family}.pictures.safetensors")[name].astype(int)
    difference = np.abs(ours - reference)
    print(f"{family} {name}: difference {difference.max()}, mean {difference.mean():.5f}")
    assert difference.max() <= 2


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that are edited are scaled to fewer pixels, as those of the reference were."""
    from mlxengine_diffusion.backends.mflux import qwen_edit

    monkeypatch.setattr(qwen_edit, "AREA", e.AREA)
    monkeypatch.setattr(qwen_edit, "_SHOWN_AREA", e.SHOWN_AREA)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("guidance", [1.0, e.GUIDANCE])
@pytest.mark.parametrize("kind", e.KINDS)
def test_pictures_are_edited_as_diffusers_edits_them(tmp_path: Path, kind: str, guidance: float) -> None:
    import mlx.core as mx

    job = Job(
        prompt=e.PROMPT,
        negative=e.NEGATIVE if guidance > 1 else None,
        width=e.SIZE[0],
        height=e.SIZE[1],
        steps=e.STEPS,
        guidance=guidance,
        seed=0,
        scheduler="",
        references=e.pictures()[kind],
    )
    made = pipeline(e.write(tmp_path / "x", kind))
    ours = k.pixels(made, job, mx.array(e.noise()))
    name = "guided" if guidance > 1 else "plain"
    reference = load_file(k.DATA / "qwen_edit.pictures.safetensors")[f"{kind} {name}"].astype(int)
    difference = np.abs(ours - reference)
    print(f"qwen_edit {kind} {name}: difference {difference.max()}, mean {difference.mean():.5f}")
    assert difference.max() <= 2
    other = k.pixels(made, evolve(job, references=e.pictures()[kind][::-1] * 2), mx.array(e.noise()))
    assert kind == "one" or np.abs(other - reference).max() > 10


@pytest.mark.usefixtures("small")
def test_what_is_edited_is_a_start_or_a_reference_and_gives_its_ratio(tmp_path: Path) -> None:
    (picture,) = e.pictures()["one"]
    with InferenceEngine() as engine:
        one = engine.load_images(e.write(tmp_path / "one"), features=MFLUX)
        asked: dict[str, Any] = {"steps": 1, "seed": 1}
        made = one.image("a", init_image=picture, **asked)
        assert made.size == e.SIZE
        assert np.array_equal(made.numpy(), one.image("a", references=(picture,), **asked).numpy())
        started = one.image("a", init_image=picture, strength=1.0, size=e.SIZE, **asked)
        assert not np.array_equal(made.numpy(), started.numpy())
        with pytest.raises(InvalidParameterError, match="at 1 at most"):
            one.image("a", references=(picture, picture), **asked)
        two = engine.load_images(e.write(tmp_path / "two", "two"), features=MFLUX)
        shown = e.pictures()["two"]
        several = two.image("a", references=shown, **asked)
        assert not np.array_equal(several.numpy(), two.image("a", references=shown[1:], **asked).numpy())
        blind = e.write(tmp_path / "blind")
        (blind / "processor" / "preprocessor_config.json").unlink()
        with pytest.raises(IncompatibleWeightsError, match="preprocessor_config"):
            engine.load_images(blind, features=MFLUX)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageHandle]:
    folder = FAMILIES[request.param](tmp_path_factory.mktemp(request.param) / "model")
    with InferenceEngine() as engine, engine.load_images(folder, features=MFLUX) as handle:
        yield handle


def test_it_is_served_by_the_engine_with_the_same_events(model: ImageHandle) -> None:
    assert model.info["backend"] == "mflux"
    request = ImageRequest(prompt="a red circle", size=(64, 96), steps=2, seed=1, preview_every=1)
    events = list(model.stream(request))
    assert [event.done for event in events if isinstance(event, Progress)] == [1, 2]
    assert [event.pixels.shape for event in events if isinstance(event, ImagePreview)] == [(48, 32, 3)]
    ready = [event for event in events if isinstance(event, ImageReady)]
    assert ready[0].pixels.shape == (96, 64, 3)
    again = model.image("a red circle", size=(64, 96), steps=2, seed=1, low_memory=True)
    assert np.array_equal(again.numpy(), ready[0].pixels.numpy())


def test_a_long_prompt_is_cut_and_what_was_left_out_is_reported(model: ImageHandle) -> None:
    made = model.image("z " * 1100 + "y", size=(64, 64), steps=1, seed=1)
    assert "zy" in made.recipe["truncated"].replace(" ", "")


def test_what_it_cannot_do_is_refused(model: ImageHandle) -> None:
    with pytest.raises(InvalidParameterError, match="multiple of 16"):
        model.image("a", size=(72, 64))


@pytest.mark.parametrize(
    ("family", "part", "name"),
    [
        ("flux1", "transformer", "time_text_embed.guidance_embedder.linear_1.bias"),
        ("flux1", "text_encoder", "text_model.final_layer_norm.weight"),
        ("flux1", "text_encoder_2", "encoder.block.1.layer.0.SelfAttention.q.weight"),
        ("flux1", "vae", "decoder.conv_out.bias"),
        ("flux2", "transformer", "x_embedder.weight"),
        ("flux2", "text_encoder", "model.layers.3.mlp.up_proj.weight"),
        ("flux2", "vae", "decoder.conv_out.bias"),
        ("qwen_image", "transformer", "transformer_blocks.1.img_mod.1.bias"),
        ("qwen_image", "text_encoder", "model.norm.weight"),
        ("qwen_edit", "text_encoder", "visual.merger.mlp.2.weight"),
        ("qwen_edit", "text_encoder", "visual.patch_embed.proj.weight"),
        ("qwen_image", "vae", "decoder.up_blocks.1.resnets.0.norm1.gamma"),
    ],
)
def test_a_missing_strange_or_misshapen_tensor_is_an_error_that_names_it(
    tmp_path: Path, family: str, part: str, name: str
) -> None:
    folder = FAMILIES[family](tmp_path / "model")
    file = folder / part / "model.safetensors"
    tensors = load_file(file)
    without = {key: value for key, value in tensors.items() if key != name}
    with InferenceEngine() as engine:
        for wrong, named in (
            (without, name),
            ({**tensors, "stranger.weight": np.ones(3, np.float32)}, "stranger.weight"),
            ({**without, name: np.repeat(tensors[name], 2, axis=0)}, name),
        ):
            save_file(wrong, file)
            with pytest.raises(IncompatibleWeightsError) as caught:
                engine.load_images(folder, features=MFLUX)
            assert named in str(caught.value)


ADAPTED: dict[str, tuple[Any, float]] = {
    "flux1": (f1, f1.GUIDANCE),
    "flux2": (f2, 1.0),
    "qwen_image": (q, 1.0),
}
FORMS = [(name, form, name) for name in ADAPTED for form in a.FORMS] + [("flux1", "xlabs", "xlabs")]


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {name: pipeline(FAMILIES[name](tmp_path_factory.mktemp(name) / "x")) for name in ADAPTED}


MADE = [(name, change) for name in ADAPTED for change in ("from a picture", "a part anew")]


@pytest.mark.parametrize(
    ("family", "change"), [*MADE, ("flux2", "looking at two"), ("flux1", "looking at one"), ("flux1", "fill")]
)
def test_a_picture_from_pictures_is_that_of_diffusers(
    pipelines: dict[str, Any], tmp_path: Path, family: str, change: str
) -> None:
    import mlx.core as mx

    module, guidance = ADAPTED[family]
    more = {"init": a.start(), "mask": a.mask()} if change == "fill" else a.changes()[change]
    made = pipelines[family]
    if change in f1.PIPELINES:
        made = pipeline(f1.write(tmp_path / "x", TOKENIZER, kind=change))
    ours = k.pixels(made, a.job(module, guidance, **more), mx.array(a.noise(family)))
    reference = load_file(k.DATA / "flow.pictures.safetensors")[f"{family}/{change}"].astype(int)
    difference = np.abs(ours - reference).max()
    print(f"{family} {change}: difference {difference}")
    assert difference <= 2


@pytest.mark.parametrize("label", f1.REDUX)
def test_a_picture_that_counts_as_a_prompt_makes_that_of_diffusers(
    pipelines: dict[str, Any], tmp_path: Path, label: str
) -> None:
    import mlx.core as mx

    prompt, strengths = f1.REDUX[label]
    folder = f1.write_redux(tmp_path / "redux")
    told = tuple(
        Seen(path=folder, pixels=pixels, strength=strength)
        for pixels, strength in zip((a.other(), a.start()), strengths, strict=False)
    )
    asked = evolve(a.job(f1, f1.GUIDANCE, ip_adapters=told), prompt=prompt)
    noise = mx.array(a.noise("flux1"))
    ours = k.pixels(pipelines["flux1"], asked, noise)
    reference = load_file(k.DATA / "redux.pictures.safetensors")[label].astype(int)
    difference = np.abs(ours - reference).max()
    print(f"redux {label}: difference {difference}")
    assert difference <= 2
    assert np.array_equal(k.pixels(pipelines["flux1"], evolve(asked, low_memory=True), noise), ours)
    plain = k.pixels(pipelines["flux1"], evolve(asked, ip_adapters=()), noise)
    assert np.abs(plain - reference).max() > 20


def test_redux_is_asked_for_as_an_ip_adapter_is(tmp_path: Path) -> None:
    folder = f1.write_redux(tmp_path / "redux")
    with InferenceEngine() as engine:
        model = engine.load_images(f1.write(tmp_path / "x", TOKENIZER), features=MFLUX)
        assert "ip_adapter" in model.capabilities
        asked: dict[str, Any] = {"size": (64, 64), "steps": 1, "seed": 1}
        told = IPAdapter(source=str(folder), image=a.other(), strength=0.8)
        made = model.image("a red circle", ip_adapters=(told,), **asked)
        assert made.recipe["ip_adapters"][0][:2] == (str(folder), 0.8)
        assert not np.array_equal(made.numpy(), model.image("a red circle", **asked).numpy())


@pytest.mark.parametrize(("family", "form", "stored"), FORMS)
def test_every_form_of_an_adapters_keys_makes_the_picture_of_diffusers(
    pipelines: dict[str, Any], tmp_path: Path, family: str, form: str, stored: str
) -> None:
    import mlx.core as mx

    tensors = a.xlabs() if form == "xlabs" else a.FORMS[form](family)
    save_file(tensors, tmp_path / "x.safetensors")
    module, guidance = ADAPTED[family]
    noise = mx.array(a.noise(family))
    ours = k.pixels(
        pipelines[family], a.job(module, guidance, lora=((tmp_path / "x.safetensors", 1.0),)), noise
    )
    reference = load_file(k.DATA / "flow.pictures.safetensors")[f"{stored}/lora"].astype(int)
    difference = np.abs(ours - reference).max()
    print(f"{family} {form}: difference {difference}")
    assert difference <= 2
    assert np.abs(k.pixels(pipelines[family], a.job(module, guidance), noise) - reference).max() > 50


@pytest.mark.parametrize("family", ["flux1", "flux2", "qwen_image"])
def test_where_weights_are_in_half_precision_everything_is_computed_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    import mlx.core as mx
    from mlxengine_diffusion.backends import _networks

    for name in ("flux1", "qwen_image"):  # they have it by name
        importlib.import_module(f"mlxengine_diffusion.backends.mflux.{name}")
        monkeypatch.setattr(f"mlxengine_diffusion.backends.mflux.{name}.usual_dtype", lambda: mx.bfloat16)
    monkeypatch.setattr(_networks, "usual_dtype", lambda: mx.bfloat16)
    made = pipeline(FAMILIES[family](tmp_path / "x"))
    found: dict[str, set[Any]] = {}

    def noted(network: Any, name: str) -> None:
        usual = type(network).__call__

        def call(self: Any, *values: Any, **named: Any) -> Any:
            answer = usual(self, *values, **named)
            rows = answer if isinstance(answer, tuple) else (answer,)
            found.setdefault(name, set()).update(item.dtype for item in rows if isinstance(item, mx.array))
            return answer

        network.__class__ = type("Noted", (type(network),), {"__call__": call})

    parts = ("transformer", *(part for part in made.parts.names if part.startswith("text_encoder")))
    with contextlib.ExitStack() as stack:
        for part in parts:
            network = stack.enter_context(made.parts.use(part))
            noted(network, part)
            for name in ("transformer_blocks", "single_transformer_blocks", "t5_blocks", "layers"):
                for block in network.get(name, []):
                    noted(block, f"{part}.{name}")
        module, guidance = ADAPTED[family]
        k.pixels(made, a.job(module, guidance), mx.array(a.noise(family)))
    assert {f"{part}" for part in parts} <= found.keys() | {"text_encoder"}
    assert "transformer.transformer_blocks" in found
    assert set().union(*found.values()) == {mx.bfloat16}, found


@pytest.mark.parametrize("family", ADAPTED)
def test_blocks_that_wait_as_on_a_gpu_make_the_same_picture(
    pipelines: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    import mlx.core as mx
    from mlxengine.toolkit import launching

    with monkeypatch.context() as patch:
        patch.setattr(launching, "on_gpu", lambda: True)
        waits = pipeline(FAMILIES[family](tmp_path / "x"))
    module, guidance = ADAPTED[family]
    asked, noise = a.job(module, guidance), mx.array(a.noise(family))
    usual = k.pixels(pipelines[family], asked, noise)
    launched: list[Any] = []
    launch = mx.async_eval
    monkeypatch.setattr(mx, "async_eval", lambda made: launched.append(1) or launch(made))
    assert np.array_equal(k.pixels(waits, asked, noise), usual)
    assert launched


def test_t5_is_adapted_and_what_it_does_not_have_is_refused(
    pipelines: dict[str, Any], tmp_path: Path
) -> None:
    import mlx.core as mx

    def picture(layer: str) -> Any:
        numbers = np.random.RandomState(0)
        tensors = {
            f"lora_te3_{layer}.lora_down.weight": numbers.standard_normal((4, 32)).astype(np.float32),
            f"lora_te3_{layer}.lora_up.weight": numbers.standard_normal((32, 4)).astype(np.float32),
        }
        save_file(tensors, tmp_path / "x.safetensors")
        job = a.job(f1, f1.GUIDANCE, lora=((tmp_path / "x.safetensors", 1.0),))
        return k.pixels(pipelines["flux1"], job, mx.array(a.noise("flux1")))

    plain = k.pixels(pipelines["flux1"], a.job(f1, f1.GUIDANCE), mx.array(a.noise("flux1")))
    assert np.abs(picture("encoder_block_1_layer_0_SelfAttention_v") - plain).max() > 5
    with pytest.raises(IncompatibleWeightsError, match="block_9"):
        picture("encoder_block_9_layer_0_SelfAttention_v")
