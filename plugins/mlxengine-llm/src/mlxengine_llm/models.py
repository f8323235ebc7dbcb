"""The language models of the registry.

Names, families and sizes are what the repositories' own names say. Nothing else was looked up, so licences
and context lengths are empty and ``provenance`` says that no entry was checked against the hub.
"""

from __future__ import annotations

from mlxengine import ModelConfiguration

_PROMPT = "What is the capital of France?"

# family: (repository, size) …; a name that ends in "-4bit" is an MLX conversion with weights of 4 bits.
_TABLE: dict[str, tuple[tuple[str, str], ...]] = {
    "smollm2": (
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "135M"),
        ("HuggingFaceTB/SmolLM2-360M-Instruct", "360M"),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", "1.7B"),
    ),
    "smollm3": (("HuggingFaceTB/SmolLM3-3B", "3B"),),
    "llama": (
        ("meta-llama/Llama-3.2-1B-Instruct", "1B"),
        ("meta-llama/Llama-3.2-3B-Instruct", "3B"),
        ("meta-llama/Llama-3.1-8B-Instruct", "8B"),
        ("meta-llama/Llama-3.1-70B-Instruct", "70B"),
        ("meta-llama/Llama-3.3-70B-Instruct", "70B"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "1.1B"),
        ("mlx-community/Llama-3.2-1B-Instruct-4bit", "1B"),
        ("mlx-community/Llama-3.2-3B-Instruct-4bit", "3B"),
        ("mlx-community/Meta-Llama-3.1-8B-Instruct-4bit", "8B"),
        ("mlx-community/Llama-3.3-70B-Instruct-4bit", "70B"),
    ),
    "qwen2.5": (
        ("Qwen/Qwen2.5-0.5B-Instruct", "0.5B"),
        ("Qwen/Qwen2.5-1.5B-Instruct", "1.5B"),
        ("Qwen/Qwen2.5-3B-Instruct", "3B"),
        ("Qwen/Qwen2.5-7B-Instruct", "7B"),
        ("Qwen/Qwen2.5-14B-Instruct", "14B"),
        ("Qwen/Qwen2.5-32B-Instruct", "32B"),
        ("Qwen/Qwen2.5-72B-Instruct", "72B"),
        ("Qwen/Qwen2.5-Coder-7B-Instruct", "7B"),
        ("Qwen/Qwen2.5-Coder-32B-Instruct", "32B"),
        ("mlx-community/Qwen2.5-0.5B-Instruct-4bit", "0.5B"),
        ("mlx-community/Qwen2.5-1.5B-Instruct-4bit", "1.5B"),
        ("mlx-community/Qwen2.5-7B-Instruct-4bit", "7B"),
        ("mlx-community/Qwen2.5-Coder-32B-Instruct-4bit", "32B"),
    ),
    "qwen3": (
        ("Qwen/Qwen3-0.6B", "0.6B"),
        ("Qwen/Qwen3-1.7B", "1.7B"),
        ("Qwen/Qwen3-4B", "4B"),
        ("Qwen/Qwen3-8B", "8B"),
        ("Qwen/Qwen3-14B", "14B"),
        ("Qwen/Qwen3-32B", "32B"),
        ("Qwen/Qwen3-30B-A3B", "30B"),
        ("Qwen/Qwen3-235B-A22B", "235B"),
        ("mlx-community/Qwen3-0.6B-4bit", "0.6B"),
        ("mlx-community/Qwen3-4B-4bit", "4B"),
        ("mlx-community/Qwen3-8B-4bit", "8B"),
        ("mlx-community/Qwen3-30B-A3B-4bit", "30B"),
    ),
    "qwq": (("Qwen/QwQ-32B", "32B"),),
    "deepseek": (
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "1.5B"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "7B"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", "14B"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "32B"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "8B"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "70B"),
    ),
    "mistral": (
        ("mistralai/Mistral-7B-Instruct-v0.3", "7B"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "8x7B"),
        ("mistralai/Mixtral-8x22B-Instruct-v0.1", "8x22B"),
        ("mistralai/Mistral-Small-24B-Instruct-2501", "24B"),
        ("mlx-community/Mistral-7B-Instruct-v0.3-4bit", "7B"),
    ),
    "phi": (
        ("microsoft/phi-2", "2.7B"),
        ("microsoft/Phi-3-mini-4k-instruct", "3.8B"),
        ("microsoft/Phi-3.5-mini-instruct", "3.8B"),
        ("microsoft/Phi-4-mini-instruct", "3.8B"),
        ("microsoft/phi-4", "14B"),
    ),
    "gemma": (
        ("google/gemma-2-2b-it", "2B"),
        ("google/gemma-2-9b-it", "9B"),
        ("google/gemma-2-27b-it", "27B"),
        ("google/gemma-3-270m-it", "270M"),
        ("google/gemma-3-1b-it", "1B"),
    ),
    "granite": (
        ("ibm-granite/granite-3.3-2b-instruct", "2B"),
        ("ibm-granite/granite-3.3-8b-instruct", "8B"),
    ),
    "glm": (("zai-org/GLM-4-9B-0414", "9B"), ("zai-org/GLM-4-32B-0414", "32B")),
    "lfm2": (
        ("LiquidAI/LFM2-350M", "350M"),
        ("LiquidAI/LFM2-700M", "700M"),
        ("LiquidAI/LFM2-1.2B", "1.2B"),
    ),
    "olmo": (
        ("allenai/OLMo-2-0425-1B-Instruct", "1B"),
        ("allenai/OLMo-2-1124-7B-Instruct", "7B"),
        ("allenai/OLMo-2-1124-13B-Instruct", "13B"),
    ),
    "gpt-oss": (("openai/gpt-oss-20b", "20B"), ("openai/gpt-oss-120b", "120B")),
    "exaone": (
        ("LGAI-EXAONE/EXAONE-3.5-2.4B-Instruct", "2.4B"),
        ("LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct", "7.8B"),
    ),
    "starcoder2": (("bigcode/starcoder2-3b", "3B"), ("bigcode/starcoder2-7b", "7B")),
    "gpt2": (("openai-community/gpt2", "124M"),),
}


def _entry(family: str, name: str, size: str) -> ModelConfiguration:
    packed = name.endswith("-4bit")
    return ModelConfiguration(
        id=name,
        kind="llm",
        family=family,
        size=size,
        quantization="4bit" if packed else None,
        default_prompt=_PROMPT,
    )


ALL: tuple[ModelConfiguration, ...] = (
    ModelConfiguration(
        id="mlx-community/SmolLM2-135M-Instruct",
        kind="llm",
        family="smollm2",
        size="135M",
        context_length=8192,
        license="apache-2.0",
        default_prompt=_PROMPT,
    ),
    *(_entry(family, *item) for family, items in _TABLE.items() for item in items),
)
