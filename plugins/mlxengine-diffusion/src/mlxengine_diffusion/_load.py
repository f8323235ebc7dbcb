"""Loading: the back end builds, we wrap."""

from __future__ import annotations

from functools import partial
from typing import Any

from mlxengine import Feature, LoadContext, Loaded, ModelCard
from mlxengine.errors import FeatureUnavailableError, UnsupportedArchitectureError

from ._generate import PictureModel
from .backends import Offer, backend, choose
from .backends._memory import Shape, peak
from .features import BACKEND_DTYPE, COMPILE, KEEP_LOADED, QUANTIZE


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
    only: tuple[Feature[Any], ...] = (QUANTIZE, BACKEND_DTYPE, COMPILE)
    for feature in only if choice.name != "sd" else ():
        if (value := context.features.get(feature)) not in (feature.default, "off"):
            raise FeatureUnavailableError(
                f"{feature.name}={value} has no effect on {choice.name}, which serves {card.id}.",
                hint="Leave it out for this model; only Stable Diffusion 1, 2 and XL have it.",
            )
    pipeline = backend(choice.name).load(card, context)
    abilities = pipeline.abilities
    able = {
        "image_to_image": abilities.init_image,
        "inpainting": abilities.mask,
        "lora": abilities.lora,
        "low_memory": abilities.low_memory,
        "vae_tiling": abilities.vae_tiling,
        "negative_prompt": abilities.negative,
    }
    return Loaded(
        model=PictureModel(
            pipeline=pipeline,
            card=card,
            backend=choice.name,
            decodes_whole=partial(_decodes_whole, choice.offer, context, abilities.defaults.size),
        ),
        warm=pipeline.warm(),
        close=pipeline.close,
        capabilities=frozenset(name for name, present in able.items() if present),
        info={"backend": choice.name, "why": choice.reason, **pipeline.info},
    )


def _decodes_whole(offer: Offer, context: LoadContext, usual: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether what was reserved for usual pictures, with what is free, lets one of this size be whole."""
    room = context.cache_room()
    if offer.stages is None or room is None:
        return True

    def taken(size: tuple[int, int]) -> int:
        assert offer.stages is not None
        width, height = size
        shape = Shape(width=width, height=height, on_cpu=context.device.backend == "cpu")
        _, found = peak(offer.stages(shape), staged=not context.features.get(KEEP_LOADED))
        return found

    return taken(size) <= taken(usual) + max(0, room)


__all__ = ["load"]
