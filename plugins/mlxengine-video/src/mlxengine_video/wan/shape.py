"""What a repository's configurations say of a Wan: read without mlx, and refused where we would not follow.

The layout is diffusers': ``model_index.json``, a folder a part, ``scheduler/scheduler_config.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
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

_Read = Callable[[str], Mapping[str, Any]]

PIPELINES = ("WanPipeline", "WanImageToVideoPipeline")
"""The names that ``model_index.json`` may have."""

_HINT = "Served are Wan 2.1 and 2.2 as diffusers lays them out, by a prompt or a first picture."
_PLACES = 1024  # the tables of rotary positions that the library makes
_TRANSFORMER = {
    "patch_size": (1, 2, 2),
    "qk_norm": "rms_norm_across_heads",
    "image_dim": None,
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
    "rope_max_seq_len": _PLACES,
}
_TRANSFORMER_READ = (
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "out_channels",
    "text_dim",
    "freq_dim",
    "ffn_dim",
    "num_layers",
    "cross_attn_norm",
    "eps",
)
_VAE = {"attn_scales": (), "scale_factor_temporal": 4}
_VAE_READ = (
    "base_dim",
    "decoder_base_dim",
    "z_dim",
    "dim_mult",
    "num_res_blocks",
    "temperal_downsample",
    "latents_mean",
    "latents_std",
    "is_residual",
    "patch_size",
    "in_channels",
    "out_channels",
    "scale_factor_spatial",
    "dropout",  # of training
)
_TEXT = {
    "feed_forward_proj": "gated-gelu",
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "quantization_config": None,
}
# Of training, or of noise levels that flow matching does not look at.
_UNUSED = (
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "timestep_spacing",
    "steps_offset",
    "rescale_betas_zero_snr",
    "time_shift_type",
)
_SCHEDULER = {
    "prediction_type": ("epsilon", ("flow_prediction",)),
    "use_flow_sigmas": (False, (True,)),
    "predict_x0": (True, (True,)),
    # diffusers takes bh2 where the repository has a name of another family of solvers.
    "solver_type": ("bh2", ("bh2", "midpoint", "heun", "logrho")),
    "lower_order_final": (True, (True,)),
    "final_sigmas_type": ("zero", ("zero",)),
    "solver_order": (2, (1, 2, 3)),
}
_SCHEDULER_READ = ("flow_shift", "num_train_timesteps", "disable_corrector")


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
        if max(shape[1], shape[2] // self.patch[1], shape[3] // self.patch[2]) > _PLACES:
            raise InvalidParameterError(
                f"{width}x{height} with {frames} frames is beyond the {_PLACES} positions a side that "
                "the model knows.",
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
            raise UnsupportedArchitectureError(f"{name} has no {place}.", hint=_HINT)
        return FrozenDict(freeze(known))

    with building(name):
        return _read(name, found)


def _read(repository: str, document: _Read) -> Documents:
    index = document("model_index.json")
    name = index.get("_class_name")
    if name not in PIPELINES:
        raise UnsupportedArchitectureError(f"{repository} is no Wan that we serve, but {name}.", hint=_HINT)
    if _named(index, "image_encoder"):
        raise UnsupportedArchitectureError(
            f"{repository} looks at its picture with an image encoder (Wan 2.1 from a picture), which is not "
            "implemented.",
            hint="Wan 2.2 makes videos of a picture without one.",
        )
    if "auto_map" in document("tokenizer/tokenizer_config.json"):
        raise RemoteCodeRefusedError(f"The tokenizer of {repository} wants to run the repository's own code.")
    transformer = _transformer(document, "transformer")
    second = _transformer(document, "transformer_2") if _named(index, "transformer_2") else None
    vae, scheduler = _vae(document), _scheduler(document)
    text = document("text_encoder/config.json")
    if text.get("model_type") != "umt5":
        raise UnsupportedArchitectureError(
            f"The text encoder of {repository} is no UMT5, but {text.get('model_type')}.", hint=_HINT
        )
    _same(text, _TEXT, "text_encoder/config.json")
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


def _transformer(document: _Read, part: str) -> dict[str, Any]:
    """A transformer's configuration, with diffusers' defaults for what it leaves out."""
    place = f"{part}/config.json"
    config = document(place)
    _class(config, "WanTransformer3DModel", place)
    _same(config, _TRANSFORMER, place)
    _known(config, (*_TRANSFORMER, *_TRANSFORMER_READ), place)
    usual = {
        "num_attention_heads": 40,
        "attention_head_dim": 128,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 4096,
        "freq_dim": 256,
        "ffn_dim": 13824,
        "num_layers": 40,
        "cross_attn_norm": True,
        "eps": 1e-6,
    }
    return {**usual, **config}


def _vae(document: _Read) -> dict[str, Any]:
    """The autoencoder's configuration, with diffusers' defaults for what it leaves out."""
    place = "vae/config.json"
    config = document(place)
    _class(config, "AutoencoderKLWan", place)
    _same(config, _VAE, place)
    _known(config, (*_VAE, *_VAE_READ), place)
    usual = {
        "base_dim": 96,
        "z_dim": 16,
        "dim_mult": (1, 2, 4, 4),
        "num_res_blocks": 2,
        "temperal_downsample": (False, True, True),
        "is_residual": False,
        "in_channels": 3,
        "out_channels": 3,
        "scale_factor_spatial": 8,
        "latents_mean": _MEAN,
        "latents_std": _STD,
    }
    found = {**usual, **config}
    found["decoder_base_dim"] = found.get("decoder_base_dim") or found["base_dim"]
    # The networks of 2.1 and of 2.2: the second sees two by two pixels at once, and has ways around its blocks.
    patch = 2 if found["is_residual"] else 1
    wrong = [
        f"{key}={found.get(key)}"
        for key, value in (
            ("patch_size", 2 if patch == 2 else None),
            ("in_channels", 3 * patch**2),
            ("out_channels", 3 * patch**2),
            ("scale_factor_spatial", 8 * patch),
        )
        if found.get(key) != value
    ]
    halved = list(found["temperal_downsample"])
    if len(found["dim_mult"]) != 4 or len(halved) != 3 or sum(halved) != 2:
        wrong.append(f"dim_mult={found['dim_mult']}, temperal_downsample={halved}")
    if wrong:
        raise UnsupportedArchitectureError(
            f"{place} (is_residual={found['is_residual']}) has settings that are not implemented: "
            f"{', '.join(wrong)}.",
            hint=_HINT,
        )
    if {len(found["latents_mean"]), len(found["latents_std"])} != {found["z_dim"]}:
        raise IncompatibleWeightsError(
            f"{place}: latents_mean and latents_std are not of {found['z_dim']} numbers.",
            hint="Verify the repository's files.",
        )
    return found


def _scheduler(document: _Read) -> dict[str, Any]:
    place = "scheduler/scheduler_config.json"
    config = document(place)
    _class(config, "UniPCMultistepScheduler", place)
    wrong = [
        f"{key}={config.get(key, usual)!r}"
        for key, (usual, followed) in _SCHEDULER.items()
        if config.get(key, usual) not in followed
    ]
    if wrong:
        raise UnsupportedArchitectureError(
            f"{place} has settings that are not implemented: {', '.join(wrong)}.", hint=_HINT
        )
    _known(config, (*_SCHEDULER, *_SCHEDULER_READ, *_UNUSED), place)
    found = {"flow_shift": 1.0, "num_train_timesteps": 1000, "disable_corrector": (), **config}
    return {**found, "solver_order": config.get("solver_order", 2)}


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
    return bool(found) and any(found)


def _class(config: Mapping[str, Any], name: str, place: str) -> None:
    if (found := config.get("_class_name")) != name:
        raise UnsupportedArchitectureError(f"{place} is of a {found}, not of a {name}.", hint=_HINT)


def _same(config: Mapping[str, Any], fixed: Mapping[str, Any], place: str) -> None:
    """Refuse what the networks have no setting for; what is left out has the value that they have."""
    wrong = [f"{key}={config[key]!r}" for key, value in fixed.items() if config.get(key, value) != value]
    if wrong:
        raise UnsupportedArchitectureError(
            f"{place} has settings that are not implemented: {', '.join(wrong)}.", hint=_HINT
        )


def _known(config: Mapping[str, Any], keys: Sequence[str], place: str) -> None:
    """Refuse settings that we have never heard of, unless they are off."""
    wrong = [key for key, value in config.items() if value and not key.startswith("_") and key not in keys]
    if wrong:
        raise UnsupportedArchitectureError(
            f"{place} has settings that are not known here: "
            f"{', '.join(f'{key}={config[key]!r}' for key in wrong)}.",
            hint=_HINT,
        )


# Of Wan 2.1's autoencoder, where a repository leaves them out.
_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508)
_MEAN += (0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743)
_STD += (3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)

__all__ = ["PIPELINES", "Documents", "WanShape", "documents_of", "read_documents", "read_shape"]
