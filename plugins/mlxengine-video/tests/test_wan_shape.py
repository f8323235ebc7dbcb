"""What a repository's configurations say of a Wan, and what is refused instead of being left out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlxengine.errors import (
    CorruptFileError,
    IncompatibleWeightsError,
    InvalidParameterError,
    MLXEngineError,
    RemoteCodeRefusedError,
    UnsupportedArchitectureError,
)

sys.path.insert(0, str(Path(__file__).parent))

import tiny_wan as w
from mlxengine_video.wan import WanShape, documents_of, read_shape

INDEX, TRANSFORMER, VAE = "model_index.json", "transformer/config.json", "vae/config.json"
TEXT, SCHEDULER = "text_encoder/config.json", "scheduler/scheduler_config.json"


def shape(family: str, place: str = INDEX, **changes: Any) -> WanShape:
    """A family's shape where a configuration has other settings; one that is ... is left out."""
    known = w.documents(family)
    known[place] = {key: value for key, value in {**known[place], **changes}.items() if value is not ...}
    return documents_of("tiny", known.get).shape


def test_a_model_for_prompts_says_what_it_makes() -> None:
    found = shape("t2v")
    assert found.parts == ("text_encoder", "transformer", "vae")
    assert (found.channels, found.time_stride, found.space_stride, found.size_step) == (4, 4, 8, 16)
    assert (found.size, found.frames, found.fps, found.steps, found.guidance) == ((832, 480), 81, 16, 50, 5.0)
    assert (found.flow_shift, found.boundary) == (3.0, None)
    assert not found.takes_picture
    assert found.latents((832, 480), 81) == (4, 21, 60, 104)


def test_a_model_for_prompts_and_pictures_takes_either() -> None:
    found = shape("ti2v")
    assert (found.channels, found.space_stride, found.size_step, found.fps) == (48, 16, 32, 24)
    assert (found.takes_picture, found.needs_picture, found.flow_shift) == (True, False, 5.0)


def test_two_transformers_share_the_levels_at_the_boundary() -> None:
    assert shape("two").parts == ("text_encoder", "transformer", "transformer_2", "vae")
    assert (shape("two").boundary, shape("two").takes_picture) == (0.8, False)
    assert shape("i2v").needs_picture


@pytest.mark.parametrize(
    ("size", "frames", "match"),
    [
        ((840, 480), 81, "multiples of 16"),
        ((832, 0), 81, "multiples of 16"),
        ((832, 480), 80, "Use frames=81"),
        ((832, 480), 0, "Use frames=1"),
        ((832, 480), 4101, "1024 positions"),
        ((16400, 16), 1, "1024 positions"),
    ],
)
def test_a_video_that_cannot_be_made_is_refused(size: tuple[int, int], frames: int, match: str) -> None:
    with pytest.raises(InvalidParameterError, match=match):
        shape("t2v").latents(size, frames)


@pytest.mark.parametrize(
    ("family", "place", "changes", "match"),
    [
        ("t2v", INDEX, {"_class_name": "WanVACEPipeline"}, "WanVACEPipeline"),
        ("i2v", INDEX, {"image_encoder": ["transformers", "CLIPVisionModel"]}, "image encoder"),
        ("two", INDEX, {"expand_timesteps": True}, "two transformers"),
        ("t2v", TRANSFORMER, {"_class_name": "WanVACETransformer3DModel"}, "WanVACETransformer3DModel"),
        ("t2v", TRANSFORMER, {"qk_norm": "rms_norm"}, "qk_norm='rms_norm'"),
        ("t2v", TRANSFORMER, {"image_dim": 1280}, "image_dim=1280"),
        ("t2v", TRANSFORMER, {"patch_size": [1, 1, 1]}, "patch_size"),
        ("t2v", TRANSFORMER, {"vace_layers": [0]}, "vace_layers"),
        ("t2v", VAE, {"_class_name": "AutoencoderKL"}, "AutoencoderKL"),
        ("t2v", VAE, {"attn_scales": [1.0]}, "attn_scales"),
        ("t2v", VAE, {"patch_size": 2}, "patch_size=2"),
        ("ti2v", VAE, {"is_residual": False}, "in_channels=12"),
        ("t2v", VAE, {"temperal_downsample": [True, True, True]}, "temperal_downsample"),
        ("t2v", VAE, {"sparkle": True}, "sparkle"),
        ("t2v", TEXT, {"model_type": "t5"}, "no UMT5, but of t5"),
        ("t2v", TEXT, {"feed_forward_proj": "gated-silu"}, "gated-silu"),
        ("t2v", TEXT, {"relative_attention_max_distance": 64}, "max_distance=64"),
        ("t2v", TEXT, {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("t2v", TRANSFORMER, {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("t2v", SCHEDULER, {"_class_name": "DDIMScheduler"}, "DDIMScheduler"),
        ("t2v", SCHEDULER, {"prediction_type": ...}, "prediction_type='epsilon'"),
        ("t2v", SCHEDULER, {"use_flow_sigmas": False}, "use_flow_sigmas=False"),
        ("t2v", SCHEDULER, {"solver_type": "bh1"}, "bh1"),
        ("t2v", SCHEDULER, {"flow_shift": 0}, "flow_shift=0"),
        ("t2v", SCHEDULER, {"num_train_timesteps": 0}, "num_train_timesteps=0"),
        ("t2v", SCHEDULER, {"solver_order": 4}, "solver_order=4"),
        ("t2v", SCHEDULER, {"lower_order_final": False}, "lower_order_final"),
        ("t2v", SCHEDULER, {"final_sigmas_type": "sigma_min"}, "sigma_min"),
        ("t2v", SCHEDULER, {"use_karras_sigmas": True}, "use_karras_sigmas"),
        ("t2v", SCHEDULER, {"use_dynamic_shifting": True}, "use_dynamic_shifting"),
        ("t2v", SCHEDULER, {"shift_terminal": 0.02}, "shift_terminal"),
        ("t2v", SCHEDULER, {"thresholding": True}, "thresholding"),
    ],
)
def test_what_would_change_the_video_is_refused(
    family: str, place: str, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=match):
        shape(family, place, **changes)


@pytest.mark.parametrize(
    ("family", "place", "changes", "match"),
    [
        ("t2v", INDEX, {"boundary_ratio": 0.9}, "no second transformer"),
        ("two", INDEX, {"boundary_ratio": None}, "is a second transformer"),
        ("two", INDEX, {"boundary_ratio": 2.0}, "no share of the noise levels"),
        ("two", INDEX, {"boundary_ratio": float("nan")}, "no share of the noise levels"),
        ("t2v", INDEX, {"_class_name": "WanImageToVideoPipeline"}, "does not fit"),
        ("i2v", INDEX, {"_class_name": "WanPipeline"}, "does not fit"),
        ("t2v", TRANSFORMER, {"in_channels": 16}, "16 channels in"),
        ("t2v", VAE, {"latents_mean": [0.0]}, "not of 4 numbers"),
        ("t2v", VAE, {"dim_mult": 3}, "cannot be built"),
    ],
)
def test_configurations_that_contradict_each_other_are_refused(
    family: str, place: str, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(IncompatibleWeightsError, match=match):
        shape(family, place, **changes)


def test_the_repositorys_own_shift_and_train_steps_are_followed() -> None:
    assert shape("t2v", SCHEDULER, flow_shift=7.5).flow_shift == 7.5
    assert shape("t2v", SCHEDULER, flow_shift=...).flow_shift == 1.0


def test_settings_that_change_nothing_are_let_be() -> None:
    shape("t2v", SCHEDULER, beta_end=0.5, solver_p=None, disable_corrector=[], rescale_betas_zero_snr=True)
    shape("t2v", VAE, clip_output=False, dropout=0.1)


def test_a_tokenizer_with_code_of_its_own_is_refused() -> None:
    with pytest.raises(RemoteCodeRefusedError):
        shape("t2v", "tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": "x.Y"})


def test_a_folder_is_read_and_what_is_wrong_in_it_named(tmp_path: Path) -> None:
    folder = w.write("t2v", tmp_path / "tiny")
    assert read_shape(folder) == shape("t2v")
    (folder / VAE).write_text("{")
    with pytest.raises(CorruptFileError, match=r"vae/config\.json of tiny is no JSON"):
        read_shape(folder)
    (folder / VAE).write_text("[]")
    with pytest.raises(CorruptFileError, match="holds no settings"):
        read_shape(folder)
    (folder / VAE).unlink()
    with pytest.raises(UnsupportedArchitectureError, match=r"tiny has no vae/config\.json that can be read"):
        read_shape(folder)


def test_every_refusal_says_what_to_do_next() -> None:
    for place in w.documents("t2v"):
        known = w.documents("t2v")
        del known[place]
        with pytest.raises(MLXEngineError) as caught:
            documents_of("tiny", known.get)
        assert caught.value.hint


def test_shapes_are_read_without_mlx() -> None:
    code = "import sys; from mlxengine_video.wan import read_shape; assert 'mlx.core' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
