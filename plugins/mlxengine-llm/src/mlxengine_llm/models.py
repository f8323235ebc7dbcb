"""The language models of the registry: their facts, and where each was read, stand in ``models.json``.

A fact that nobody looked up is left out there. How the file is read: `mlxengine.registry.read_entries`.
"""

from __future__ import annotations

from pathlib import Path

from mlxengine import ModelConfiguration
from mlxengine.registry import read_entries

MODELS = read_entries(Path(__file__).with_name("models.json"), ModelConfiguration)

__all__ = ["MODELS"]
