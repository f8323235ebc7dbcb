"""What an image request leaves open, decided; what is wrong with it, said before anything is done."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import Any

from attrs import evolve
from mlxengine import ImageRequest, RunContext
from mlxengine.errors import UnsupportedInputError
from mlxengine.pictures.exchange import sampler_called

from ._brought import adapters_of, guides_of, reference, refiner_of, seen_of, taught_words
from ._checks import check_size, chosen, integer, number, refuse, several, unable
from ._pictures import (
    area_size,
    fitted_size,
    open_mask,
    open_picture,
    pixels_of,
    reference_pixels,
    whole_pixels,
)
from .backends._memory import Shape
from .backends._work import Job, Pipeline, Pixels
from .features import IMAGE_TO_IMAGE, IMAGES, KEEP_LOADED, LOW_MEMORY, VAE_TILING
from .sd.prompts import check_prompt, has_weights, parse

_log = logging.getLogger("mlxengine.diffusion")
_MOST_PICTURES = 64
_REFINER_AT = 0.8


def always(_shape: Shape) -> bool:
    """There is memory for everything."""
    return True


def plan(
    pipeline: Pipeline,
    request: ImageRequest,
    context: RunContext,
    holds: Callable[[Shape], bool] = always,
) -> Job:
    """Everything that a request leaves open, decided; everything that is wrong with it, raised."""
    abilities, defaults = pipeline.abilities, pipeline.abilities.defaults
    context.features.require(IMAGES)
    for name in ("prompt", "negative"):
        value = getattr(request, name)
        if not isinstance(value, str) and not (value is None and name == "negative"):
            refuse(f"{name}={value!r} must be a text.")
    integer("n", request.n, 1, _MOST_PICTURES)
    integer("preview_every", request.preview_every, 0, abilities.most_steps)
    steps = defaults.steps if request.steps is None else request.steps
    integer("steps", steps, 1, abilities.most_steps)
    seed = secrets.randbits(32) if request.seed is None else request.seed
    if seed == -1:  # elsewhere it stands for any
        refuse("seed=-1 is none.", "Leave it out, and every picture gets another one.")
    integer("seed", seed, 0, 2**64 - request.n)
    guidance = defaults.guidance if request.guidance is None else request.guidance
    number("guidance", guidance, 0, 1000)
    if request.negative is not None and not (abilities.negative and guidance > 1):
        refuse(
            f"A negative prompt has no effect at guidance {guidance:g}.",
            "Use a guidance above 1." if abilities.negative else "This model has no negative prompts.",
        )
    if guidance > 1 and not abilities.guided:
        refuse(f"guidance={guidance:g} has no effect on this model.", "Leave it out: it was distilled.")
    _check_prompts(pipeline, request)
    if abilities.edits and request.init_image is not None and request.strength is request.mask is None:
        edited = (request.init_image, *request.references)
        request = evolve(request, init_image=None, references=edited)
    picture = _picture(pipeline, request, context)
    references = _references(pipeline, request, context)
    size = request.size or (fitted_size(picture, abilities.size_step) if picture else None)
    if size is None:
        size = references[0].shape[1::-1] if references else defaults.size
        if references and abilities.reference_area:
            size = area_size(references[-1].shape[1::-1], abilities.reference_area)
    check_size(size, abilities.size_step, abilities.largest)
    width, height = size
    mask = _mask(pipeline, request, size)
    usual = defaults.strength if mask is None else 1.0
    strength = usual if request.strength is None else request.strength
    scheduler, sigmas = _sampler(request, abilities.schedulers)
    return Job(
        prompt=request.prompt,
        negative=request.negative,
        width=width,
        height=height,
        steps=steps,
        guidance=float(guidance),
        seed=seed,
        scheduler=chosen("scheduler", scheduler, abilities.schedulers) or defaults.scheduler,
        sigmas=chosen("sigmas", sigmas, abilities.placements),
        clip_skip=_layer(pipeline, request.clip_skip),
        prompt_weights=abilities.prompt_weights and request.prompt_weights is not False,
        guidance_rescale=_rescale(pipeline, request.guidance_rescale),
        init=None if picture is None else pixels_of(picture, (width, height)),
        mask=mask,
        references=references,
        controls=guides_of(pipeline, request, size, context),
        ip_adapters=seen_of(pipeline, request, context),
        refiner=refiner_of(pipeline, request, context),
        refiner_at=_REFINER_AT if request.refiner_at is None else float(request.refiner_at),
        strength=1.0 if picture is None else float(strength),
        lora=adapters_of(pipeline, request, context),
        low_memory=_low_memory(pipeline, request, context),
        textual_inversions=taught_words(pipeline, request, context),
        upscale=None if request.upscale is None else reference("upscaler", request.upscale, context),
        vae_tiling=_tiles(pipeline, request, context, holds, (width, height)),
    )


def _sampler(request: ImageRequest, known: tuple[str, ...]) -> tuple[str | None, str | None]:
    """The sampler and its levels; a name of the web UI's, ``DPM++ 2M Karras``, is ours for it."""
    name, sigmas = request.scheduler, request.sigmas
    if isinstance(name, str) and name not in known:
        ours, placed = sampler_called(name)
        if ours in known:
            return ours, sigmas or placed
    return name, sigmas


def _check_prompts(pipeline: Pipeline, request: ImageRequest) -> None:
    able, library = pipeline.abilities.prompt_weights, pipeline.info.get("library")
    if request.prompt_weights not in (None, True, False):
        refuse(f"prompt_weights={request.prompt_weights!r} must be True or False.")
    if request.prompt_weights and not able:
        refuse(f"This model's prompts have no weights ({library}).", "Leave prompt_weights out.")
    if request.prompt_weights is False:
        return
    for name, text in (("prompt", request.prompt), ("negative prompt", request.negative or "")):
        check_prompt(name, text)
        if able:
            parse(text)  # a weight that makes no sense
        elif has_weights(text):
            _log.warning("This model reads (words:1.2) in the %s as letters (%s).", name, library)


def _layer(pipeline: Pipeline, wanted: int | None) -> int | None:
    if wanted is not None:
        if not pipeline.abilities.text_layers:
            refuse("This model has no choice of a text encoder's layer.", "Leave clip_skip out.")
        integer("clip_skip", wanted, 1, pipeline.abilities.text_layers)
    return wanted


def _rescale(pipeline: Pipeline, wanted: float | None) -> float:
    if wanted is None:
        return 0.0
    if not pipeline.abilities.guidance_rescale:
        refuse("This model's guidance cannot be rescaled.", "Leave guidance_rescale out.")
    number("guidance_rescale", wanted, 0, 1)
    return float(wanted)


def _picture(pipeline: Pipeline, request: ImageRequest, context: RunContext) -> Any:
    if request.init_image is None:
        if request.strength is not None:
            refuse("strength has no meaning without init_image.")
        return None
    context.features.require(IMAGE_TO_IMAGE)
    if not pipeline.abilities.init_image:
        raise UnsupportedInputError(
            f"This model makes pictures from text only ({pipeline.info.get('library')}).",
            hint="Leave init_image out, or load another model.",
        )
    if request.strength is not None:
        number("strength", request.strength, 0, 1)
    return open_picture(request.init_image)


def _references(pipeline: Pipeline, request: ImageRequest, context: RunContext) -> tuple[Pixels, ...]:
    several("references", request.references, "picture")
    if not request.references:
        return ()
    context.features.require(IMAGE_TO_IMAGE)
    most = pipeline.abilities.references
    if not most:
        raise UnsupportedInputError(
            f"This model looks at no other pictures ({pipeline.info.get('library')}).",
            hint="Leave references out, or load FLUX.1 Kontext, FLUX.2 or Qwen-Image-Edit.",
        )
    if len(request.references) > most:
        refuse(f"references holds {len(request.references)} pictures; this model looks at {most} at most.")
    if pipeline.abilities.reference_area:
        return tuple(whole_pixels(source) for source in request.references)
    step, sizes = pipeline.abilities.size_step, pipeline.abilities.reference_sizes
    return tuple(reference_pixels(source, step, sizes) for source in request.references)


def _mask(pipeline: Pipeline, request: ImageRequest, size: tuple[int, int]) -> Pixels | None:
    if request.mask is None:
        if pipeline.abilities.fills:
            refuse("This model fills a hole in a picture.", "Give it both: init_image and mask.")
        return None
    if request.init_image is None:
        refuse("mask has no meaning without init_image.", "It says which part of that picture to make anew.")
    if not pipeline.abilities.mask:
        raise UnsupportedInputError(
            f"This model makes whole pictures ({pipeline.info.get('library')}).",
            hint="Leave mask out, or load another model.",
        )
    return open_mask(request.mask, size)


def _low_memory(pipeline: Pipeline, request: ImageRequest, context: RunContext) -> bool:
    if request.low_memory not in (None, True, False):
        refuse(f"low_memory={request.low_memory!r} must be True or False.")
    if request.low_memory is None:
        return pipeline.abilities.low_memory and not context.features.get(KEEP_LOADED)
    if request.low_memory:
        context.features.require(LOW_MEMORY)
        if not pipeline.abilities.low_memory:
            raise unable(pipeline, "cannot free its parts by stage")
    return request.low_memory


def _tiles(
    pipeline: Pipeline,
    request: ImageRequest,
    context: RunContext,
    holds: Callable[[Shape], bool],
    size: tuple[int, int],
) -> bool:
    """Whether the autoencoder works on tiles: as the request says, else the flag, else the memory."""
    if request.vae_tiling not in (None, True, False):
        refuse(f"vae_tiling={request.vae_tiling!r} must be True or False.")
    if not pipeline.abilities.vae_tiling:
        if request.vae_tiling:
            raise unable(pipeline, "decodes whole pictures")
        return False
    if request.vae_tiling is not None:
        return request.vae_tiling
    value = context.features.get(VAE_TILING)
    if value != "auto":
        return bool(value == "on")
    if holds(Shape(width=size[0], height=size[1])):
        return False
    _log.info("A picture of %d × %d pixels is decoded in tiles: memory is short for the whole.", *size)
    return True


__all__ = ["always", "plan"]
