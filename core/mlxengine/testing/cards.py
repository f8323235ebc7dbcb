"""Model cards without a hub: of a local folder, and of models that no plugin should claim."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from ..configuration import FileInfo, ModelCard, ModelConfiguration, ModelRef, Source, TensorInfo

_MAX_DOCUMENT = 1 << 20


def folder_card(path: Path, configuration: ModelConfiguration | None = None) -> ModelCard:
    """The card of a local folder, from its listing, its JSON files and its safetensors headers."""
    files, documents, tensors = [], dict[str, Any](), list[TensorInfo]()
    for item in sorted(found for found in path.rglob("*") if found.is_file()):
        name, size = item.relative_to(path).as_posix(), item.stat().st_size
        files.append(FileInfo(path=name, size=size))
        if item.suffix == ".json" and size <= _MAX_DOCUMENT:
            try:
                documents[name] = json.loads(item.read_text(encoding="utf-8"))
            except ValueError:
                continue
        elif item.suffix == ".safetensors":
            tensors += _header(item, name)
    return ModelCard(
        ref=ModelRef(path=path),
        configuration=configuration or ModelConfiguration(id=str(path)),
        source=Source.FOLDER,
        commit="0" * 40,
        path=path,
        files=tuple(files),
        documents=documents,
        tensors=tuple(tensors),
    )


def _header(path: Path, name: str) -> list[TensorInfo]:
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return [
        TensorInfo(
            name=key,
            dtype=item["dtype"],
            shape=tuple(item["shape"]),
            nbytes=item["data_offsets"][1] - item["data_offsets"][0],
            file=name,
        )
        for key, item in header.items()
    ]


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
