"""FLUX.1 with Kontext and Fill, FLUX.2 klein, Qwen-Image and Qwen-Image-Edit on mflux's networks."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from mlxengine import LoadContext, ModelCard
from mlxengine.errors import MLXEngineError

from ...sd.layout import document
from .. import Offer, _flux2
from .._flow import Levels
from .._slices import flow_offer

if TYPE_CHECKING:
    from .._flow import Flow

SUMMARY = "FLUX.1, FLUX.2 klein and Qwen-Image on mflux"
# Its metadata asks for an older huggingface_hub, and on Linux for one CUDA build of mlx; its code does not.
REMEDY = 'pip install "mlxengine-diffusion[mflux]", then pip install --no-deps "mflux>=0.24,<0.25"'
_FLUX1, _QWEN = ("FluxPipeline", "FluxKontextPipeline", "FluxFillPipeline"), "QwenImagePipeline"
_EDIT = ("QwenImageEditPipeline", "QwenImageEditPlusPipeline")
_FLUX2 = _flux2.Library(
    name="mflux",
    settings="mflux.models.common.config.model_config",
    transformer="mflux.models.flux2.model.flux2_transformer.transformer",
    text_encoder="mflux.models.flux2.model.flux2_text_encoder.qwen3_text_encoder",
    vae="mflux.models.flux2.model.flux2_vae.vae",
    encoder="mflux.models.flux2.model.flux2_vae.encoder.encoder",
)


def _pipeline(card: ModelCard) -> object:
    return document(card, "model_index.json").get("_class_name")


def claim(card: ModelCard) -> Offer | None:
    name = _pipeline(card)
    if name == _flux2.PIPELINE:
        return flow_offer(card, half_vae=True, copies=_flux2.COPIES)
    if name not in (*_FLUX1, _QWEN, *_EDIT):
        return None
    problem: MLXEngineError | None = None
    try:
        Levels.read(document(card, "scheduler/scheduler_config.json"))
    except MLXEngineError as error:
        problem = error
    if name == _QWEN:
        return flow_offer(card, problem=problem)
    if name in _EDIT:
        return flow_offer(card, problem=problem, sees=True)
    parts = ("text_encoder", "text_encoder_2", "transformer", "vae")
    return flow_offer(card, parts, ("tokenizer", "tokenizer_2"), problem=problem)


def missing() -> str | None:
    return None if importlib.util.find_spec("mflux") else "mflux"


def load(card: ModelCard, context: LoadContext) -> Flow:
    name = _pipeline(card)
    if name == _flux2.PIPELINE:
        return _flux2.load(card, context, _FLUX2)
    if name in _FLUX1:
        from . import flux1

        return flux1.load(card, context)
    if name in _EDIT:
        from . import qwen_edit

        return qwen_edit.load(card, context)
    from . import qwen_image

    return qwen_image.load(card, context)


__all__ = ["REMEDY", "SUMMARY", "claim", "load", "missing"]
