"""Converters of value classes, typed so that a caller's type checker accepts any iterable."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from ..errors import InvalidParameterError

T = TypeVar("T")


def texts(value: Iterable[str]) -> tuple[str, ...]:
    """Several texts as a tuple; one text, which would fall apart into its letters, is refused."""
    if isinstance(value, str):
        raise InvalidParameterError(
            f"Expected several texts, found one: {value[:40]!r}.", hint="Put it in a list."
        )
    return tuple(value)


def names(value: Iterable[str]) -> frozenset[str]:
    """Several names as a set."""
    return frozenset(texts(value))


def integers(value: Iterable[int]) -> tuple[int, ...]:
    """Several integers as a tuple."""
    return tuple(value)


def anything(value: Iterable[Any]) -> tuple[Any, ...]:
    """Several values as a tuple."""
    return tuple(value)
