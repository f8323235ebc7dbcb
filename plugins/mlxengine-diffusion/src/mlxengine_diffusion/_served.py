"""Which back ends might serve a model, told by its pipeline's class or a file's name.

A claim is asked about every model of every kind: it imports only the back ends that are named here, and none
for a model that makes no pictures. Whether they do serve it, they say themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

from mlxengine import ModelCard

from .sd.single_file import checkpoints

PIPELINES = {
    "sd": (
        "StableDiffusionPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusionXLInpaintPipeline",
    ),
    "mlx_vlm": ("ZImagePipeline", "Flux2KleinPipeline"),
    "mflux": (
        "FluxPipeline",
        "FluxKontextPipeline",
        "FluxFillPipeline",
        "QwenImagePipeline",
        "QwenImageEditPipeline",
        "QwenImageEditPlusPipeline",
        "Flux2KleinPipeline",
    ),
}
"""The class in model_index.json that each back end makes pictures with."""
FILES = (
    "flux-schnell.safetensors",
    "flux-schnell-4bit-quantized.safetensors",
    "sd3_medium.safetensors",
    "sd3.5_large.safetensors",
    "sd3.5_large_4bit_quantized.safetensors",
)
"""The files by which diffusionkit knows its models."""


def pipeline(card: ModelCard) -> str | None:
    """The class that a repository of diffusers' names; ``None`` for what is no such repository."""
    index = card.documents.get("model_index.json")
    return str(index.get("_class_name")) if isinstance(index, Mapping) else None


def makes_pictures(card: ModelCard) -> bool:
    """Whether a model looks like one for pictures at all."""
    return pipeline(card) is not None or _of_diffusionkit(card) or bool(checkpoints(card))


def candidates(card: ModelCard) -> frozenset[str]:
    """The back ends that might serve a model."""
    name = pipeline(card)
    found = {backend for backend, names in PIPELINES.items() if name in names}
    if name is None and checkpoints(card):
        found.add("sd")
    return frozenset(found | ({"diffusionkit"} if _of_diffusionkit(card) else set()))


def _of_diffusionkit(card: ModelCard) -> bool:
    return any(item.path in FILES for item in card.files)


__all__ = ["FILES", "PIPELINES", "candidates", "makes_pictures", "pipeline"]
