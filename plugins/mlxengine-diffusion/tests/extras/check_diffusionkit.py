"""diffusionkit on today's mlx against diffusers, where the extra is installed: `make test-diffusionkit`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_kit as k
from mlxengine import ImageRequest, InferenceEngine, LoadContext
from mlxengine.errors import IncompatibleWeightsError
from mlxengine_diffusion import plugin
from mlxengine_diffusion.backends._work import Job
from safetensors.numpy import load_file, save_file

TOKENIZER = Path(__file__).parents[4] / "tests" / "models" / "tiny-shapes-sd" / "tokenizer"


@pytest.fixture
def shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's fixed geometries, made tiny: they are module values, not read from a repository."""
    from diffusionkit.mlx import config, model_io

    for item, values in (
        (
            config.FLUX_SCHNELL,
            {
                "num_heads": k.HEADS,
                "depth_multimodal": 2,
                "depth_unified": 2,
                "hidden_size_override": k.HIDDEN,
                "rope_axes_dim": (8, 12, 12),
                "pooled_text_embed_dim": 48,
                "token_level_text_embed_dim": 32,
            },
        ),
        (
            config.SD3_2b,
            {
                "num_heads": k.HEADS,
                "depth_multimodal": 2,
                "hidden_size_override": k.HIDDEN,
                "pooled_text_embed_dim": 88,
                "max_latent_resolution": 24,
            },
        ),
    ):
        for name, value in values.items():
            monkeypatch.setattr(item, name, value)
    for name in ("VAEDecoderConfig", "VAEEncoderConfig"):
        made = getattr(config, name)
        monkeypatch.setattr(model_io, name, lambda made=made: made(block_out_channels=(32, 64, 128, 128)))


@pytest.fixture
def load(shrunk: None, tmp_path: Path) -> Callable[[str], Any]:
    def build(family: str) -> Any:
        written = (tmp_path / "main").exists()
        folders = k.folders(tmp_path) if written else k.write(family, tmp_path, TOKENIZER)
        with InferenceEngine() as engine:
            card = engine.resolve(folders["main"])
            assert engine.explain(card).claim.reason == "back end diffusionkit"
            context = LoadContext(
                path=folders["main"],
                configuration=card.configuration,
                features=engine.features.view(),
                device=engine.device,
                fetch=lambda reference, patterns: folders[reference],
            )
            return plugin.load_model(card, context).model

    return build


def job(family: str, **values: Any) -> Job:
    return Job(
        prompt=k.PROMPT,
        negative=k.NEGATIVE if family == "sd3" else None,
        width=k.SIDE,
        height=k.SIDE,
        steps=k.STEPS[family],
        guidance=k.GUIDANCE if family == "sd3" else 0.0,
        seed=0,
        scheduler="",
        **values,
    )


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_the_picture_is_that_of_diffusers(load: Callable[[str], Any], family: str) -> None:
    import mlx.core as mx

    pipeline = load(family).pipeline
    list(pipeline.warm())
    noise = mx.array(k.noise().transpose(0, 2, 3, 1))
    reference = load_file(k.DATA / "kit.pictures.safetensors")[family].astype(int)
    for attempt in (1, 2):  # the library throws weights away while it works: they have to come back
        difference = np.abs(k.pixels(pipeline, job(family), noise) - reference)
        print(f"{family}, picture {attempt}: difference {difference.max()}, mean {difference.mean():.4f}")
        assert difference.max() <= 2


@pytest.mark.parametrize(
    ("file", "name", "ours"),
    [
        ("main/flux-schnell.safetensors", "single_blocks.1.linear2.bias", "1.transformer_block.mlp.fc2.bias"),
        ("main/ae.safetensors", "decoder.conv_out.bias", "conv_out.bias"),
        (
            "text/t5/t5xxl.safetensors",
            "encoder.block.1.layer.1.DenseReluDense.wo.weight",
            "1.dense.wo.weight",
        ),
        ("text/clip_l/model.fp16.safetensors", "text_model.encoder.layers.1.mlp.fc2.bias", "1.linear2.bias"),
    ],
)
def test_a_missing_tensor_is_an_error_that_names_it(
    load: Callable[[str], Any], tmp_path: Path, file: str, name: str, ours: str
) -> None:
    k.write("flux", tmp_path, TOKENIZER)
    tensors = load_file(tmp_path / file)
    name = name if name in tensors else name.removeprefix("text_model.")
    del tensors[name]
    save_file(tensors, tmp_path / file)
    with pytest.raises(IncompatibleWeightsError) as caught:
        load("flux")
    assert ours in str(caught.value)


def test_two_requests_take_turns_and_a_cancelled_one_leaves_the_model_whole(
    load: Callable[[str], Any],
) -> None:
    pipeline = load("flux").pipeline
    alone = k.pixels(pipeline, job("flux"))
    first, second = pipeline.denoise(job("flux")), pipeline.denoise(job("flux"))
    assert next(first) is None
    assert next(first).done == 1
    assert [next(second), next(second)] == [None, None]
    first.close()
    assert [step.done for step in second if step is not None] == [1, 2, 3, 4]
    assert np.array_equal(k.pixels(pipeline, job("flux")), alone)


def test_a_picture_can_be_the_start(load: Callable[[str], Any]) -> None:
    pipeline = load("flux").pipeline
    start = np.full((k.SIDE, k.SIDE, 3), 90, np.uint8)
    steps = [step for step in pipeline.denoise(job("flux", init=start, strength=0.5)) if step]
    assert [(step.done, step.total) for step in steps] == [(1, 2), (2, 2)]


def test_the_event_stream_is_that_of_every_back_end(load: Callable[[str], Any]) -> None:
    from mlxengine import RunContext

    model = load("flux")
    with InferenceEngine() as engine:
        context = RunContext(features=engine.features.view())
        request = ImageRequest(prompt=k.PROMPT, size=(k.SIDE, k.SIDE), steps=2, seed=1, preview_every=1)
        events = [event for event in plugin.generate(model, request, context) if event is not None]
    assert [type(event).__name__ for event in events] == [
        "Progress",
        "ImagePreview",
        "Progress",
        "ImageReady",
        "Finished",
    ]
    assert events[3].recipe["backend"] == "diffusionkit"
