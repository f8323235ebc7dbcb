"""Tiny random models, real SmolLM2 where it is laid out, and a stand-in for the scheduler."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlxengine.toolkit import blas

blas.load()

sys.path.insert(0, str(Path(__file__).parent))

from llm_harness import Plugin, write_tiny  # noqa: E402


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama of 0.1 M parameters with a byte-level tokenizer, as a folder."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture
def plugin() -> Iterator[Plugin]:
    """The plugin's hooks, called as the engine calls them; what was loaded is closed afterwards."""
    found = Plugin()
    yield found
    found.close()


@pytest.fixture
def edited(tiny: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny model whose JSON documents were changed: ``edited(config={"key": value})``."""

    def edit(**changes: dict[str, Any]) -> Path:
        folder = tmp_path / f"edited-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for file in tiny.iterdir():
            folder.joinpath(file.name).write_bytes(file.read_bytes())
        for name, values in changes.items():
            path = folder / f"{name}.json"
            old = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps({**old, **values}))
        return folder

    return edit
