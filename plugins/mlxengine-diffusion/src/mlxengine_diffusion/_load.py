"""Loading: the back end builds, we wrap."""

from __future__ import annotations

from mlxengine import LoadContext, Loaded, ModelCard
from mlxengine.errors import UnsupportedArchitectureError

from ._generate import PictureModel
from .backends import backend, choose


def load(card: ModelCard, context: LoadContext, wanted: str | None) -> Loaded:
    """Build a model with the back end that serves it.

    Raises:
        UnsupportedArchitectureError, IncompatibleWeightsError, BackendUnavailableError: it cannot be.
    """
    # Before a back end imports mlx: its products are 30 times slower without.
    from mlxengine.toolkit import blas

    blas.load()
    choice = choose(card, wanted)
    if choice is None:
        raise UnsupportedArchitectureError(
            f"No back end makes pictures with {card.architecture} ({card.id})."
        )
    if choice.offer.problem is not None:
        raise choice.offer.problem
    pipeline = backend(choice.name).load(card, context)
    abilities = pipeline.abilities
    able = {
        "image_to_image": abilities.init_image,
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
