"""Which repositories this plugin makes video with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mlxengine import Claim, Fit, MemoryEstimate, ModelCard
from mlxengine.errors import IncompatibleWeightsError, MLXEngineError, UnsupportedArchitectureError
from mlxengine.toolkit.counts import config_problem

from ._layout import Layout, layout, pipeline
from ._memory import Shape, estimate
from ._plan import defaults_for, reserved
from .features import DTYPE, KEEP_LOADED, RESERVE
from .types import VideoWorkload
from .wan.shape import PIPELINES

_SERVED = "Wan 2.1 and 2.2 are served, as diffusers repositories: Wan-AI/Wan2.1-T2V-1.3B-Diffusers for one."
_OTHERS = (
    "Video",
    "LTX",
    "Wan",
    "Mochi",
    "CogVideo",
    "Allegro",
    "AnimateDiff",
    "SkyReels",
    "Cosmos",
    "Latte",
)
_CONVERTED = ("t5_encoder.safetensors", "vae.safetensors")
_PARTS = ("text_encoder", "transformer", "transformer_2", "vae")
_FILES = (
    "model_index.json",
    "scheduler/*.json",
    "tokenizer/*",
    *(f"{part}/*.{ending}" for part in _PARTS for ending in ("json", "safetensors")),
)


def claim(card: ModelCard) -> Claim | None:
    """The plugin's offer for a model."""
    name = pipeline(card)
    if name is None:
        paths = {item.path for item in card.files}
        return _refused("a converted model", card, _SERVED) if paths.issuperset(_CONVERTED) else None
    if name not in PIPELINES:
        return _refused(name, card, _SERVED) if any(word in name for word in _OTHERS) else None
    found: Layout | None = None
    problem = _damaged(card)
    if problem is None:
        try:
            found = layout(card)
        except MLXEngineError as error:
            problem = error
        except (KeyError, TypeError, ValueError) as error:
            problem = IncompatibleWeightsError(
                f"The configurations of {card.id} cannot be read: {error}.",
                hint="The repository is damaged or not complete.",
            )
    pictured = found is not None and found.shape.takes_picture
    reckon = None
    try:
        reckon = None if found is None else _estimate(card, found)
    except MLXEngineError as error:  # a flag that cannot be read
        problem = error
    return Claim(
        kind="video",
        fit=Fit.NATIVE,
        files=_FILES,
        capabilities=frozenset({"video_generation", *(["image_to_video"] if pictured else [])}),
        estimate=reckon,
        problem=problem,
        reason=f"model_index.json says {name}",
    )


def _estimate(card: ModelCard, found: Layout) -> Callable[[VideoWorkload], MemoryEstimate]:
    flags = dict(card.configuration.features)
    dtype = str(flags.get(DTYPE.name, DTYPE.default))
    staged = flags.get(KEEP_LOADED.name, KEEP_LOADED.default) is False
    usual = defaults_for(card, found.shape)
    size, frames = reserved(str(flags.get(RESERVE.name, ""))) or (usual.size, usual.frames)

    def reckon(workload: VideoWorkload) -> MemoryEstimate:
        shape = Shape(
            size=workload.size or size,
            frames=workload.frames or frames,
            on_cpu=workload.backend == "cpu",
            staged=workload.staged or staged,
            dtype=dtype,
        )
        return estimate(found, shape)

    return reckon


def _damaged(card: ModelCard) -> MLXEngineError | None:
    for part in _PARTS:
        config = card.documents.get(f"{part}/config.json")
        if isinstance(config, Mapping):
            own = [item for item in card.tensors if item.file.startswith(f"{part}/")]
            if (problem := config_problem(card.id, config, own or card.tensors)) is not None:
                return problem
    return None


def _refused(what: str, card: ModelCard, hint: str) -> Claim:
    return Claim(
        kind="video",
        fit=Fit.PARTIAL,
        problem=UnsupportedArchitectureError(f"{what} ({card.id}) makes no video here.", hint=hint),
        reason=f"a video model of another kind, {what}",
    )


__all__ = ["claim"]
