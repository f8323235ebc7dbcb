"""The real all-MiniLM-L6-v2, and a small random model that has prompts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlxengine import EmbeddingHandle, InferenceEngine
from mlxengine.toolkit import blas

blas.load()  # before anything imports mlx

from tests.hub import weights  # noqa: E402

PLUGIN = Path(__file__).parents[2] / "plugins/mlxengine-embed/tests"
MINILM = str(weights.folder_of(weights.MINILM))


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder."""
    return MINILM


@pytest.fixture(scope="session")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a model with random weights, which has prompts for queries and for documents."""
    sys.path.insert(0, str(PLUGIN))
    import embed_checkpoints

    return str(embed_checkpoints.write("bert-dense", tmp_path_factory.mktemp("random")))


@pytest.fixture(scope="session")
def engine() -> Iterator[InferenceEngine]:
    with InferenceEngine() as engine:
        yield engine


@pytest.fixture(scope="session")
def model(engine: InferenceEngine, minilm: str) -> EmbeddingHandle:
    """What the adapters are held against: the plugin's own tests hold it to sentence-transformers."""
    return engine.load_embeddings(minilm)


@pytest.fixture(scope="session")
def prompted_model(engine: InferenceEngine, prompted: str) -> Any:
    return engine.load_embeddings(prompted)
