"""The feature flags of the embedding plugin."""

from __future__ import annotations

import importlib.util
from typing import Any

from mlxengine import Feature, LLMEngineFeatures


def _library() -> str | None:
    return None if importlib.util.find_spec("mlx_embeddings") else "mlx-embeddings is not installed"


EMBEDDINGS = Feature(
    name="embed.embeddings",
    default=True,
    summary="Vectors of texts.",
    provides=LLMEngineFeatures.EMBEDDINGS,
    applies_to=("embed",),
    probe=_library,
)
PICTURES = Feature(
    name="embed.pictures",
    default=True,
    summary="Vectors of pictures beside those of texts, of models that see; off: texts only.",
    provides=LLMEngineFeatures.MULTI_MODAL,
    applies_to=("embed",),
    probe=_library,
)
RERANKING = Feature(
    name="embed.reranking",
    default=True,
    summary="Relevance scores from cross-encoders.",
    provides=LLMEngineFeatures.RERANKING,
    applies_to=("embed",),
    probe=_library,
)
BATCH = Feature(
    name="embed.batch",
    default=True,
    summary="Texts of similar length share a batch; off: one text at a time.",
    provides=LLMEngineFeatures.BATCH,
    applies_to=("embed",),
    probe=_library,
)
QUANTIZATION = Feature(
    name="embed.quantization",
    default=True,
    summary="Encoders whose weights an MLX conversion has quantized.",
    provides=LLMEngineFeatures.QUANTIZATION,
    applies_to=("embed",),
    probe=_library,
)
CUSTOM_TOKENIZERS = Feature(
    name="embed.custom_tokenizers",
    default=True,
    summary="Any tokenizer that transformers reads without running the repository's code.",
    provides=LLMEngineFeatures.CUSTOM_TOKENIZERS,
    applies_to=("embed",),
    probe=_library,
)
CPU_KERNELS = Feature(
    name="embed.cpu_kernels",
    default=True,
    summary="On a CPU, replace an encoder's slowest operations by quicker ones of the same value in fp32.",
    applies_to=("embed",),
    probe=_library,
)

FEATURES: tuple[Feature[Any], ...] = (
    EMBEDDINGS,
    PICTURES,
    RERANKING,
    BATCH,
    QUANTIZATION,
    CUSTOM_TOKENIZERS,
    CPU_KERNELS,
)
