"""Loading: the back end builds, we wrap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxengine import Feature, LoadContext, Loaded, ModelCard
from mlxengine.errors import FeatureUnavailableError, UnsupportedArchitectureError

from ._generate import PictureModel
from .backends import backend, choose
from .features import BACKEND_DTYPE, COMPILE, QUANTIZE

_NOT_FOLLOWED: Mapping[str, tuple[Feature[Any], ...]] = {
    "mlx_vlm": (BACKEND_DTYPE, COMPILE),
    "mflux": (BACKEND_DTYPE, COMPILE),
    "diffusionkit": (QUANTIZE, BACKEND_DTYPE, COMPILE),
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
        "lora": abilities.lora,
        "low_memory": abilities.low_memory,
        "negative_prompt": abilities.negative,
    }
    return Loaded(
        model=PictureModel(pipeline=pipeline, card=card, backend=choice.name),
        warm=pipeline.warm(),
        close=pipeline.close,
        capabilities=frozenset(name for name, present in able.items() if present),
        info={"backend": choice.name, "why": choice.reason, **pipeline.info},
    )


__all__ = ["load"]
