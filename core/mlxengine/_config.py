"""Settings that come from outside the program: the environment and the configuration file."""

from __future__ import annotations

import os

from .features import Layer, Level, parse_flags


def feature_layers() -> tuple[Layer, ...]:
    """The feature flags of the environment and of the configuration file, strongest first."""
    return (Layer(Level.ENVIRONMENT, parse_flags(os.environ.get("MLXENGINE_FEATURES", ""))),)
