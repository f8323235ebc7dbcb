"""Loaded models of a plugin that refuses what a test says, and rows to ask them for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlxengine import EmbeddingHandle, ImageHandle, InferenceEngine, TextHandle

sys.path.insert(0, str(Path(__file__).parent))

from refusing import Refusing, write_refusing


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Refusing, InferenceEngine, Path]]:
    plugin = Refusing()
    with InferenceEngine(plugins=[("refusing", plugin)]) as engine:
        yield plugin, engine, tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def embedder(refusing: tuple[Refusing, InferenceEngine, Path]) -> EmbeddingHandle:
    _, engine, folder = refusing
    return engine.load_embeddings(write_refusing(folder / "embed", "embed"))


@pytest.fixture(scope="module")
def talker(refusing: tuple[Refusing, InferenceEngine, Path]) -> TextHandle:
    _, engine, folder = refusing
    return engine.load_text(write_refusing(folder / "llm", "llm"))


@pytest.fixture(scope="module")
def painter(refusing: tuple[Refusing, InferenceEngine, Path]) -> ImageHandle:
    _, engine, folder = refusing
    return engine.load_images(write_refusing(folder / "diffusion", "diffusion"))
