"""Markov chains as a model kind of MLXEngine."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .types import Choice, ContinueRequest

SPECIMEN = Path(__file__).parent / "specimen"
"""A tiny chain, trained on a nursery rhyme, that comes with the package."""

__all__ = ["SPECIMEN", "Choice", "ContinueRequest"]


def __getattr__(name: str) -> Any:
    # Looking for plugins imports this package; what a request is made of can wait for the first one.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import types

    return getattr(types, name)
