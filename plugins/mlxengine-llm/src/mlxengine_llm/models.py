"""The language models of the registry."""

from __future__ import annotations

from mlxengine import ModelConfiguration

ALL: tuple[ModelConfiguration, ...] = (
    ModelConfiguration(
        id="mlx-community/SmolLM2-135M-Instruct",
        kind="llm",
        family="smollm2",
        size="135M",
        quantization="none",
        context_length=8192,
        license="apache-2.0",
        default_prompt="What is the capital of France?",
    ),
)
