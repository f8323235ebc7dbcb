"""Registry entries of vision-language models.

Sizes and quantization are those that the ids themselves state. Other facts were looked up where an entry
has a ``provenance``, and are left out where nobody looked them up.
"""

from __future__ import annotations

from typing import Any

from mlxengine import ModelConfiguration, Provenance

DEFAULT_PROMPT = "Describe the picture."
_FRAMES = "pictures, and frames of videos"
_CAPTIONS: dict[str, Any] = {
    "summary": "one picture; answers short task prompts such as 'caption en'",
    "default_prompt": "caption en",
}


def _entry(id: str, family: str, size: str | None = None, **facts: Any) -> ModelConfiguration:
    quantization = "4bit" if id.endswith("-4bit") else "none" if not id.startswith("mlx-community/") else None
    given = {"default_prompt": DEFAULT_PROMPT, "quantization": quantization, **facts}
    return ModelConfiguration(id=id, kind="vlm", family=family, size=size, **given)


def _card(*fields: str, **facts: Any) -> dict[str, Any]:
    source = "the publisher's model card, as public copies carry it"
    return {"provenance": Provenance(checked="2026-11-22", source=source, fields=fields), **facts}


_SMOLVLM2 = _card("size", "license", license="apache-2.0", summary=_FRAMES)
_QWEN3 = _card(
    "size", "license", "context_length", license="apache-2.0", context_length=262_144, summary=_FRAMES
)
_GEMMA3 = _card("size", "license", "context_length", license="gemma", context_length=131_072)
_LFM2 = _card("size", "license", "context_length", license="lfm1.0", context_length=32_768)
_QWEN25_3B = _card("size", "license", license="qwen-research", summary=_FRAMES)

ALL: tuple[ModelConfiguration, ...] = (
    _entry("HuggingFaceTB/SmolVLM-256M-Instruct", "smolvlm", "256M"),
    _entry("HuggingFaceTB/SmolVLM-500M-Instruct", "smolvlm", "500M"),
    _entry("HuggingFaceTB/SmolVLM2-256M-Video-Instruct", "smolvlm2", "256M", **_SMOLVLM2),
    _entry("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "smolvlm2", "500M", **_SMOLVLM2),
    _entry("HuggingFaceTB/SmolVLM2-2.2B-Instruct", "smolvlm2", "2.2B", **_SMOLVLM2),
    _entry("mlx-community/SmolVLM2-500M-Video-Instruct-mlx", "smolvlm2", "500M", summary=_FRAMES),
    _entry("HuggingFaceM4/Idefics3-8B-Llama3", "idefics3", "8B"),
    _entry("llava-hf/llava-1.5-7b-hf", "llava", "7B"),
    _entry("llava-hf/llava-1.5-13b-hf", "llava", "13B"),
    _entry("llava-hf/llava-v1.6-mistral-7b-hf", "llava-next", "7B"),
    _entry("mlx-community/llava-1.5-7b-4bit", "llava", "7B"),
    _entry("Qwen/Qwen2-VL-2B-Instruct", "qwen2-vl", "2B", summary=_FRAMES),
    _entry("Qwen/Qwen2-VL-7B-Instruct", "qwen2-vl", "7B", summary=_FRAMES),
    _entry("mlx-community/Qwen2-VL-2B-Instruct-4bit", "qwen2-vl", "2B", summary=_FRAMES),
    _entry("Qwen/Qwen2.5-VL-3B-Instruct", "qwen2.5-vl", "3B", **_QWEN25_3B),
    _entry("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2.5-vl", "7B", summary=_FRAMES),
    _entry("mlx-community/Qwen2.5-VL-3B-Instruct-4bit", "qwen2.5-vl", "3B", summary=_FRAMES),
    _entry("mlx-community/Qwen2.5-VL-7B-Instruct-4bit", "qwen2.5-vl", "7B", summary=_FRAMES),
    _entry("Qwen/Qwen3-VL-2B-Instruct", "qwen3-vl", "2B", **_QWEN3),
    _entry("Qwen/Qwen3-VL-4B-Instruct", "qwen3-vl", "4B", **_QWEN3),
    _entry("Qwen/Qwen3-VL-8B-Instruct", "qwen3-vl", "8B", **_QWEN3),
    _entry("mlx-community/Qwen3-VL-4B-Instruct-4bit", "qwen3-vl", "4B", summary=_FRAMES),
    _entry("google/paligemma-3b-mix-224", "paligemma", "3B", **_CAPTIONS),
    _entry("google/paligemma2-3b-mix-224", "paligemma2", "3B", **_CAPTIONS),
    _entry("google/gemma-3-4b-it", "gemma3", "4B", **_GEMMA3),
    _entry("google/gemma-3-12b-it", "gemma3", "12B", **_GEMMA3),
    _entry("google/gemma-3-27b-it", "gemma3", "27B", **_GEMMA3),
    _entry("mlx-community/gemma-3-4b-it-4bit", "gemma3", "4B"),
    _entry("apple/FastVLM-0.5B", "fastvlm", "0.5B"),
    _entry("apple/FastVLM-1.5B", "fastvlm", "1.5B"),
    _entry("LiquidAI/LFM2-VL-450M", "lfm2-vl", "450M", **_LFM2),
    _entry("LiquidAI/LFM2-VL-1.6B", "lfm2-vl", "1.6B", **_LFM2),
    _entry("vikhyatk/moondream2", "moondream"),
    _entry("mistral-community/pixtral-12b", "pixtral", "12B"),
    _entry("microsoft/Phi-3.5-vision-instruct", "phi3-v"),
    _entry("meta-llama/Llama-3.2-11B-Vision-Instruct", "mllama", "11B"),
)
