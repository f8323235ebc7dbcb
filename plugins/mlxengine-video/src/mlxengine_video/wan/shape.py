"""What a repository's configurations say of a Wan: read without mlx, and refused where we would not follow.

The layout is diffusers': ``model_index.json``, a folder a part, ``scheduler/scheduler_config.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen
from mlxengine.errors import (
    CorruptFileError,
    IncompatibleWeightsError,
    InvalidParameterError,
    RemoteCodeRefusedError,
    UnsupportedArchitectureError,
)
from mlxengine.readonly import FrozenDict, freeze
from mlxengine.toolkit.loading import building

from . import settings

PIPELINES = ("WanPipeline", "WanImageToVideoPipeline")
"""The names that ``model_index.json`` may have."""


@frozen(kw_only=True)
class WanShape:
    """What can be asked of a Wan, and what it takes.

    Args:
        parts: the folders with weights, in the order in which they are used.
        channels: of the latents.
        time_stride, space_stride: frames and pixels (of a side) that one place of the latents stands for; the
            first place in time stands for one frame.
        patch: places of the latents (time, height, width) that the transformer sees as one.
        flow_shift: how far noise levels are moved to the noisy end.
        boundary: the share of the noise levels from which on the first of two transformers works; ``None``
            where there is one.
        size: the usual (width, height) in pixels.
        frames, fps, steps, guidance: the usual ones.
        takes_picture: whether the first frame can be given.
        needs_picture: whether it has to be.
    """

    parts: tuple[str, ...]
    channels: int
    time_stride: int
    space_stride: int
    patch: tuple[int, int, int]
    flow_shift: float
    boundary: float | None
    size: tuple[int, int]
    frames: int
    fps: int
    steps: int
    guidance: float
    takes_picture: bool
    needs_picture: bool

    @property
    def size_step(self) -> int:
        """What width and height are multiples of."""
        return self.space_stride * self.patch[1]

    def latents(self, size: tuple[int, int], frames: int) -> tuple[int, int, int, int]:
        """The shape of the latents of a video: (channels, time, height, width).

        Raises:
            InvalidParameterError: the model makes no video of this size or length.
        """
        step, stride, (width, height) = self.size_step, self.time_stride, size
        if min(size) < step or width % step or height % step:
            raise InvalidParameterError(
                f"size={width}x{height} cannot be made: width and height are multiples of {step}.",
                hint=f"The usual size of this model is {self.size[0]}x{self.size[1]}.",
            )
        if frames < 1 or (frames - 1) % stride:
            near = max(0, round((frames - 1) / stride)) * stride + 1
            raise InvalidParameterError(
                f"frames={frames} cannot be made: there is one, and {stride} more for each step in time.",
                hint=f"Use frames={near}.",
            )
        shape = (
            self.channels,
            1 + (frames - 1) // stride,
            height // self.space_stride,
            width // self.space_stride,
        )
        if max(shape[1], shape[2] // self.patch[1], shape[3] // self.patch[2]) > settings.PLACES:
            raise InvalidParameterError(
                f"{width}x{height} with {frames} frames is beyond the {settings.PLACES} positions a side.",
                hint="Ask for less.",
            )
        return shape


@frozen(kw_only=True)
class Documents:
    """The configurations of a repository, checked: what the networks are built of."""

    shape: WanShape
    transformer: Mapping[str, Any]
    transformer_2: Mapping[str, Any] | None
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    expands: bool


def read_shape(folder: Path) -> WanShape:
    """What the configurations in a folder say; needs no mlx and reads no weights.

    Raises:
        UnsupportedArchitectureError: it is no Wan, or one that we do not serve.
        IncompatibleWeightsError: its configurations contradict each other.
        CorruptFileError: one is no JSON.
        RemoteCodeRefusedError: the tokenizer wants to run code of its own.
    """
    return read_documents(folder).shape


def read_documents(folder: Path) -> Documents:
    """The same, with the configurations."""
    return documents_of(folder.name, lambda name: _in_folder(folder, name))


def documents_of(name: str, document: Callable[[str], Mapping[str, Any] | None]) -> Documents:
    """The same of a repository of which the decoded configurations alone are there.

    Args:
        name: of the repository, for errors.
        document: a configuration by its path in the repository; ``None`` or nothing in it: there is none.
    """

    def found(place: str) -> Mapping[str, Any]:
        if not (known := document(place)):
            raise UnsupportedArchitectureError(f"{name} has no {place} that can be read.", hint=settings.HINT)
        return FrozenDict(freeze(known))

    with building(name):
        return _read(name, found)


def _read(repository: str, document: settings.Read) -> Documents:
    index = document("model_index.json")
    name = index.get("_class_name")
    if name not in PIPELINES:
        raise UnsupportedArchitectureError(
            f"{repository} is no Wan that we serve, but {name}.", hint=settings.HINT
        )
    if _named(index, "image_encoder"):
        raise UnsupportedArchitectureError(
            f"{repository} looks at its picture with an image encoder (Wan 2.1 from a picture), which is not "
            "implemented.",
            hint="Wan 2.2 makes videos of a picture without one.",
        )
    if "auto_map" in document("tokenizer/tokenizer_config.json"):
        raise RemoteCodeRefusedError(f"The tokenizer of {repository} wants to run the repository's own code.")
    transformer = settings.transformer(document, "transformer")
    second = settings.transformer(document, "transformer_2") if _named(index, "transformer_2") else None
    vae, scheduler = settings.vae(document), settings.scheduler(document)
    text = settings.text_encoder(document)
    boundary, expands = index.get("boundary_ratio"), bool(index.get("expand_timesteps"))
    shape = _shape(str(name), (transformer, second), vae, scheduler, boundary, expands=expands)
    return Documents(
        shape=shape,
        transformer=transformer,
        transformer_2=second,
        vae=vae,
        text_encoder=text,
        scheduler=scheduler,
        expands=expands,
    )


def _shape(
    name: str,
    transformers: tuple[Mapping[str, Any], Mapping[str, Any] | None],
    vae: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    boundary: float | None,
    *,
    expands: bool,
) -> WanShape:
    first, second = transformers
    if (second is None) != (boundary is None):
        raise IncompatibleWeightsError(
            f"model_index.json has boundary_ratio={boundary}, and there "
            f"{'is a' if second else 'is no'} second transformer.",
            hint="Two transformers share the noise levels at that ratio; one needs none.",
        )
    if boundary is not None and not 0 <= float(boundary) <= 1:
        raise IncompatibleWeightsError(
            f"model_index.json has boundary_ratio={boundary}, which is no share of the noise levels.",
            hint="Verify the repository's files.",
        )
    channels = int(vae["z_dim"])
    # A picture that stands beside the latents comes with a mask of as many channels as a place has frames.
    beside = channels + 4
    needs = name == "WanImageToVideoPipeline" and not expands
    wanted = channels + beside if needs else channels
    for config in (first, second or first):
        found = (config["in_channels"], config["out_channels"] or config["in_channels"])
        if found != (wanted, channels):
            raise IncompatibleWeightsError(
                f"A transformer of {found[0]} channels in and {found[1]} out does not fit {name} "
                f"with latents of {channels}.",
                hint="Verify the repository's files.",
            )
    if expands and second is not None:
        raise UnsupportedArchitectureError("expand_timesteps with two transformers is not implemented.")
    steps, guidance = (40, 3.5 if needs else 4.0) if second is not None else (50, 5.0)
    return WanShape(
        parts=("text_encoder", "transformer", *(("transformer_2",) if second is not None else ()), "vae"),
        channels=channels,
        time_stride=4,
        space_stride=int(vae["scale_factor_spatial"]),
        patch=(1, 2, 2),
        flow_shift=float(scheduler["flow_shift"]),
        boundary=None if boundary is None else float(boundary),
        size=(1280, 704) if expands else (832, 480),
        frames=121 if expands else 81,
        fps=24 if expands else 16,
        steps=steps,
        guidance=guidance,
        takes_picture=expands or needs,
        needs_picture=needs,
    )


def _in_folder(folder: Path, name: str) -> Mapping[str, Any] | None:
    try:
        found = json.loads((folder / name).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CorruptFileError(
            f"{name} of {folder.name} is no JSON: {error}.",
            hint="Fetch it again: `mlxengine repair` replaces files that are damaged.",
        ) from error
    if not isinstance(found, dict):
        raise CorruptFileError(f"{name} of {folder.name} holds no settings.", hint="Fetch it again.")
    return found


def _named(index: Mapping[str, Any], part: str) -> bool:
    """Whether a pipeline has a part: what it lacks stands there as a pair of nulls."""
    found = index.get(part)
    return found is not None and any(found)


__all__ = ["PIPELINES", "Documents", "WanShape", "documents_of", "read_documents", "read_shape"]
