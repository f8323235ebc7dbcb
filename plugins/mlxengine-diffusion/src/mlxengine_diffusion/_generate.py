"""An image request into events: validation, one denoising step a turn, pixels and recipe at the end."""

from __future__ import annotations

import hashlib
import logging
import math
import secrets
from collections.abc import Callable, Generator, Iterator
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from attrs import evolve, frozen
from mlxengine import (
    Array,
    Event,
    Finished,
    ImageControl,
    ImagePreview,
    ImageReady,
    ImageRequest,
    IPAdapter,
    ModelCard,
    Progress,
    RunContext,
    TokenUsage,
)
from mlxengine.errors import FeatureUnavailableError, InvalidParameterError, UnsupportedInputError

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
from .backends._work import Guide, Job, Pipeline, Pixels, PromptReport, Seen, Step
from .features import IMAGE_TO_IMAGE, IMAGES, KEEP_LOADED, LORA, LOW_MEMORY, VAE_TILING
from .sd.prompts import check_prompt, has_weights, parse

_log = logging.getLogger("mlxengine.diffusion")
_MOST_PICTURES = 64
_REFINER_AT = 0.8
_LORA_FILES = ("*.safetensors", "*.json")
_CONTROL_FILES = ("config.json", "diffusion_pytorch_model*.safetensors")
_TENSOR_FILES = ("*.safetensors",)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def _always(_shape: Shape) -> bool:
    return True


@frozen(kw_only=True, eq=False)
class PictureModel:
    """What the plugin's ``load_model`` returns to itself.

    ``holds`` says whether there is memory for what is to be made at once.
    """

    pipeline: Pipeline
    card: ModelCard
    backend: str
    holds: Callable[[Shape], bool] = _always


def generate(model: PictureModel, request: ImageRequest, context: RunContext) -> Iterator[Event | None]:
    """Check the request and return the iterator that serves it.

    Raises:
        InvalidParameterError, UnsupportedInputError, FeatureUnavailableError: it cannot be served.
    """
    job = plan(model.pipeline, request, context, model.holds)
    return _run(model, request, job, context)


def plan(
    pipeline: Pipeline,
    request: ImageRequest,
    context: RunContext,
    holds: Callable[[Shape], bool] = _always,
) -> Job:
    """Everything that a request leaves open, decided; everything that is wrong with it, raised."""
    abilities, defaults = pipeline.abilities, pipeline.abilities.defaults
    context.features.require(IMAGES)
    for name in ("prompt", "negative"):
        value = getattr(request, name)
        if not isinstance(value, str) and not (value is None and name == "negative"):
            _refuse(f"{name}={value!r} must be a text.")
    _integer("n", request.n, 1, _MOST_PICTURES)
    _integer("preview_every", request.preview_every, 0, abilities.most_steps)
    steps = defaults.steps if request.steps is None else request.steps
    _integer("steps", steps, 1, abilities.most_steps)
    seed = secrets.randbits(32) if request.seed is None else request.seed
    _integer("seed", seed, 0, 2**64 - request.n)
    guidance = defaults.guidance if request.guidance is None else request.guidance
    _number("guidance", guidance, 0, 1000)
    if request.negative is not None and not (abilities.negative and guidance > 1):
        _refuse(
            f"A negative prompt has no effect at guidance {guidance:g}.",
            "Use a guidance above 1." if abilities.negative else "This model has no negative prompts.",
        )
    if guidance > 1 and not abilities.guided:
        _refuse(f"guidance={guidance:g} has no effect on this model.", "Leave it out: it was distilled.")
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
    _check_size(size, abilities.size_step, abilities.largest)
    width, height = size
    mask = _mask(pipeline, request, size)
    usual = defaults.strength if mask is None else 1.0
    strength = usual if request.strength is None else request.strength
    return Job(
        prompt=request.prompt,
        negative=request.negative,
        width=width,
        height=height,
        steps=steps,
        guidance=float(guidance),
        seed=seed,
        scheduler=_chosen("scheduler", request.scheduler, abilities.schedulers) or defaults.scheduler,
        sigmas=_chosen("sigmas", request.sigmas, abilities.placements),
        clip_skip=_layer(pipeline, request.clip_skip),
        prompt_weights=abilities.prompt_weights and request.prompt_weights is not False,
        guidance_rescale=_rescale(pipeline, request.guidance_rescale),
        init=None if picture is None else pixels_of(picture, (width, height)),
        mask=mask,
        references=references,
        controls=_controls(pipeline, request, size, context),
        ip_adapters=_seen(pipeline, request, context),
        refiner=_refiner(pipeline, request, context),
        refiner_at=_REFINER_AT if request.refiner_at is None else float(request.refiner_at),
        strength=1.0 if picture is None else float(strength),
        lora=_adapters(pipeline, request, context),
        low_memory=_low_memory(pipeline, request, context),
        textual_inversions=_taught(pipeline, request, context),
        upscale=None if request.upscale is None else _reference("upscaler", request.upscale, context),
        vae_tiling=_tiles(pipeline, request, context, holds, (width, height)),
    )


def _check_prompts(pipeline: Pipeline, request: ImageRequest) -> None:
    able, library = pipeline.abilities.prompt_weights, pipeline.info.get("library")
    if request.prompt_weights not in (None, True, False):
        _refuse(f"prompt_weights={request.prompt_weights!r} must be True or False.")
    if request.prompt_weights and not able:
        _refuse(f"This model's prompts have no weights ({library}).", "Leave prompt_weights out.")
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
            _refuse("This model has no choice of a text encoder's layer.", "Leave clip_skip out.")
        _integer("clip_skip", wanted, 1, pipeline.abilities.text_layers)
    return wanted


def _rescale(pipeline: Pipeline, wanted: float | None) -> float:
    if wanted is None:
        return 0.0
    if not pipeline.abilities.guidance_rescale:
        _refuse("This model's guidance cannot be rescaled.", "Leave guidance_rescale out.")
    _number("guidance_rescale", wanted, 0, 1)
    return float(wanted)


def _picture(pipeline: Pipeline, request: ImageRequest, context: RunContext) -> Any:
    if request.init_image is None:
        if request.strength is not None:
            _refuse("strength has no meaning without init_image.")
        return None
    context.features.require(IMAGE_TO_IMAGE)
    if not pipeline.abilities.init_image:
        raise UnsupportedInputError(
            f"This model makes pictures from text only ({pipeline.info.get('library')}).",
            hint="Leave init_image out, or load another model.",
        )
    if request.strength is not None:
        _number("strength", request.strength, 0, 1)
    return open_picture(request.init_image)


def _references(pipeline: Pipeline, request: ImageRequest, context: RunContext) -> tuple[Pixels, ...]:
    _several("references", request.references, "picture")
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
        _refuse(f"references holds {len(request.references)} pictures; this model looks at {most} at most.")
    if pipeline.abilities.reference_area:
        return tuple(whole_pixels(source) for source in request.references)
    step, sizes = pipeline.abilities.size_step, pipeline.abilities.reference_sizes
    return tuple(reference_pixels(source, step, sizes) for source in request.references)


def _controls(
    pipeline: Pipeline, request: ImageRequest, size: tuple[int, int], context: RunContext
) -> tuple[Guide, ...]:
    _several("controls", request.controls, "control")
    if not request.controls:
        return ()
    if not pipeline.abilities.controls:
        raise FeatureUnavailableError(
            f"The back end of this model ({pipeline.info.get('library')}) applies no ControlNets."
        )
    found = []
    for item in request.controls:
        if not isinstance(item, ImageControl):
            _refuse(f"controls holds ImageControl values, found a {type(item).__name__}.")
        _number("strength of a control", item.strength, -10, 10)
        _number("start of a control", item.start, 0, 1)
        _number("end of a control", item.end, item.start, 1)
        found.append(
            Guide(
                path=_reference("ControlNet", item.source, context),
                pixels=pixels_of(open_picture(item.image, name="image of a control"), size),
                strength=float(item.strength),
                start=float(item.start),
                end=float(item.end),
            )
        )
    return tuple(found)


def _seen(pipeline: Pipeline, request: ImageRequest, context: RunContext) -> tuple[Seen, ...]:
    _several("ip_adapters", request.ip_adapters, "adapter")
    if request.ip_adapters and not pipeline.abilities.ip_adapter:
        raise FeatureUnavailableError(
            f"The back end of this model ({pipeline.info.get('library')}) applies no IP-Adapters."
        )
    found = []
    for item in request.ip_adapters:
        if not isinstance(item, IPAdapter):
            _refuse(f"ip_adapters holds IPAdapter values, found a {type(item).__name__}.")
        _number("strength of an IP-Adapter", item.strength, -10, 10)
        path = _reference("IP-Adapter", item.source, context)
        if path.suffix in _PICKLES:
            _refuse(
                f"{path.name} is a pickle, which can run code and is never loaded.",
                "Give the .safetensors file: h94/IP-Adapter has one beside each .bin, and others can be "
                "converted with the library safetensors.",
            )
        picture = open_picture(item.image, name="image of an IP-Adapter")
        found.append(Seen(path=path, pixels=pixels_of(picture, picture.size), strength=float(item.strength)))
    return tuple(found)


def _refiner(pipeline: Pipeline, request: ImageRequest, context: RunContext) -> Path | None:
    if request.refiner is None:
        if request.refiner_at is not None:
            _refuse("refiner_at has no meaning without refiner.")
        return None
    if not pipeline.abilities.refiner:
        raise FeatureUnavailableError(
            f"This model takes no refiner ({pipeline.info.get('library')}).",
            hint="Stable Diffusion XL does. To go over a finished picture, use init_image.",
        )
    if request.refiner_at is not None:
        _number("refiner_at", request.refiner_at, 0, 1)
    return _reference("refiner", request.refiner, context)


def _mask(pipeline: Pipeline, request: ImageRequest, size: tuple[int, int]) -> Pixels | None:
    if request.mask is None:
        if pipeline.abilities.fills:
            _refuse("This model fills a hole in a picture.", "Give it both: init_image and mask.")
        return None
    if request.init_image is None:
        _refuse("mask has no meaning without init_image.", "It says which part of that picture to make anew.")
    if not pipeline.abilities.mask:
        raise UnsupportedInputError(
            f"This model makes whole pictures ({pipeline.info.get('library')}).",
            hint="Leave mask out, or load another model.",
        )
    return open_mask(request.mask, size)


def _chosen(name: str, wanted: str | None, known: tuple[str, ...]) -> str | None:
    if wanted is not None and wanted not in known:
        _refuse(
            f"{name}={wanted!r} is not known.",
            f"Use one of {', '.join(known)}." if known else f"This model has one fixed {name}: leave it out.",
        )
    return wanted


def _adapters(
    pipeline: Pipeline, request: ImageRequest, context: RunContext
) -> tuple[tuple[Path, float], ...]:
    _several("lora", request.lora, '("adapter", 0.8)')
    if not request.lora:
        return ()
    context.features.require(LORA)
    if not pipeline.abilities.lora:
        raise FeatureUnavailableError(
            f"The back end of this model ({pipeline.info.get('library')}) applies no LoRA adapters."
        )
    found = []
    for item in request.lora:
        if not isinstance(item, tuple) or len(item) != 2 or not isinstance(item[0], str | Path):
            _refuse(f"lora holds (reference, scale) pairs, found {item!r}.")
        reference, scale = item
        _number("lora scale", scale, -100, 100)
        found.append((_reference("adapter", reference, context), float(scale)))
    return tuple(found)


def _taught(pipeline: Pipeline, request: ImageRequest, context: RunContext) -> tuple[Path, ...]:
    _several("textual_inversions", request.textual_inversions, '"words.safetensors"')
    if request.textual_inversions and not pipeline.abilities.textual_inversion:
        raise FeatureUnavailableError(
            f"The back end of this model ({pipeline.info.get('library')}) takes no textual inversions."
        )
    return tuple(
        _reference("textual inversion", reference, context) for reference in request.textual_inversions
    )


def _reference(what: str, value: Any, context: RunContext) -> Path:
    """A file or folder, or the name of a repository, which is fetched when the request runs."""
    if not isinstance(value, str | Path):
        _refuse(f"{value!r} names no {what}.", "Give a file, a folder or a repository.")
    path = Path(value).expanduser()
    if context.fetch is None and not path.exists():
        _refuse(f"The {what} {value!s} does not exist, and nothing can be fetched here.")
    return path


def _low_memory(pipeline: Pipeline, request: ImageRequest, context: RunContext) -> bool:
    if request.low_memory not in (None, True, False):
        _refuse(f"low_memory={request.low_memory!r} must be True or False.")
    if request.low_memory is None:
        return pipeline.abilities.low_memory and not context.features.get(KEEP_LOADED)
    if request.low_memory:
        context.features.require(LOW_MEMORY)
        if not pipeline.abilities.low_memory:
            raise FeatureUnavailableError(
                f"The back end of this model ({pipeline.info.get('library')}) cannot free its parts by stage."
            )
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
        _refuse(f"vae_tiling={request.vae_tiling!r} must be True or False.")
    if not pipeline.abilities.vae_tiling:
        if request.vae_tiling:
            raise FeatureUnavailableError(
                f"The back end of this model ({pipeline.info.get('library')}) decodes whole pictures."
            )
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


def _fetched(job: Job, usual: str, context: RunContext) -> Generator[Event | None, None, Job]:
    """The job with the folders of everything it names that is on the hub.

    ``usual`` is the file that stands for a repository of IP-Adapters.
    """

    def present(path: Path, files: tuple[str, ...]) -> Generator[Event | None, None, Path]:
        if context.fetch is None or path.exists():
            return path
        return (yield from context.fetch(str(path), files))

    adapters, guides, words, seen = [], [], [], []
    for path, scale in job.lora:
        adapters.append(((yield from present(path, _LORA_FILES)), scale))
    for guide in job.controls:
        guides.append(evolve(guide, path=(yield from present(guide.path, _CONTROL_FILES))))
    for item in job.ip_adapters:
        place = item.path
        if not place.exists():
            file = "/".join(place.parts[2:]) or usual
            encoder = _encoder_of(file)
            wanted = (file, f"{encoder}/config.json", f"{encoder}/*.safetensors")
            place = (yield from present(Path(*place.parts[:2]), wanted)) / file
        seen.append(evolve(item, path=place))
    for path in job.textual_inversions:
        words.append((yield from present(path, _TENSOR_FILES)))
    refiner = job.refiner
    if refiner is not None:
        place = yield from present(refiner, ("unet/config.json", "unet/*.fp16*.safetensors"))
        if not any((place / "unet").glob("*.safetensors")):  # it has none in half precision
            place = yield from present(refiner, ("unet/*",))
        refiner = place
    upscale = job.upscale
    if upscale is not None:
        upscale = yield from present(upscale, _TENSOR_FILES)
    return evolve(
        job,
        lora=tuple(adapters),
        controls=tuple(guides),
        ip_adapters=tuple(seen),
        refiner=refiner,
        textual_inversions=tuple(words),
        upscale=upscale,
    )


def _encoder_of(file: str) -> str:
    """The folder of a repository that holds the image encoder of one of its IP-Adapters.

    SDXL's adapters for the smaller encoder, which say so in their names, share that of Stable Diffusion 1.
    """
    path = PurePosixPath(file)
    return "models/image_encoder" if "vit-h" in path.name else str(path.parent / "image_encoder")


def _run(
    model: PictureModel, request: ImageRequest, planned: Job, context: RunContext
) -> Generator[Event | None, None, None]:
    pipeline = model.pipeline
    first = yield from _fetched(planned, pipeline.abilities.ip_adapter, context)
    report = pipeline.read_prompt(first)
    if report.truncated:
        _log.warning("The prompt is longer than the model takes; left out: %s", report.truncated)
    upscaler = None
    if first.upscale is not None:
        from .upscaling import enlarged, read_upscaler

        upscaler = read_upscaler(first.upscale)  # what is wrong with it is said before the picture is made
    index = 0
    while index < request.n:
        job = evolve(first, seed=first.seed + index, n=_together(model, first, request.n - index))
        latents = yield from _denoise(pipeline, job, index, request.preview_every)
        for place in range(job.n):
            own = evolve(job, seed=job.seed + place, n=1)
            pixels = _pasted((yield from pipeline.decode(_one(latents, place, job), own)), own)
            if upscaler is not None:
                pixels = yield from enlarged(upscaler, pixels)
            yield ImageReady(index=index + place, pixels=_array(pixels), recipe=recipe(model, own, report))
        index += job.n
    yield Finished(usage=TokenUsage(prompt_tokens=report.tokens))


def _together(model: PictureModel, job: Job, wanted: int) -> int:
    """How many of the pictures that are still wanted are made at once: what fills the device, and fits it."""
    found = max(1, min(wanted, model.pipeline.abilities.together // (job.width * job.height)))
    each = 2 if job.guidance > 1 else 1
    while found > 1 and not model.holds(
        Shape(width=job.width, height=job.height, rows=each * found, tiled=job.vae_tiling)
    ):
        found -= 1
    return found


def _one(latents: Any, place: int, job: Job) -> Any:
    return latents if job.n == 1 else latents[place : place + 1]


def _pasted(pixels: Pixels, job: Job) -> Pixels:
    """The pixels that the mask keeps, as they were: the autoencoder gives them back but nearly."""
    import numpy as np

    if job.mask is None or job.init is None:
        return pixels
    found: Pixels = np.where(job.mask[..., None] > 0, pixels, job.init)
    return found


def _denoise(pipeline: Pipeline, job: Job, index: int, every: int) -> Generator[Event | None, None, Any]:
    latents = None
    for step in pipeline.denoise(job):
        if step is None:
            yield None
            continue
        latents = step.latents
        for place in range(job.n):
            if step.total:
                yield Progress(index=index + place, stage="denoise", done=step.done, total=step.total)
            if _wants_preview(step, every):
                pixels = yield from pipeline.preview(_one(step.clean, place, job), job)
                yield ImagePreview(index=index + place, step=step.done, pixels=_array(pixels))
    return latents


def _wants_preview(step: Step, every: int) -> bool:
    return bool(every) and step.clean is not None and step.done < step.total and step.done % every == 0


def recipe(model: PictureModel, job: Job, report: PromptReport) -> dict[str, Any]:
    """Everything that makes the picture again, as plain JSON values."""
    made: dict[str, Any] = {
        "model": model.card.id,
        "commit": model.card.commit,
        "plugin": f"mlxengine-diffusion {version('mlxengine-diffusion')}",
        "backend": model.backend,
        "prompt": job.prompt,
        "negative": job.negative,
        "width": job.width,
        "height": job.height,
        "steps": job.steps,
        "guidance": job.guidance,
        "seed": job.seed,
        "scheduler": job.scheduler,
        "sigmas": job.sigmas,
        "clip_skip": job.clip_skip,
        "prompt_weights": job.prompt_weights if model.pipeline.abilities.prompt_weights else None,
        "guidance_rescale": job.guidance_rescale or None,
        "dtype": model.pipeline.info.get("dtype"),
        "bits": model.pipeline.info.get("unet_bits"),
        "lora": [[str(path), scale] for path, scale in job.lora],
        "textual_inversions": [str(path) for path in job.textual_inversions] or None,
        "vae": model.pipeline.info.get("vae"),
        "vae_tiling": job.vae_tiling or None,
        "upscale": None if job.upscale is None else str(job.upscale),
    }
    if job.init is not None:
        made["strength"] = job.strength
        made["init_sha256"] = hashlib.sha256(job.init.tobytes()).hexdigest()
    if job.mask is not None:
        made["mask_sha256"] = hashlib.sha256(job.mask.tobytes()).hexdigest()
    if job.controls:
        made["controls"] = [
            [
                str(item.path),
                item.strength,
                item.start,
                item.end,
                hashlib.sha256(item.pixels.tobytes()).hexdigest(),
            ]
            for item in job.controls
        ]
    if job.ip_adapters:
        made["ip_adapters"] = [
            [str(item.path), item.strength, hashlib.sha256(item.pixels.tobytes()).hexdigest()]
            for item in job.ip_adapters
        ]
    if job.refiner is not None:
        made["refiner"], made["refiner_at"] = str(job.refiner), job.refiner_at
    if job.references:
        made["references_sha256"] = [hashlib.sha256(item.tobytes()).hexdigest() for item in job.references]
    if report.truncated:
        made["truncated"] = report.truncated
    return made


def _array(pixels: Pixels) -> Array:
    return Array(data=pixels.tobytes(), shape=tuple(pixels.shape), dtype="uint8")


def _check_size(size: Any, step: int, largest: int) -> None:
    if not isinstance(size, tuple | list) or len(size) != 2:
        _refuse(f"size={size!r} must be (width, height) in pixels.")
    for name, value in zip(("width", "height"), size, strict=True):
        _integer(name, value, step, largest)
        if value % step:
            near = max(step, round(value / step) * step)
            _refuse(f"{name}={value} must be a multiple of {step} for this model.", f"{near} is the nearest.")


def _integer(name: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        _refuse(f"{name}={value!r} must be an integer from {low} to {high}.")


def _several(name: str, value: Any, one: str) -> None:
    if not isinstance(value, tuple | list):
        _refuse(f"{name} holds several, also where it is one.", f"Write {name}=({one},).")


def _number(name: str, value: Any, low: float, high: float) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not low <= value <= high:
        _refuse(f"{name}={value!r} must be a number from {low:g} to {high:g}.")


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise InvalidParameterError(message, hint=hint)


__all__ = ["PictureModel", "generate", "plan", "recipe"]
