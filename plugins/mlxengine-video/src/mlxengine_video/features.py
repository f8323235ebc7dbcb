"""Feature flags of the video plugin."""

from __future__ import annotations

import importlib.util

from mlxengine import Feature, LLMEngineFeatures

KIND = ("video",)


def _needs(*modules: str) -> str | None:
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} is not installed" if absent else None


def _probe_video() -> str | None:
    if reason := _needs("mlx", "mlx_video", "transformers", "numpy"):
        return reason
    from mlxengine.toolkit import blas

    blas.load()  # a flag that is set when the engine is made is tried before anything else imports mlx
    import mlx.core as mx

    grid = mx.arange(64, dtype=mx.float32).reshape(1, 4, 4, 4, 1)
    found = mx.conv3d(grid, mx.ones((1, 3, 3, 3, 1)), padding=1)[0, 1, 1, 1, 0].item()
    return None if found == 567 else f"a convolution in time on this device gave {found} instead of 567"


def _probe_picture() -> str | None:
    return _needs("PIL") or _probe_video()


def _probe_mp4() -> str | None:
    if reason := _needs("av"):
        return reason
    import av

    missing = [name for name in ("libx264", "apng") if name not in av.codecs_available]
    return f"PyAV's FFmpeg has no {', '.join(missing)}" if missing else None


TEXT_TO_VIDEO = Feature(
    name="video.text_to_video",
    default=True,
    summary="Make video from text.",
    applies_to=KIND,
    probe=_probe_video,
)
IMAGE_TO_VIDEO = Feature(
    name="video.image_to_video",
    default=True,
    summary="Start a video from a picture, with models that take one.",
    applies_to=KIND,
    probe=_probe_picture,
)
MP4 = Feature(
    name="video.mp4",
    default=True,
    summary="Write video as MP4 (H.264) and as animated PNG, frame by frame.",
    applies_to=KIND,
    probe=_probe_mp4,
)
DTYPE = Feature(
    name="video.dtype",
    default="auto",
    summary="Number format of denoiser and text encoder; auto is float32 on a CPU, bfloat16 on a GPU.",
    applies_to=KIND,
    choices=("auto", "float32", "float16", "bfloat16"),
)
RESERVE = Feature(
    name="video.reserve",
    default="",
    summary="The video that memory is set aside for on loading, as 832x480x81; else the usual one.",
    applies_to=KIND,
)
KEEP_LOADED = Feature(
    name="video.keep_loaded",
    default=True,
    summary="Keep all parts in memory; off reads each for its stage, so that the largest counts.",
    applies_to=KIND,
    provides=LLMEngineFeatures.STAGED_PARTS,
)

FEATURES = (TEXT_TO_VIDEO, IMAGE_TO_VIDEO, MP4, DTYPE, KEEP_LOADED, RESERVE)

__all__ = ["DTYPE", "FEATURES", "IMAGE_TO_VIDEO", "KEEP_LOADED", "MP4", "RESERVE", "TEXT_TO_VIDEO"]
