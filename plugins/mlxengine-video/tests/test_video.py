"""Videos through the engine: what comes in which order, what is refused, and who is served meanwhile."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve
from mlxengine import (
    AsyncInferenceEngine,
    Event,
    Finished,
    InferenceEngine,
    ModelConfiguration,
    Progress,
    Wanted,
)
from mlxengine.errors import (
    InsufficientMemoryError,
    InvalidParameterError,
    NoPluginForModelError,
    UnsupportedArchitectureError,
    UnsupportedInputError,
)
from mlxengine_video import (
    AsyncVideoHandle,
    FrameReady,
    VideoHandle,
    VideoPlanned,
    VideoReady,
    VideoRequest,
    VideoUsage,
    VideoWorkload,
)
from mlxengine_video.models import VideoConfiguration

SMALL: Mapping[str, Any] = {"size": (48, 32), "frames": 9, "steps": 3, "guidance": 3.0, "seed": 1}
ROOT = Path(__file__).parents[3]


def short(folder: Path) -> VideoConfiguration:
    """The model in a folder with room for short videos: at its usual ones' size it would take gigabytes."""
    return VideoConfiguration(id=str(folder), video_size=(48, 32), frames=9)


@pytest.fixture(scope="module")
def model(engine: InferenceEngine, tiny: Path) -> VideoHandle:
    return engine.load_as(VideoHandle, short(tiny))


@pytest.mark.feature("video.text_to_video")
def test_steps_then_frames_in_order_then_one_end_with_what_was_used(model: VideoHandle) -> None:
    events = [*model.stream(VideoRequest(prompt="a red fox", **SMALL))]
    kinds = [type(event) for event in events]
    assert kinds == [VideoPlanned, *[Progress] * 3, *[FrameReady] * 9, VideoReady, Finished]
    planned, ready, last = events[0], events[-2], events[-1]
    assert isinstance(planned, VideoPlanned)
    assert isinstance(ready, VideoReady)
    assert isinstance(last, Finished)
    assert (planned.width, planned.height, planned.frames, planned.fps) == (48, 32, 9, 16)
    frames = [event for event in events if isinstance(event, FrameReady)]
    assert [frame.number for frame in frames] == [*range(9)]
    assert {frame.pixels.shape for frame in frames} == {(32, 48, 3)}
    assert last.usage == VideoUsage(steps=3, frames=9)
    assert ready.recipe == planned.recipe
    assert ready.recipe["seed"] == 1
    assert "mlx-video" in str(ready.recipe["library"])


def test_the_same_seed_makes_the_same_video_and_another_seed_another(model: VideoHandle) -> None:
    first, again = (model.video("a red fox", **SMALL).numpy() for _ in range(2))
    other = model.video("a red fox", **{**SMALL, "seed": 2}).numpy()
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.feature("video.image_to_video")
def test_a_picture_is_scaled_to_the_size_and_is_nearly_the_first_frame(
    engine: InferenceEngine, seeing: Path
) -> None:
    with engine.load_as(VideoHandle, short(seeing)) as model:
        assert "image_to_video" in model.capabilities
        left = np.zeros((90, 160, 3), np.uint8)
        left[:, 80:] = 255
        asked: dict[str, Any] = {"prompt": "x", "size": (64, 32), "frames": 5, "steps": 1, "seed": 0}
        events = [*model.stream(VideoRequest(image=left, **asked))]
        turned = [*model.stream(VideoRequest(image=left[:, ::-1], **asked))]
    first, other = (next(e for e in found if isinstance(e, FrameReady)) for found in (events, turned))
    assert first.pixels.shape == (32, 64, 3)
    assert not np.array_equal(first.pixels.numpy(), other.pixels.numpy())
    planned, its = events[0], turned[0]
    assert isinstance(planned, VideoPlanned)
    assert isinstance(its, VideoPlanned)
    assert planned.recipe["image_sha256"] != its.recipe["image_sha256"]


def test_without_a_size_a_video_has_the_sides_of_its_picture(seeing: Path) -> None:
    from mlxengine_video._plan import Defaults, plan
    from mlxengine_video.wan import read_shape

    shape = read_shape(seeing)
    usual = Defaults(size=(1280, 704), frames=5, fps=24, steps=1, guidance=1)
    tall = plan(VideoRequest(prompt="x", image=np.zeros((800, 400, 3), np.uint8)), shape, usual)
    assert tall.size == (672, 1344)
    assert tall.picture is not None
    assert tall.picture.shape == (1344, 672, 3)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": 5}, "text"),
        ({"prompt": "\ud800"}, "surrogate"),
        ({"negative": 5}, "negative"),
        ({"size": (48,)}, "size"),
        ({"size": (0, 32)}, "width"),
        ({"size": (48, 10**6)}, "height"),
        ({"frames": 0}, "frames"),
        ({"frames": 5.0}, "frames"),
        ({"fps": 0}, "fps"),
        ({"fps": float("nan")}, "fps"),
        ({"steps": 0}, "steps"),
        ({"steps": True}, "steps"),
        ({"guidance": -1}, "guidance"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_what_no_model_could_serve_is_refused_when_it_is_asked(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidParameterError, match=says):
        VideoRequest(**{"prompt": "x", **wrong})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"frames": 6}, "frames=6"),
        ({"size": (40, 32)}, "16"),
        ({"size": (8, 8)}, "16"),
        ({"negative": "a cat", "guidance": 1.0}, "guidance"),
    ],
)
def test_what_this_model_cannot_serve_is_refused_before_anything_is_computed(
    model: VideoHandle, wrong: dict[str, Any], says: str
) -> None:
    seen: list[Event] = []
    with pytest.raises(InvalidParameterError, match=says):
        seen.extend(model.stream(VideoRequest(prompt="x", **{**SMALL, **wrong})))
    assert seen == []


def test_a_picture_for_a_model_without_eyes_and_none_for_one_that_needs_it_are_refused(
    model: VideoHandle, engine: InferenceEngine, tmp_path: Path
) -> None:
    import tiny_wan

    with pytest.raises(UnsupportedInputError, match="text only"):
        model.video("x", image=np.zeros((32, 48, 3), np.uint8), **SMALL)
    needs = tiny_wan.write("i2v", tmp_path / "i2v")
    with (
        engine.load_as(VideoHandle, short(needs)) as other,
        pytest.raises(UnsupportedInputError, match="from a picture"),
    ):
        other.video("x", **SMALL)


def test_an_unknown_option_is_refused_by_its_name(model: VideoHandle) -> None:
    with pytest.raises(InvalidParameterError, match="strength"):
        model.video("x", strength=1)  # type: ignore[call-arg]


def test_a_request_that_is_cancelled_ends_within_a_step_and_the_next_one_is_as_ever(
    model: VideoHandle,
) -> None:
    before = model.video("a red fox", **SMALL).numpy()
    with model.stream(VideoRequest(prompt="a red fox", **{**SMALL, "steps": 500})) as stream:
        for event in stream:
            if isinstance(event, Progress):
                break
    assert np.array_equal(model.video("a red fox", **SMALL).numpy(), before)


def test_two_videos_side_by_side_are_those_that_each_is_alone(model: VideoHandle) -> None:
    requests = [VideoRequest(prompt=word, **SMALL) for word in ("a red fox", "a blue boat")]
    alone = [model.run(request) for request in requests]
    streams = [model.stream(request) for request in requests]
    together = [[*stream] for stream in streams]
    for one, two in zip(alone, together, strict=True):
        frames = [event.pixels.data for event in one.events if isinstance(event, FrameReady)]
        assert frames == [event.pixels.data for event in two if isinstance(event, FrameReady)]


def test_others_are_served_between_the_steps_of_a_video_and_get_what_they_get_alone(
    model: VideoHandle, engine: InferenceEngine
) -> None:
    painter = engine.load_images(ROOT / "tests" / "models" / "tiny-shapes-sd")
    alone = painter.image("a red circle", size=(32, 32), steps=2, seed=0).numpy()
    with model.stream(VideoRequest(prompt="x", **{**SMALL, "steps": 500})) as stream:
        for event in stream:
            if isinstance(event, Progress):
                break
        beside = painter.image("a red circle", size=(32, 32), steps=2, seed=0).numpy()
        steps = next(event.done for event in stream if isinstance(event, Progress))
    assert np.array_equal(beside, alone)
    assert 1 < steps < 500


def test_asyncio_has_the_same_video(model: VideoHandle, tiny: Path) -> None:
    async def make() -> np.ndarray[Any, Any]:
        async with AsyncInferenceEngine() as engine:
            handle = await engine.load_as(AsyncVideoHandle, short(tiny))
            return (await handle.video("a red fox", **SMALL)).numpy()

    assert np.array_equal(asyncio.run(make()), model.video("a red fox", **SMALL).numpy())


@pytest.mark.feature("video.dtype")
def test_a_number_format_is_that_of_the_denoiser(
    engine: InferenceEngine, tiny: Path, model: VideoHandle
) -> None:
    with engine.load_as(VideoHandle, short(tiny), features={"video.dtype": "bfloat16"}) as half:
        found = half.video("a red fox", **SMALL).numpy().astype(int)
    whole = model.video("a red fox", **SMALL).numpy().astype(int)
    assert 0 < np.abs(found - whole).mean() < 30


def test_fit_says_what_a_video_takes_and_longer_and_larger_ones_take_more(
    engine: InferenceEngine, tiny: Path
) -> None:
    def taken(**asked: Any) -> int:
        return engine.fit(tiny, VideoWorkload(**asked)).estimate.workspace

    base = taken(size=(832, 480), frames=33)
    assert taken(size=(832, 480), frames=81) > base
    assert taken(size=(1280, 704), frames=33) > base
    assert engine.fit(tiny).workload == VideoWorkload(
        backend=engine.device.backend, free_memory=engine.fit(tiny).workload.free_memory
    )


@pytest.mark.feature("video.reserve")
def test_where_memory_is_short_room_is_made_for_smaller_videos_and_larger_ones_are_refused(
    tiny: Path,
) -> None:
    with InferenceEngine() as plain:
        small = plain.fit(tiny, VideoWorkload(size=(208, 112), frames=9, staged=True))
        more = plain.fit(tiny, VideoWorkload(size=(416, 240), frames=33, staged=True))
    budget = (small.needed + more.needed) // 2
    with InferenceEngine(memory_budget=budget) as engine:
        model = engine.load_as(VideoHandle, tiny)
        assert "9 frames of 208 × 112" in model.info["degraded"]
        assert model.explain("video.keep_loaded").value is False
        assert model.explain("video.reserve").value == "208x112x9"
        with pytest.raises(InsufficientMemoryError, match="81 frames of 832 × 480") as refused:
            model.video("x", steps=1)
        assert "smaller size" in str(refused.value.hint)
        assert len(model.video("x", **SMALL).frames) == 9


def test_less_is_first_parts_for_their_stage_and_then_smaller_videos(
    engine: InferenceEngine, tiny: Path
) -> None:
    from mlxengine_video.kind import degrade

    configuration = ModelConfiguration(id=str(tiny))
    wanted = Wanted(
        configuration=configuration,
        features=engine.features.view(),
        plugin="video",
        workload=VideoWorkload(backend="cpu"),
    )
    ways = [*degrade(wanted)]
    assert [way.workload.staged for way in ways] == [False, *[True] * 5]
    assert [way.workload.frames for way in ways] == [None, None, 81, 33, 33, 9]
    assert ways[0].words == ""
    assert ways[-1].features == {"video.keep_loaded": False, "video.reserve": "208x112x9"}


def test_a_video_that_is_too_long_is_refused_with_the_length_that_fits(tiny: Path) -> None:
    shape, frames = {"size": (208, 112)}, 81
    with InferenceEngine() as plain:
        one, long = (plain.fit(tiny, VideoWorkload(frames=n, **shape)).needed for n in (9, 977))
    assert one < long
    room = {"video.reserve": "208x112x9"}
    with (
        InferenceEngine(memory_budget=(one + long) // 2, features={"core.degrade": False}) as engine,
        engine.load_as(VideoHandle, tiny, features=room) as model,
        pytest.raises(InsufficientMemoryError, match="977 frames") as refused,
    ):
        model.video("x", steps=1, frames=977, **shape)
    fits = int(str(refused.value.hint).split()[0])
    assert frames < fits < 977
    assert fits % 4 == 1


@pytest.mark.parametrize("text", ["832x480", "big", "0x480x9", "1x2x3x4"])
def test_what_is_to_be_set_aside_is_read_or_refused(engine: InferenceEngine, tiny: Path, text: str) -> None:
    with pytest.raises(InvalidParameterError, match=r"832x480x81"):
        engine.load(tiny, features={"video.reserve": text})


@pytest.mark.feature("video.keep_loaded")
def test_parts_that_are_read_for_their_stage_make_the_same_video_in_less_memory(
    engine: InferenceEngine, tiny: Path, model: VideoHandle
) -> None:
    import mlx.core as mx

    whole = engine.fit(tiny, VideoWorkload(size=(48, 32), frames=9))
    staged = engine.fit(tiny, VideoWorkload(size=(48, 32), frames=9, staged=True))
    assert staged.needed < whole.needed
    before = mx.get_active_memory()
    with engine.load_as(VideoHandle, short(tiny), features={"video.keep_loaded": False}) as frugal:
        found = frugal.video("a red fox", **SMALL).numpy()
        assert mx.get_active_memory() - before < whole.estimate.weights / 4
    assert np.array_equal(found, model.video("a red fox", **SMALL).numpy())


def test_a_video_takes_the_memory_that_was_told_before(
    engine: InferenceEngine, tiny: Path, model: VideoHandle
) -> None:
    import mlx.core as mx

    if engine.device.backend != "cpu":
        return  # nobody has measured it on a GPU: benchmarks/video/memory.py does
    told = engine.fit(tiny, VideoWorkload(size=(128, 64), frames=9)).estimate.workspace
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model.video("a red fox", size=(128, 64), frames=9, steps=1)
    assert told == pytest.approx(mx.get_peak_memory() - before, rel=0.1)


def test_a_first_picture_takes_the_noise_of_each_place_besides(engine: InferenceEngine, seeing: Path) -> None:
    from mlxengine_video._layout import layout
    from mlxengine_video._memory import Shape, estimate

    found = evolve(layout(engine.resolve(str(seeing))), hidden=3072, inner=14336)
    plain, pictured = (
        estimate(found, Shape(size=(1280, 704), frames=121, pictured=each)).workspace
        for each in (False, True)
    )
    assert pictured - plain == 18 * found.tokens((1280, 704), 121) * found.hidden * 4


def test_estimates_are_of_the_tensors_that_are_there(engine: InferenceEngine, tiny: Path) -> None:
    found = engine.fit(tiny, VideoWorkload(size=(48, 32), frames=5)).estimate
    stored = sum(item.nbytes for item in engine.resolve(tiny).tensors)
    assert found.weights == pytest.approx(stored, rel=0.01)  # float32 on the disk and on a CPU


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("LTX2Pipeline", "LTX2Pipeline"),
        ("HunyuanVideoPipeline", "HunyuanVideoPipeline"),
        ("WanVACEPipeline", "WanVACEPipeline"),
    ],
)
def test_other_video_models_are_refused_by_name_before_a_weight_is_fetched(
    engine: InferenceEngine, tiny: Path, tmp_path: Path, name: str, says: str
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "other"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": name}))
    with pytest.raises(UnsupportedArchitectureError, match=says) as refused:
        engine.load(folder)
    assert "Wan" in str(refused.value.hint)


def test_where_only_pictures_are_made_the_error_names_this_package(tiny: Path) -> None:
    import mlxengine_diffusion.plugin as pictures

    with (
        InferenceEngine(plugins=[("diffusion", pictures)]) as engine,
        pytest.raises(UnsupportedArchitectureError, match=r"mlxengine\[video\]"),
    ):
        engine.load(tiny)


def test_converted_weights_of_other_programs_are_refused_with_what_to_take(
    engine: InferenceEngine, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t2v", "dim": 5120}))
    for name in ("t5_encoder", "vae", "model"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(UnsupportedArchitectureError, match="converted") as refused:
        engine.load(tmp_path)
    assert "diffusers" in str(refused.value.hint)


def test_models_of_other_kinds_are_not_claimed(engine: InferenceEngine) -> None:
    from mlxengine_video.plugin import claim_model

    pictures = engine.resolve(ROOT / "tests" / "models" / "tiny-shapes-sd")
    assert claim_model(pictures) is None
    assert claim_model(evolve(pictures, documents={}, files=())) is None


def test_a_damaged_configuration_is_refused_by_the_card_alone(
    engine: InferenceEngine, tiny: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "damaged"))
    (folder / "transformer" / "config.json").unlink()
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises((UnsupportedArchitectureError, NoPluginForModelError), match="config"):
        engine.load(folder)


def test_the_registry_knows_what_the_releases_say(engine: InferenceEngine) -> None:
    from mlxengine_video.models import MODELS

    small = MODELS.get("Wan-AI/Wan2.2-TI2V-5B-Diffusers")
    assert small is not None
    assert small.fps == 24
    assert engine.registry.provenance(small.id, "fps") is not None
    assert isinstance(small, ModelConfiguration)
