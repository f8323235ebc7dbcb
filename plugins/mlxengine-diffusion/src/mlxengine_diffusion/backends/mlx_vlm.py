"""Z-Image on mlx-vlm's networks.

mlx-vlm also has FLUX.2 and Qwen-Image. They are not offered: it builds FLUX.2 by the folder's name instead
of its configuration, and of Qwen-Image knows version 2.1 only.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from mlxengine import LoadContext, ModelCard
from mlxengine.errors import IncompatibleWeightsError

from ..models import defaults_for
from ..sd.layout import document
from . import Abilities, Defaults, Job, Offer, Pixels, PromptReport, Step
from ._slices import FLOW_PARTS as _PARTS
from ._slices import flow_offer, warm

if TYPE_CHECKING:
    import mlx.core as mx

SUMMARY = "Z-Image on mlx-vlm"
REMEDY = 'pip install "mlxengine-diffusion[vlm]"'
_LENGTH = 512


def claim(card: ModelCard) -> Offer | None:
    if document(card, "model_index.json").get("_class_name") != "ZImagePipeline":
        return None
    return flow_offer(card)


def missing() -> str | None:
    return None if importlib.util.find_spec("mlx_vlm") else "mlx-vlm"


def load(card: ModelCard, context: LoadContext) -> ZImage:
    from mlx_vlm.models.z_image.pipeline import ZImagePipeline
    from mlxengine.toolkit.dtype import upcast_for_cpu

    try:
        made = ZImagePipeline(context.path, evict_text_encoder=False)
        made._ensure_components()
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise IncompatibleWeightsError(f"{card.id} does not fit mlx-vlm's Z-Image: {error}") from error
    for part in _PARTS:
        upcast_for_cpu(getattr(made, part))
    turbo = made.config.variant == "turbo"
    own = Defaults(size=(1024, 1024), steps=8 if turbo else 50, guidance=0.0 if turbo else 4.0)
    abilities = Abilities(defaults=defaults_for(card, own), size_step=16, largest=2048)
    return ZImage(made, abilities, {"library": "mlx-vlm", "dtype": "float32 on a CPU, else as stored"})


class ZImage:
    """A loaded Z-Image: see `backends.Pipeline` for what each method does."""

    def __init__(self, pipeline: Any, abilities: Abilities, info: dict[str, Any]) -> None:
        self.abilities = abilities
        self.info = info
        self._pipeline = pipeline

    def warm(self) -> Iterator[None]:
        yield from warm([getattr(self._pipeline, part) for part in _PARTS])

    def close(self) -> None:
        self._pipeline = None

    def read_prompt(self, job: Job) -> PromptReport:
        pipeline = self._pipeline
        ids = list(pipeline.tokenizer(pipeline._format_prompt(job.prompt), truncation=False)["input_ids"])
        cut = ids[_LENGTH:]
        return PromptReport(
            tokens=min(len(ids), _LENGTH), truncated=pipeline.tokenizer.decode(cut).strip() if cut else ""
        )

    def denoise(self, job: Job, noise: mx.array | None = None) -> Iterator[Step | None]:
        import mlx.core as mx
        from mlx_vlm.models.mage_flow.scheduler import FlowMatchEulerDiscreteScheduler

        pipeline = self._pipeline
        guided = job.guidance > 1
        told = pipeline._encode_prompt(job.prompt)
        yield None
        contrast = pipeline._encode_prompt(job.negative or "") if guided else None
        shape = (1, 16, 1, job.height // 8, job.width // 8)
        latents = mx.random.normal(shape, key=mx.random.key(job.seed)) if noise is None else noise
        sampler = FlowMatchEulerDiscreteScheduler(
            num_inference_steps=job.steps, shift=pipeline.config.scheduler_shift
        )
        for index in range(job.steps):
            level = sampler.sigmas[index]
            time = (1.0 - level).reshape(1)
            output = pipeline.transformer(latents, time, told)
            if contrast is not None:
                # The prediction with the prompt is the base, as in the model's own pipeline.
                output = output + job.guidance * (output - pipeline.transformer(latents, time, contrast))
            clean = latents + level * output
            latents = sampler.step(velocity=-output, step_index=index, latents=latents)
            mx.eval(latents, clean)
            yield Step(done=index + 1, total=job.steps, latents=latents, clean=clean)

    def decode(self, latents: mx.array, job: Job) -> Generator[None, None, Pixels]:  # noqa: ARG002
        pixels = self._pipeline._decode_latents(latents)
        yield None
        found: Pixels = np.array(pixels)
        return found

    def preview(self, clean: mx.array, job: Job) -> Generator[None, None, Pixels]:
        return (yield from self.decode(clean[..., ::2, ::2], job))
