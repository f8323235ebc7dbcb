"""The trained tiny model, loaded once, and the plugin's hooks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "parity")]

from vlm_harness import Plugin  # noqa: E402

TINY = Path(__file__).parents[3] / "tests" / "models" / "tiny-shapes-vlm"


@pytest.fixture(scope="session")
def plugin() -> Iterator[Plugin]:
    """The plugin's hooks, called as the engine calls them."""
    found = Plugin()
    yield found
    found.close()


@pytest.fixture(scope="session")
def tiny(plugin: Plugin) -> Any:
    """The trained SmolVLM of 4.6 million parameters."""
    return plugin.load(TINY)


@pytest.fixture
def fresh(tiny: Any) -> Any:
    """The same, with nothing remembered."""
    tiny.prefixes.clear()
    tiny.features.clear()
    return tiny
