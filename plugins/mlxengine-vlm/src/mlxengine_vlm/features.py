"""The feature flags of the vision-language plugin."""

from __future__ import annotations

import importlib.util
from typing import Any

from mlxengine import Feature, LLMEngineFeatures, Stage


def _library() -> str | None:
    return None if importlib.util.find_spec("mlx_vlm") else "mlx-vlm is not installed"


def _llguidance() -> str | None:
    return _library() or (None if importlib.util.find_spec("llguidance") else "llguidance is not installed")


def _pictures() -> str | None:
    if reason := _library():
        return reason
    try:
        from PIL import features
    except ImportError as error:
        return f"Pillow cannot be imported: {error}"
    missing = [name for name in ("jpg", "zlib") if not features.check(name)]
    return f"Pillow was built without {' and '.join(missing)}" if missing else None


def _sound() -> str | None:
    if reason := _library():
        return reason
    try:
        import miniaudio  # type: ignore[import-untyped, unused-ignore]  # noqa: F401
    except ImportError as error:  # it is there without what it is built on, too
        return f"miniaudio cannot be imported: {error}"
    return None


STREAMING = Feature(
    name="vlm.streaming",
    default=True,
    summary="Send the text as it is generated; off: in one piece at the end.",
    provides=LLMEngineFeatures.STREAMING,
    applies_to=("vlm",),
    probe=_library,
)
MULTI_MODAL = Feature(
    name="vlm.multi_modal",
    default=True,
    summary="Pictures and frames of videos in messages; off: text only.",
    provides=LLMEngineFeatures.MULTI_MODAL,
    applies_to=("vlm",),
    probe=_pictures,
)
AUDIO = Feature(
    name="vlm.audio",
    default=True,
    summary="Sound in messages, for models that take it.",
    applies_to=("vlm",),
    probe=_sound,
)
BATCH = Feature(
    name="vlm.batch",
    default=True,
    summary="Decode the requests of a model together; off: one after the other.",
    provides=LLMEngineFeatures.BATCH,
    applies_to=("vlm",),
    probe=_library,
)
MAX_BATCH: Feature[int | None] = Feature(
    name="vlm.max_batch",
    default=None,
    summary="Most requests that are decoded together, further ones wait; by default 32, on a GPU 128.",
    applies_to=("vlm",),
    probe=_library,
)
PREEMPTION = Feature(
    name="vlm.preemption",
    default=False,
    summary="Park an answer of a lower priority, with its cache, while one of a higher finds no place.",
    stage=Stage.EXPERIMENTAL,
    applies_to=("vlm",),
    probe=_library,
)
LOGPROBS = Feature(
    name="vlm.logprobs",
    default=True,
    summary="Log-probabilities of the chosen tokens and their best alternatives.",
    provides=LLMEngineFeatures.LOGPROBS,
    applies_to=("vlm",),
    probe=_library,
)
STRUCTURED_OUTPUT = Feature(
    name="vlm.structured_output",
    default=True,
    summary="Answers that fit a JSON schema, a regular expression, a Lark grammar or choices.",
    provides=LLMEngineFeatures.STRUCTURED_OUTPUT,
    applies_to=("vlm",),
    probe=_llguidance,
)
TOOL_CALLING = Feature(
    name="vlm.tool_calling",
    default=True,
    summary="Tools described to the model, and its calls as events.",
    provides=LLMEngineFeatures.TOOL_CALLING,
    applies_to=("vlm",),
    probe=_library,
)
REASONING = Feature(
    name="vlm.reasoning",
    default=True,
    summary="Reasoning parted from the answer, with a budget; off: it is part of the text.",
    provides=LLMEngineFeatures.REASONING,
    applies_to=("vlm",),
    probe=_library,
)
SPECIAL_TOKENS_IN_TEXT = Feature(
    name="vlm.special_tokens_in_text",
    default=False,
    summary="Let what messages and tools say become special tokens, which can end a turn and begin another.",
    applies_to=("vlm",),
    probe=_library,
)
LORA = Feature(
    name="vlm.lora",
    default=True,
    summary="LoRA and DoRA adapters of the language model's layers, loaded beside the weights, per request.",
    provides=LLMEngineFeatures.LORA,
    applies_to=("vlm",),
    probe=_library,
)
UNPACK = Feature(
    name="vlm.unpack",
    default=True,
    summary="On a CPU and on CUDA, unpack quantized weights where they fit in half of the free memory.",
    applies_to=("vlm",),
    probe=_library,
)
PROMPT_CACHE = Feature(
    name="vlm.prompt_cache",
    default=True,
    summary="Keep what was computed for pictures and prompts, for later requests about the same content.",
    provides=LLMEngineFeatures.PROMPT_CACHE,
    applies_to=("vlm",),
    probe=_library,
)
PROMPT_CACHE_MB = Feature(
    name="vlm.prompt_cache_mb",
    default=1024,
    summary="Most memory for that, in MiB, decided when the model is loaded.",
    applies_to=("vlm",),
    probe=_library,
)
PROMPT_CACHE_FOLDER: Feature[str | None] = Feature(
    name="vlm.prompt_cache_folder",
    default=None,
    summary="A folder where prompt caches of 128 tokens and more survive a restart; none writes nothing.",
    applies_to=("vlm",),
    probe=_library,
)
KV_BITS: Feature[int | None] = Feature(
    name="vlm.kv_bits",
    default=None,
    summary="Pack the key-value cache to 4 or 8 bits, alone and in the batch.",
    stage=Stage.EXPERIMENTAL,
    choices=(None, 8, 4),
    provides=LLMEngineFeatures.KV_QUANTIZATION,
    applies_to=("vlm",),
    probe=_library,
)
MAX_PIXELS = Feature(
    name="vlm.max_pixels",
    default=40_000_000,
    summary="Most pixels that one picture may have; larger ones are refused before they are decoded.",
    applies_to=("vlm",),
)
URLS = Feature(
    name="vlm.urls",
    default=False,
    summary="Fetch pictures that are given as http(s) URLs.",
    stage=Stage.EXPERIMENTAL,
    applies_to=("vlm",),
)
URL_HOSTS = Feature(
    name="vlm.url_hosts",
    default="",
    summary="Hosts, with spaces between, that such a URL may name although their address is private.",
    stage=Stage.EXPERIMENTAL,
    applies_to=("vlm",),
)
QUANTIZATION = Feature(
    name="vlm.quantization",
    default=True,
    summary="Checkpoints in mlx's quantized layouts.",
    provides=LLMEngineFeatures.QUANTIZATION,
    applies_to=("vlm",),
    probe=_library,
)
CUSTOM_TOKENIZERS = Feature(
    name="vlm.custom_tokenizers",
    default=True,
    summary="A chat template and end-of-text tokens of the caller's own.",
    provides=LLMEngineFeatures.CUSTOM_TOKENIZERS,
    applies_to=("vlm",),
    probe=_library,
)

FEATURES: tuple[Feature[Any], ...] = (
    STREAMING,
    MULTI_MODAL,
    AUDIO,
    BATCH,
    MAX_BATCH,
    PREEMPTION,
    LOGPROBS,
    STRUCTURED_OUTPUT,
    TOOL_CALLING,
    REASONING,
    LORA,
    UNPACK,
    SPECIAL_TOKENS_IN_TEXT,
    PROMPT_CACHE,
    PROMPT_CACHE_MB,
    PROMPT_CACHE_FOLDER,
    KV_BITS,
    MAX_PIXELS,
    URLS,
    URL_HOSTS,
    QUANTIZATION,
    CUSTOM_TOKENIZERS,
)
