"""Tiny Wans with random weights, and an engine that makes videos with them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlxengine import InferenceEngine
from mlxengine.toolkit import blas

blas.load()

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Wan 2.1 that makes video from text."""
    import tiny_wan

    return tiny_wan.write("t2v", tmp_path_factory.mktemp("wan") / "t2v")


@pytest.fixture(scope="session")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Wan 2.2 that makes video from text, and from a picture."""
    import tiny_wan

    return tiny_wan.write("ti2v", tmp_path_factory.mktemp("wan") / "ti2v")


@pytest.fixture(scope="module")
def engine() -> Iterator[InferenceEngine]:
    """One engine for all tests of a module."""
    with InferenceEngine() as made:
        yield made
