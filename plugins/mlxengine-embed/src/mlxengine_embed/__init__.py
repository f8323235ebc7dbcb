"""Embeddings and reranking for MLXEngine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .models import EmbedConfiguration as EmbedConfiguration

__all__ = ["EmbedConfiguration"]


def __getattr__(name: str) -> Any:
    # Later than the package, because looking for plugins imports it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import models

    return getattr(models, name)
