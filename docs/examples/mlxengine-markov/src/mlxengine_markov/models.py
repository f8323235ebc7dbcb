"""This plugin's part of the model registry."""

from mlxengine import ModelConfiguration, Provenance

from . import SPECIMEN

MODELS = (
    ModelConfiguration(
        id=str(SPECIMEN),
        kind="markov",
        family="markov",
        summary="A second-order word chain of a nursery rhyme, shipped with the plugin.",
        license="CC0-1.0",
        default_prompt="the",
        provenance=Provenance(checked="2026-11-22", source="the package's own files"),
    ),
)
