"""The feature flags of the language plugin."""

from __future__ import annotations

import importlib.util
from typing import Any

from mlxengine import Feature, LLMEngineFeatures, Stage


def _library() -> str | None:
    return None if importlib.util.find_spec("mlx_lm") else "mlx-lm is not installed"


def _llguidance() -> str | None:
    return _library() or (None if importlib.util.find_spec("llguidance") else "llguidance is not installed")


STREAMING = Feature(
    name="llm.streaming",
    default=True,
    summary="Send the text as it is generated; off: in one piece at the end.",
    provides=LLMEngineFeatures.STREAMING,
    applies_to=("llm",),
    probe=_library,
)
BATCH = Feature(
    name="llm.batch",
    default=True,
    summary="Decode the requests of a model together; off: one after the other.",
    provides=LLMEngineFeatures.BATCH,
    applies_to=("llm",),
    probe=_library,
)
MAX_BATCH: Feature[int | None] = Feature(
    name="llm.max_batch",
    default=None,
    summary="Most requests that are decoded together, further ones wait; by default 32, on a GPU 128.",
    applies_to=("llm",),
    probe=_library,
)
PREEMPTION = Feature(
    name="llm.preemption",
    default=False,
    summary="Park an answer of a lower priority, with its cache, while one of a higher finds no place.",
    stage=Stage.EXPERIMENTAL,
    applies_to=("llm",),
    probe=_library,
)
LOGPROBS = Feature(
    name="llm.logprobs",
    default=True,
    summary="Log-probabilities of the chosen tokens and their best alternatives.",
    provides=LLMEngineFeatures.LOGPROBS,
    applies_to=("llm",),
    probe=_library,
)
PROMPT_CACHE = Feature(
    name="llm.prompt_cache",
    default=True,
    summary="Reuse what was computed for earlier prompts that begin alike.",
    provides=LLMEngineFeatures.PROMPT_CACHE,
    applies_to=("llm",),
    probe=_library,
)
PROMPT_CACHE_MB = Feature(
    name="llm.prompt_cache_mb",
    default=1024,
    summary="Most MiB of prompt caches in memory; never over an eighth of what is free at load.",
    applies_to=("llm",),
    probe=_library,
)
PROMPT_CACHE_FOLDER: Feature[str | None] = Feature(
    name="llm.prompt_cache_folder",
    default=None,
    summary="A folder where prompt caches of 128 tokens and more survive a restart; none writes nothing.",
    applies_to=("llm",),
    probe=_library,
)
STALL_FACTOR = Feature(
    name="llm.stall_factor",
    default=8.0,
    summary="While answers run, a step that reads prompts takes so many times one that does not, at most.",
    applies_to=("llm",),
    probe=_library,
)
TOOL_CALLING = Feature(
    name="llm.tool_calling",
    default=True,
    summary="Tools described to the model, and its calls as events.",
    provides=LLMEngineFeatures.TOOL_CALLING,
    applies_to=("llm",),
    probe=_library,
)
REASONING = Feature(
    name="llm.reasoning",
    default=True,
    summary="Reasoning parted from the answer, with a budget; off: it is part of the text.",
    provides=LLMEngineFeatures.REASONING,
    applies_to=("llm",),
    probe=_library,
)
QUANTIZATION = Feature(
    name="llm.quantization",
    default=True,
    summary="Models whose weights are packed, and packing them with `mlxengine convert`.",
    provides=LLMEngineFeatures.QUANTIZATION,
    applies_to=("llm",),
    probe=_library,
)
KV_BITS: Feature[int | None] = Feature(
    name="llm.kv_bits",
    default=None,
    summary="Pack the key-value cache to 4 or 8 bits, alone and in the batch.",
    stage=Stage.EXPERIMENTAL,
    choices=(None, 8, 4),
    provides=LLMEngineFeatures.KV_QUANTIZATION,
    applies_to=("llm",),
    probe=_library,
)
KV_TOKENS: Feature[int | None] = Feature(
    name="llm.kv_tokens",
    default=None,
    summary="Keep so many tokens in the cache: the first four and the last ones; alone and in the batch.",
    stage=Stage.EXPERIMENTAL,
    applies_to=("llm",),
    probe=_library,
)
SPECULATION = Feature(
    name="llm.speculation",
    default=False,
    summary="Guess tokens from the text so far where that pays. The model then serves one request at a time.",
    stage=Stage.EXPERIMENTAL,
    provides=LLMEngineFeatures.SPECULATIVE_DECODING,
    applies_to=("llm",),
    probe=_library,
)
DRAFT_MODEL: Feature[str | None] = Feature(
    name="llm.draft_model",
    default=None,
    summary="A smaller model of the same vocabulary that guesses tokens. One request at a time is served.",
    stage=Stage.EXPERIMENTAL,
    applies_to=("llm",),
    probe=_library,
)
TOKENIZER: Feature[str | None] = Feature(
    name="llm.tokenizer",
    default=None,
    summary="A folder or repository whose tokenizer, and chat template, the model uses instead of its own.",
    provides=LLMEngineFeatures.CUSTOM_TOKENIZERS,
    applies_to=("llm",),
    probe=_library,
)
SERVING: dict[str, Feature[Any]] = {
    "kv_bits": KV_BITS,
    "kv_tokens": KV_TOKENS,
    "speculation": SPECULATION,
    "draft_model": DRAFT_MODEL,
    "tokenizer": TOKENIZER,
}
LORA = Feature(
    name="llm.lora",
    default=True,
    summary="LoRA and DoRA adapters, loaded beside the weights and chosen per request.",
    provides=LLMEngineFeatures.LORA,
    applies_to=("llm",),
    probe=_library,
)
STRUCTURED_OUTPUT = Feature(
    name="llm.structured_output",
    default=True,
    summary="Answers that fit a JSON schema, a regular expression, a Lark grammar or choices.",
    provides=LLMEngineFeatures.STRUCTURED_OUTPUT,
    applies_to=("llm",),
    probe=_llguidance,
)
SPECIAL_TOKENS_IN_TEXT = Feature(
    name="llm.special_tokens_in_text",
    default=False,
    summary="Let what messages and tools say become special tokens, which can end a turn and begin another.",
    applies_to=("llm",),
    probe=_library,
)
UNPACK = Feature(
    name="llm.unpack",
    default=True,
    summary="On a CPU and on CUDA, unpack quantized weights where they fit in half of the free memory.",
    applies_to=("llm",),
    probe=_library,
)

FEATURES: tuple[Feature[Any], ...] = (
    STALL_FACTOR,
    TOOL_CALLING,
    REASONING,
    QUANTIZATION,
    *SERVING.values(),
    LORA,
    PROMPT_CACHE,
    PROMPT_CACHE_MB,
    PROMPT_CACHE_FOLDER,
    STREAMING,
    BATCH,
    MAX_BATCH,
    PREEMPTION,
    LOGPROBS,
    STRUCTURED_OUTPUT,
    UNPACK,
    SPECIAL_TOKENS_IN_TEXT,
)
