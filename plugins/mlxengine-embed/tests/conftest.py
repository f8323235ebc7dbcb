"""Real MiniLM, small repositories with random weights, and one engine for all of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from mlxengine.toolkit import blas

blas.load()

sys.path.insert(0, str(Path(__file__).parent))

import embed_checkpoints  # noqa: E402
import numpy as np  # noqa: E402
import picture_checkpoints  # noqa: E402
from mlxengine import EmbeddingHandle, InferenceEngine  # noqa: E402


@pytest.fixture(scope="session")
def references() -> Mapping[str, Any]:
    """What sentence-transformers gave; ``make_references.py`` computes it."""
    with np.load(Path(__file__).parent / "references.npz", allow_pickle=False) as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def engine() -> Iterator[InferenceEngine]:
    with InferenceEngine() as engine:
        yield engine


@pytest.fixture(scope="session")
def random_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("random")


@pytest.fixture
def random_model(engine: InferenceEngine, random_root: Path) -> Iterator[Callable[[str], EmbeddingHandle]]:
    """A loaded repository with random weights by its name in the modules that write them."""
    handles: list[EmbeddingHandle] = []

    def load(name: str) -> EmbeddingHandle:
        home = picture_checkpoints if name in picture_checkpoints.ALL else embed_checkpoints
        handles.append(engine.load_embeddings(home.write(name, random_root)))
        return handles[-1]

    yield load
    for handle in handles:
        handle.close()


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """all-MiniLM-L6-v2, with its real weights."""
    from tests.hub import weights

    return weights.folder_of("sentence-transformers/all-MiniLM-L6-v2")


@pytest.fixture(scope="module")
def minilm_model(engine: InferenceEngine, minilm_folder: Path) -> Iterator[EmbeddingHandle]:
    """all-MiniLM-L6-v2, loaded."""
    with engine.load_embeddings(minilm_folder) as handle:
        yield handle
