"""Registry entries of vision-language models: ``models.json`` states their facts and where each was read.

How the file is read: `mlxengine.registry.read_entries`.
"""

from __future__ import annotations

from pathlib import Path

from attrs import frozen
from mlxengine import ModelConfiguration
from mlxengine.registry import read_entries


@frozen(kw_only=True)
class VisionConfiguration(ModelConfiguration):
    """A vision-language model: what `mlxengine.ModelConfiguration` has, and what only pictures have.

    Args:
        image_rules: how a picture is cut and how many tokens it takes, in words.
    """

    kind: str | None = "vlm"
    image_rules: str | None = None


MODELS = read_entries(Path(__file__).with_name("models.json"), VisionConfiguration)

__all__ = ["MODELS", "VisionConfiguration"]
