"""The model types that the installed mlx-lm and mlx-vlm have a module for; neither is imported."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from mlxengine.toolkit.source import constant


def _folder(library: str) -> Path:
    spec = importlib.util.find_spec(library)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


@functools.cache
def lm_types() -> dict[str, str]:
    """mlx-lm's: the module by model type, aliases included."""
    files = (_folder("mlx_lm") / "models").glob("*.py")
    found = {file.stem: file.stem for file in files if "class ModelArgs" in file.read_text("utf-8")}
    return found | constant(_folder("mlx_lm") / "utils.py", "MODEL_REMAPPING")


@functools.cache
def vlm_types() -> dict[str, str]:
    """mlx-vlm's: the folder by model type, aliases included."""
    found = {
        file.parent.name: file.parent.name for file in (_folder("mlx_vlm") / "models").glob("*/__init__.py")
    }
    return found | constant(_folder("mlx_vlm") / "utils.py", "MODEL_REMAPPING")


def model_types() -> frozenset[str]:
    """All of them."""
    return frozenset(lm_types() | vlm_types())
