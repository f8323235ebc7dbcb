"""Converters of value classes, typed so that a caller's type checker accepts any iterable."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from operator import index
from typing import Any, TypeVar

from attrs import Attribute, Converter

from ..errors import InvalidParameterError
from ..readonly import freeze

T = TypeVar("T")


def named(_kind: type, fields: list[Attribute[Any]]) -> list[Attribute[Any]]:
    """For attrs' ``field_transformer``: what a field's converter refuses, it refuses by the field's name."""
    return [_named(item) for item in fields]


def _named(item: Attribute[Any]) -> Attribute[Any]:
    own: Any = item.converter
    if own is None or isinstance(own, Converter):  # that of a base class is named already
        return item

    @functools.wraps(own)  # by which attrs finds the type of what it takes
    def convert(value: Any, field: Attribute[Any]) -> Any:
        return converted(field.name, own, value)

    return item.evolve(converter=Converter(convert, takes_field=True))


def converted(name: str, convert: Callable[[Any], T], value: Any) -> T:
    """A value converted; what the converter refuses is said with a name, unless it begins with that."""
    try:
        return convert(value)
    except InvalidParameterError as error:
        said = str(error.args[0])
        if said.startswith(name):
            raise
        raise InvalidParameterError(f"{name}: {said}", hint=error.hint) from error


def texts(value: Iterable[str]) -> tuple[str, ...]:
    """Several texts as a tuple; one text, which would fall apart into its letters, is refused."""
    return tuple(map(text, anything(value)))


def text(value: str) -> str:
    """A text that can be written as UTF-8: without half of a surrogate pair."""
    if not isinstance(value, str):
        raise InvalidParameterError(f"Expected a text, found {value!r:.60}.")
    _check(value)
    return value


def optional_text(_instance: object, attribute: Any, value: object) -> None:
    """A validator: ``None``, or a text as `text` takes it."""
    if value is not None and not isinstance(value, str):
        raise InvalidParameterError(f"{attribute.name}={value!r:.60} must be a text.")
    converted(attribute.name, _check, value)


def document(value: T) -> T:
    """A value nested as JSON is, all of whose texts can be written as UTF-8."""
    try:
        _check(value)
    except RecursionError as error:
        raise InvalidParameterError("The value is nested too deeply.") from error
    return value


def json_object(value: Mapping[str, Any]) -> Any:
    """A read-only copy of a JSON object."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise InvalidParameterError(f"Expected a mapping of names to JSON values, found {value!r:.60}.")
    found = freeze(document(value))
    try:
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidParameterError(f"Expected JSON values: {error}.") from error
    return found


def _check(value: Any) -> None:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidParameterError(
                f"The text {value[max(0, error.start - 20) : error.start + 1]!r}… holds half of a surrogate "
                f"pair (U+{ord(value[error.start]):04X}) at {error.start}, which is no character.",
                hint="Text that was decoded with surrogateescape must be decoded otherwise.",
            ) from error
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check(key)
            _check(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check(item)


def names(value: Iterable[str]) -> frozenset[str]:
    """Several names as a set."""
    return frozenset(texts(value))


def integers(value: Iterable[int]) -> tuple[int, ...]:
    """Several integers as a tuple."""
    found = anything(value)
    if any(isinstance(item, bool) for item in found):
        raise InvalidParameterError("Expected integers, found True or False.")
    try:
        return tuple(map(index, found))
    except TypeError as error:
        raise InvalidParameterError(f"Expected integers: {error}.") from error


def flag(_instance: object, attribute: Any, value: object) -> None:
    """A validator: true or false, or ``None`` where that is the default."""
    if not isinstance(value, bool) and not (value is None and attribute.default is None):
        raise InvalidParameterError(f"{attribute.name}={value!r:.60} must be True or False.")


def only(options: Mapping[str, object], known: type, *beside: str) -> None:
    """Refuse an option that the options which there are (a `TypedDict`) do not have.

    Raises:
        InvalidParameterError: it names the option, and those that there are; ``beside`` are further ones.
    """
    for name in options:
        if name not in known.__annotations__:
            there = ", ".join((*beside, *known.__annotations__))
            raise InvalidParameterError(f"Unknown parameter {name!r}.", hint=f"Known: {there}.")


def anything(value: Iterable[Any]) -> tuple[Any, ...]:
    """Several values as a tuple; one alone, which is none or would fall apart, is refused."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise InvalidParameterError(
            f"Expected several values, found one: {value!r:.60}.", hint="Put it in a list."
        )
    return tuple(value)
