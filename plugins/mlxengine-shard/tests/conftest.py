"""Tiny random models, served whole and by ranks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlxengine.toolkit import blas

blas.load()

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "mlxengine-llm" / "tests")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

from llm_harness import write_tiny  # noqa: E402
from shard_harness import running  # noqa: E402


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama of 4 heads, 2 of them for keys."""
    return write_tiny(tmp_path_factory.mktemp("shard") / "llama")


@pytest.fixture(autouse=True, scope="module")
def no_rank_is_left() -> Iterator[None]:
    """Whatever a module did, no process of it remains."""
    yield
    assert running() == []
