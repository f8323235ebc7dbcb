"""Embeddings and reranking for MLXEngine."""

from __future__ import annotations

from .models import EmbedConfiguration

__all__ = ["EmbedConfiguration"]
