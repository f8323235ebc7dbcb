"""What may be said when an engine is made and when a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from ..errors import InvalidParameterError
from .events import Event


class EngineOptions(TypedDict, total=False):
    """What an engine may be made with; `InferenceEngine` says what each means."""

    backend: str
    plugins: Sequence[object] | None
    distributions: Mapping[str, str] | None
    features: Mapping[str, object] | None
    endpoint: str | None
    cache_dir: str | Path | None
    token: str | None
    offline: bool | None
    memory_budget: int | str | None
    idle_ttl: float | None
    queue_size: int
    step_budget_ms: float
    close_timeout: float


class LoadOptions(TypedDict, total=False):
    """What a load may say beside the model; `InferenceEngine.load` says what each means."""

    plugin: str | None
    features: Mapping[str, object] | None
    verify: str | None
    warm_up: bool
    idle_ttl: float | None
    wait_for_memory: float
    on_progress: Callable[[Event], None] | None


def check_idle_ttl(seconds: float | None) -> None:
    """Whether this can be a model's time without a request.

    Raises:
        InvalidParameterError: it is neither ``None`` nor a positive number of seconds.
    """
    usable = isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds > 0
    if seconds is not None and not usable:
        raise InvalidParameterError(
            f"idle_ttl={seconds!r} must be a positive number of seconds.",
            hint="None keeps the model; evict() of its handle takes it out at once.",
        )


def check_drain(seconds: float) -> None:
    """Whether closing can let requests go on for so long.

    Raises:
        InvalidParameterError: it is no number from 0 on.
    """
    _check_from_zero(
        "drain", seconds, "0 ends requests at once; math.inf waits until the last one has ended by itself."
    )


def check_patience(seconds: float) -> None:
    """Whether a load can wait for memory for so long.

    Raises:
        InvalidParameterError: it is no number from 0 on.
    """
    _check_from_zero(
        "wait_for_memory", seconds, "0 refuses at once; math.inf waits until there is memory for it."
    )


def _check_from_zero(name: str, seconds: object, hint: str) -> None:
    usable = isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds >= 0
    if not usable:
        raise InvalidParameterError(f"{name}={seconds!r} must be a number of seconds from 0 on.", hint=hint)


__all__ = ["EngineOptions", "LoadOptions", "check_drain", "check_idle_ttl", "check_patience"]
