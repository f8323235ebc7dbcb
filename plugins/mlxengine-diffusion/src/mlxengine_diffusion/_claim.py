"""Which repositories this plugin makes pictures with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mlxengine import Claim, Fit, MemoryEstimate, ModelCard, PictureWorkload
from mlxengine.errors import IncompatibleWeightsError, UnsupportedArchitectureError
from mlxengine.toolkit.counts import config_problem
from mlxengine.toolkit.loading import building

from . import models
from .backends import Defaults, Offer, choose
from .backends._memory import Shape, peak, stages_asked, tiles_asked
from .sd.layout import document

_CAPABILITIES = frozenset({"image_generation"})
_SERVED = (
    "Stable Diffusion 1, 2 and XL, FLUX.1, Kontext, Fill, FLUX.2 klein, Z-Image, Qwen-Image "
    "and Qwen-Image-Edit are served."
)
_VIDEO = 'It makes video, which another plugin serves: pip install "mlxengine[video]".'
_HINTS = {
    "WanPipeline": _VIDEO,
    "WanImageToVideoPipeline": _VIDEO,
    "StableDiffusion3Pipeline": (
        "Stable Diffusion 3 is served in the format of diffusionkit alone: "
        "argmaxinc/mlx-stable-diffusion-3-medium or argmaxinc/mlx-stable-diffusion-3.5-large."
    ),
}


def claim(card: ModelCard, backend: str | None) -> Claim | None:
    """The plugin's offer for a model; ``backend`` is the one that the caller named."""
    try:
        with building(card.id):
            _check(card)
            found = choose(card, backend)
    except IncompatibleWeightsError as problem:
        if "model_index.json" not in card.documents:
            return None
        return Claim(kind="diffusion", fit=Fit.FALLBACK, problem=problem, reason="damaged configurations")
    if found is not None:
        return Claim(
            kind="diffusion",
            fit=Fit.NATIVE,
            files=found.offer.files,
            capabilities=_CAPABILITIES,
            estimate=_estimate(card, found.offer),
            problem=found.offer.problem,
            reason=f"back end {found.reason}",
        )
    name = str(document(card, "model_index.json").get("_class_name"))
    if not name.endswith("Pipeline"):
        return None
    return Claim(
        kind="diffusion",
        fit=Fit.FALLBACK,
        problem=UnsupportedArchitectureError(
            f"No back end here makes pictures with a {name} ({card.id}).",
            hint=_HINTS.get(name, _SERVED),
        ),
        reason=f"a diffusers pipeline of an unknown kind, {name}",
    )


def _check(card: ModelCard) -> None:
    """Refuse a part's configuration that nothing should be built from."""
    for path, config in card.documents.items():
        folder, _, name = path.rpartition("/")
        if name == "config.json" and isinstance(config, Mapping):
            own = [item for item in card.tensors if item.file.startswith(f"{folder}/")]
            if (problem := config_problem(card.id, config, own or card.tensors)) is not None:
                raise problem


def _estimate(card: ModelCard, offer: Offer) -> Callable[[PictureWorkload], MemoryEstimate] | None:
    if offer.stages is None:
        return None
    stages = offer.stages
    usual = models.defaults_for(card, Defaults(size=offer.size)).size

    def estimate(workload: PictureWorkload) -> MemoryEstimate:
        width, height = workload.size or usual
        shape = Shape(
            width=width,
            height=height,
            rows=2 * workload.n,
            on_cpu=workload.backend == "cpu",
            tiled=workload.vae_tiling or tiles_asked(card),
        )
        staged = workload.low_memory or stages_asked(card)
        weights, workspace = peak(stages(shape), staged=staged)
        return MemoryEstimate(weights=weights + workload.beside, workspace=workspace)

    return estimate
