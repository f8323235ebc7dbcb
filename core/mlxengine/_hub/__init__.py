"""Finding and fetching models: the only package that uses huggingface_hub, imported lazily."""

from __future__ import annotations

from .access import offline_by_default
from .fetch import fetch
from .resolve import resolve
from .secrets import checked_token, redact

__all__ = ["checked_token", "fetch", "offline_by_default", "redact", "resolve"]
