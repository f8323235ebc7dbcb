"""The embedding models that are known by name: this plugin's part of the registry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen
from mlxengine import ModelConfiguration
from mlxengine.registry import read_entries


def _pairs(value: Mapping[str, str] | tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple(value.items()) if isinstance(value, Mapping) else tuple(value)


@frozen(kw_only=True)
class EmbedConfiguration(ModelConfiguration):
    """An embedding model: what `mlxengine.ModelConfiguration` has, and what only vectors have.

    The repository's own files win over ``pooling``, ``normalize`` and ``max_length``; these serve
    repositories that hold nothing but an encoder.

    Args:
        dimension: length of a vector.
        max_length: longest input in tokens.
        pooling: ``"cls"``, ``"mean"``, ``"max"``, ``"mean_sqrt_len_tokens"``, ``"weightedmean"`` or
            ``"lasttoken"``.
        normalize: whether vectors are scaled to unit length.
        prompts: prompts by name, added to the repository's own.
        harmless_settings: names of settings in the repository's files that are not honoured here and that,
            as the caller knows, change no vector; without this they are refused.
    """

    kind: str | None = "embed"
    dimension: int | None = None
    max_length: int | None = None
    pooling: str | None = None
    normalize: bool | None = None
    prompts: tuple[tuple[str, str], ...] = field(default=(), converter=_pairs)
    harmless_settings: tuple[str, ...] = field(default=(), converter=tuple)


# The file says for each fact where it was read; what has no source there was not looked up elsewhere.
MODELS = read_entries(Path(__file__).with_name("models.json"), EmbedConfiguration)

__all__ = ["MODELS", "EmbedConfiguration"]
