"""Loading: the back end builds, we wrap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from attrs import evolve
from mlxengine import Feature, ImageRequest, LoadContext, Loaded, ModelCard, ModelState, RunContext
from mlxengine.errors import FeatureUnavailableError, InvalidParameterError, UnsupportedArchitectureError

from ._generate import PictureModel
from ._plan import plan
from .backends import Offer, backend, choose
from .backends._memory import Shape, peak
from .backends._work import Pipeline
from .features import BACKEND_DTYPE, COMPILE, KEEP_LOADED, QUANTIZE, TAESD, VAE, VAE_TILING

_NOT_FOLLOWED: Mapping[str, tuple[Feature[Any], ...]] = {
    "mlx_vlm": (BACKEND_DTYPE, COMPILE, VAE, TAESD),
    "mflux": (BACKEND_DTYPE, COMPILE, VAE, TAESD),
    "diffusionkit": (QUANTIZE, BACKEND_DTYPE, COMPILE, VAE, TAESD),
}


def load(card: ModelCard, context: LoadContext, wanted: str | None) -> Loaded:
    """Build a model with the back end that serves it.

    Raises:
        UnsupportedArchitectureError, IncompatibleWeightsError, BackendUnavailableError: it cannot be.
        FeatureUnavailableError: a flag is set that the back end cannot follow.
    """
    # Before a back end imports mlx: its products are 30 times slower without.
    from mlxengine.toolkit import blas
    from mlxengine.toolkit.loading import building

    blas.load()
    with building(card.id):
        return _load(card, context, wanted)


def _load(card: ModelCard, context: LoadContext, wanted: str | None) -> Loaded:
    choice = choose(card, wanted)
    if choice is None:
        raise UnsupportedArchitectureError(
            f"No back end makes pictures with {card.architecture} ({card.id})."
        )
    if choice.offer.problem is not None:
        raise choice.offer.problem
    for feature in _NOT_FOLLOWED.get(choice.name, ()):
        if (value := context.features.get(feature)) not in (feature.default, "off"):
            raise FeatureUnavailableError(
                f"{feature.name}={value} has no effect on {choice.name}, which serves {card.id}.",
                hint="Leave it out for this model.",
            )
    pipeline = backend(choice.name).load(card, context)
    abilities = pipeline.abilities
    able = {
        "image_to_image": abilities.init_image,
        "inpainting": abilities.mask,
        "controlnet": abilities.controls,
        "ip_adapter": bool(abilities.ip_adapter),
        "refiner": abilities.refiner,
        "lora": abilities.lora,
        "low_memory": abilities.low_memory,
        "vae_tiling": abilities.vae_tiling,
        "negative_prompt": abilities.negative,
        "textual_inversion": abilities.textual_inversion,
    }
    return Loaded(
        model=PictureModel(
            pipeline=pipeline,
            card=card,
            backend=choice.name,
            holds=partial(_holds, choice.offer, context, abilities.defaults.size),
        ),
        warm=pipeline.warm(),
        warm_up=partial(_warm_up, pipeline, context),
        close=pipeline.close,
        state=lambda: ModelState(caches=pipeline.kept),
        trim=pipeline.trim,
        capabilities=frozenset(name for name, present in able.items() if present),
        info={"backend": choice.name, "why": choice.reason, **pipeline.info},
    )


def _warm_up(pipeline: Pipeline, context: LoadContext) -> Iterator[None]:
    """A step of a picture of the usual size: kernels are built for it and sizes planned.

    A model that makes no picture of a prompt alone is left as it is.
    """
    try:
        job = plan(pipeline, ImageRequest(prompt="a", steps=1, seed=0), RunContext(features=context.features))
    except InvalidParameterError:
        return
    latents = None
    for step in pipeline.denoise(job):
        latents = latents if step is None else step.latents
        yield None
    yield from pipeline.decode(latents, job)


def _holds(offer: Offer, context: LoadContext, usual: tuple[int, int], wanted: Shape) -> bool:
    """Whether what was reserved for usual pictures, with what is free, is enough for what is wanted."""
    room = context.cache_room()
    if offer.stages is None or room is None:
        return True
    stages, on_cpu = offer.stages, context.device.backend == "cpu"

    def taken(shape: Shape) -> int:
        found = stages(evolve(shape, on_cpu=on_cpu))
        return peak(found, staged=not context.features.get(KEEP_LOADED))[1]

    tiled = context.features.get(VAE_TILING) == "on"
    reserved = taken(Shape(width=usual[0], height=usual[1], tiled=tiled))
    return taken(wanted) <= reserved + max(0, room)


__all__ = ["load"]
