"""Markov chains as a model kind of MLXEngine."""

from pathlib import Path

from .types import Choice, ContinueRequest

SPECIMEN = Path(__file__).parent / "specimen"
"""A tiny chain, trained on a nursery rhyme, that comes with the package."""

__all__ = ["SPECIMEN", "Choice", "ContinueRequest"]
