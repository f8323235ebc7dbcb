"""What a model that makes pictures is loaded with where memory is short."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import evolve

from ..contract._well_known import LLMEngineFeatures
from ..contract.features import Feature, Level
from ..contract.kinds import Lesser, Wanted
from .workload import PictureWorkload


def degrade(wanted: Wanted) -> Iterator[Lesser]:
    """What was asked for, then an autoencoder that works on tiles, then parts that are read one by one.

    Tiles first: they cost little time, while parts are read from the disk again for each picture. Flags that
    anybody set are left alone.
    """
    tiling, parts = (
        _flag(wanted, name) for name in (LLMEngineFeatures.VAE_TILING, LLMEngineFeatures.STAGED_PARTS)
    )
    asked: PictureWorkload = evolve(
        wanted.workload,
        vae_tiling=tiling is not None and wanted.features.get(tiling) == "on",
        low_memory=parts is not None and not wanted.features.get(parts),
    )
    yield Lesser(words="", workload=asked)
    words: list[str] = []
    features: dict[str, Any] = {}
    if tiling is not None and _free(wanted, tiling) and not asked.vae_tiling:
        asked = evolve(asked, vae_tiling=True)
        words.append("an autoencoder that works on tiles")
        features[tiling.name] = "on"
        yield Lesser(words=words[0], workload=asked, features=dict(features))
    if parts is not None and _free(wanted, parts) and not asked.low_memory:
        words.append("parts that are read one after the other for each picture")
        features[parts.name] = False
        yield Lesser(
            words=" and ".join(words), workload=evolve(asked, low_memory=True), features=dict(features)
        )


def _flag(wanted: Wanted, name: LLMEngineFeatures) -> Feature[Any] | None:
    registry = wanted.features.registry
    found = (item for item in registry.providers(name) if registry.provider(item.name) == wanted.plugin)
    return next(found, None)


def _free(wanted: Wanted, flag: Feature[Any]) -> bool:
    """Whether the flag has an effect here, and nobody has set it."""
    known = wanted.features.registry.why_not(flag) is None
    return known and wanted.features.explain(flag).source is Level.DEFAULT


__all__ = ["degrade"]
