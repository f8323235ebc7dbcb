"""The registry's entries of picture models, each with its defaults, and where each fact was read.

The facts stand in ``models.json``; steps and guidance without a source there are this project's choice.
How the file is read: `mlxengine.registry.read_entries`.
"""

from __future__ import annotations

from pathlib import Path

from attrs import frozen
from mlxengine import ModelCard, ModelConfiguration
from mlxengine.registry import read_entries

from .backends import Defaults


@frozen(kw_only=True)
class DiffusionConfiguration(ModelConfiguration):
    """A picture model and what a request that leaves something open gets. ``None``: the model's own.

    Args:
        image_size: (width, height) in pixels.
        steps: denoising steps.
        guidance: classifier-free guidance scale; 0 for models that were distilled to do without.
        scheduler: name of the sampler.
    """

    image_size: tuple[int, int] | None = None
    steps: int | None = None
    guidance: float | None = None
    scheduler: str | None = None


MODELS = read_entries(Path(__file__).with_name("models.json"), DiffusionConfiguration)


def defaults_for(card: ModelCard, own: Defaults) -> Defaults:
    """The defaults of a model: the caller's configuration, else the registry's entry, else its ``own``."""
    entry = card.configuration
    if not isinstance(entry, DiffusionConfiguration):
        known = MODELS.get(card.ref.repo_id or "")
        if known is None:
            return own
        entry = known
    return Defaults(
        size=own.size if entry.image_size is None else entry.image_size,
        steps=own.steps if entry.steps is None else entry.steps,
        guidance=own.guidance if entry.guidance is None else entry.guidance,
        scheduler=own.scheduler if entry.scheduler is None else entry.scheduler,
        strength=own.strength,
    )


__all__ = ["MODELS", "DiffusionConfiguration", "defaults_for"]
