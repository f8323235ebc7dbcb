"""Registry entries of vision-language models."""

from __future__ import annotations

from mlxengine import ModelConfiguration

ALL: tuple[ModelConfiguration, ...] = ()
