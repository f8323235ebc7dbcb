"""Values of a request, or an error that says what they have to be."""

from __future__ import annotations

import math
from typing import Any, NoReturn

from mlxengine.errors import FeatureUnavailableError, InvalidParameterError

from .backends._work import Pipeline


def chosen(name: str, wanted: str | None, known: tuple[str, ...]) -> str | None:
    """The value, if it is one of those that are known."""
    if wanted is not None and wanted not in known:
        refuse(
            f"{name}={wanted!r} is not known.",
            f"Use one of {', '.join(known)}." if known else f"This model has one fixed {name}: leave it out.",
        )
    return wanted


def check_size(size: Any, step: int, largest: int) -> None:
    """A (width, height) that the model can draw."""
    if not isinstance(size, tuple | list) or len(size) != 2:
        refuse(f"size={size!r} must be (width, height) in pixels.")
    for name, value in zip(("width", "height"), size, strict=True):
        integer(name, value, step, largest)
        if value % step:
            near = max(step, round(value / step) * step)
            refuse(f"{name}={value} must be a multiple of {step} for this model.", f"{near} is the nearest.")


def integer(name: str, value: Any, low: int, high: int) -> None:
    """A whole number in a range."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        refuse(f"{name}={value!r} must be an integer from {low} to {high}.")


def several(name: str, value: Any, one: str) -> None:
    """A tuple or list; ``one`` is how a single thing is written in it."""
    if not isinstance(value, tuple | list):
        refuse(f"{name} holds several, also where it is one.", f"Write {name}=({one},).")


def number(name: str, value: Any, low: float, high: float) -> None:
    """A finite number in a range."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not low <= value <= high:
        refuse(f"{name}={value!r} must be a number from {low:g} to {high:g}.")


def refuse(message: str, hint: str | None = None) -> NoReturn:
    """Raise `InvalidParameterError`."""
    raise InvalidParameterError(message, hint=hint)


def unable(pipeline: Pipeline, what: str) -> FeatureUnavailableError:
    """What to raise where a back end cannot do something."""
    return FeatureUnavailableError(f"The back end of this model ({pipeline.info.get('library')}) {what}.")


__all__ = ["check_size", "chosen", "integer", "number", "refuse", "several", "unable"]
