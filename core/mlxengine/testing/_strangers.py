"""Cards of models that no plugin should claim."""

from __future__ import annotations

from typing import Any

from ..contract.configuration import FileInfo, ModelCard, ModelConfiguration, ModelRef, Source


def foreign_cards() -> tuple[ModelCard, ...]:
    """Cards of models of nobody's kind, and of repositories that hold nonsense where plugins look."""
    odd: list[dict[str, Any]] = [
        {},
        {"config.json": {"model_type": "no-such-architecture-anywhere"}},
        {"config.json": []},
        {"config.json": "text"},
        {"config.json": {"model_type": None, "architectures": None}},
        {"config.json": {"model_type": ["llama"], "architectures": "LlamaForCausalLM"}},
        {"config.json": {"model_type": 7, "architectures": [None, 7], "text_config": [], "vision_config": 1}},
        {"config.json": {"model_type": ""}, "model_index.json": {"_class_name": None, "unet": "x"}},
        {"model_index.json": []},
        {"modules.json": {"0": None}, "1_Pooling/config.json": []},
        {"modules.json": [None, 3, {"type": None}], "config_sentence_transformers.json": "x"},
    ]
    return tuple(
        ModelCard(
            ref=ModelRef(repo_id="nobody/nothing"),
            configuration=ModelConfiguration(id="nobody/nothing"),
            source=Source.HUB,
            commit=f"{number:040x}",
            files=(FileInfo(path="README.md", size=3), *(FileInfo(path=name, size=9) for name in documents)),
            documents=documents,
        )
        for number, documents in enumerate(odd)
    )
