"""The names of what engines are known to do."""

from __future__ import annotations

import enum


class LLMEngineFeatures(enum.StrEnum):
    """The well-known feature names. A plugin's `Feature` says which of them it provides."""

    LORA = "lora"
    QUANTIZATION = "quantization"
    MULTI_MODAL = "multi_modal"
    CUSTOM_TOKENIZERS = "custom_tokenizers"
    STREAMING = "streaming"
    BATCH = "batch"
    STRUCTURED_OUTPUT = "structured_output"
    TOOL_CALLING = "tool_calling"
    REASONING = "reasoning"
    PROMPT_CACHE = "prompt_cache"
    KV_QUANTIZATION = "kv_quantization"
    SPECULATIVE_DECODING = "speculative_decoding"
    LOGPROBS = "logprobs"
    EMBEDDINGS = "embeddings"
    RERANKING = "reranking"
    IMAGE_GENERATION = "image_generation"
    IMAGE_TO_IMAGE = "image_to_image"
    LOW_MEMORY = "low_memory"
    STAGED_PARTS = "staged_parts"
    VAE_TILING = "vae_tiling"
