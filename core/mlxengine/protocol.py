"""What any engine offers, for code that takes one."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from .contract.configuration import ModelConfiguration
from .handle import ModelHandle


@runtime_checkable
class LLMEngine(Protocol):
    """What any engine offers: loading a model and getting rid of everything again."""

    def load(self, model: str | Path | ModelConfiguration) -> ModelHandle:
        """Load a model and return the handle for its kind."""
        ...

    def close(self) -> None:
        """Stop everything and free every model."""
        ...


__all__ = ["LLMEngine"]
