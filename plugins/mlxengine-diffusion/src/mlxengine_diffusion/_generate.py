"""An image request into events: one denoising step a turn, pixels and recipe at the end."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Generator, Iterator
from importlib.metadata import version
from typing import Any

from attrs import evolve, frozen
from mlxengine import (
    Array,
    Event,
    Finished,
    ImagePreview,
    ImageReady,
    ImageRequest,
    ModelCard,
    Progress,
    RunContext,
    TokenUsage,
)

from ._brought import fetched
from ._plan import always, plan
from .backends._memory import Shape
from .backends._work import Job, Pipeline, Pixels, PromptReport, Step

_log = logging.getLogger("mlxengine.diffusion")


@frozen(kw_only=True, eq=False)
class PictureModel:
    """What the plugin's ``load_model`` returns to itself.

    ``holds`` says whether there is memory for what is to be made at once.
    """

    pipeline: Pipeline
    card: ModelCard
    backend: str
    holds: Callable[[Shape], bool] = always


def generate(model: PictureModel, request: ImageRequest, context: RunContext) -> Iterator[Event | None]:
    """Check the request and return the iterator that serves it.

    Raises:
        InvalidParameterError, UnsupportedInputError, FeatureUnavailableError: it cannot be served.
    """
    job = plan(model.pipeline, request, context, model.holds)
    return _released(_run(model, request, job, context))


def _released(events: Iterator[Event | None]) -> Iterator[Event | None]:
    """The same events; the memory of a request's features goes back to the system behind them."""
    from mlxengine.toolkit.cache import release_pages

    try:
        yield from events
    finally:
        release_pages()


def _run(
    model: PictureModel, request: ImageRequest, planned: Job, context: RunContext
) -> Generator[Event | None, None, None]:
    pipeline = model.pipeline
    first = yield from fetched(planned, pipeline.abilities.ip_adapter, context)
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


__all__ = ["PictureModel", "generate", "recipe"]
