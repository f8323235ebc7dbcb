"""What may be said when a model is loaded: for type checkers, so that importing the engine costs no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypedDict

from .events import Event


class LoadOptions(TypedDict, total=False):
    """What a load may say beside the model; `InferenceEngine.load` says what each means."""

    plugin: str | None
    features: Mapping[str, object] | None
    verify: str | None
    warm_up: bool
    on_progress: Callable[[Event], None] | None


__all__ = ["LoadOptions"]
