"""Registry entries of vision-language models: ``models.json`` states their facts and where each was read.

How the file is read: `mlxengine.registry.read_entries`.
"""

from __future__ import annotations

from pathlib import Path

from mlxengine import ModelConfiguration
from mlxengine.registry import read_entries

ALL = read_entries(Path(__file__).with_name("models.json"), ModelConfiguration)

__all__ = ["ALL"]
