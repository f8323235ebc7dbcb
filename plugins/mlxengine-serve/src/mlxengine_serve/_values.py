"""Requests and events of any kind as JSON, by their attrs fields and annotations: no kind needs code here.

Nothing that a client writes is taken for a path: a text is refused where a path, or anything at all, may
stand, and in a field that is called like one. Bytes are ``{"base64": …}``; where a request wants a path they
are put into a file of the request's own.
"""

from __future__ import annotations

import base64
import enum
import itertools
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from mlxengine import Array, Event, Grammar

from ._asking import decoded
from ._refusals import Refusal

PATHS = re.compile(r"(.*_)?(path|file|filename|folder|directory|dir|source|uri|url|lora|checkpoint)s?")
BYTES = "base64"


def plain(value: Any) -> Any:
    """A value of an event as JSON has it; a number that JSON lacks is ``null``."""
    if isinstance(value, Array):
        return {"data": base64.b64encode(value.data).decode(), "shape": value.shape, "dtype": value.dtype}
    if attrs.has(type(value)):
        return {item.name: plain(getattr(value, item.name)) for item in attrs.fields(type(value))}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, bytes | bytearray | memoryview):
        return {BYTES: base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return repr(value)


def event_value(event: Event) -> dict[str, Any]:
    """An event with the name of its type."""
    return {"type": type(event).__name__, **plain(event)}


class Builder:
    """Makes values of classes from JSON.

    Args:
        folder: where bytes are put that a request wants as a path; it is made when it is needed.
    """

    def __init__(self, folder: Callable[[], Path]) -> None:
        self._folder = folder
        self._numbers = itertools.count()

    def build(self, kind: type, data: Any, where: str, skipped: frozenset[str] = frozenset()) -> Any:
        """A value of an attrs class from an object; a field that is left out has its default.

        Raises:
            Refusal: 400, something else stands there, or a name is unknown.
            MLXEngineError: the class refuses a value.
        """
        if not isinstance(data, Mapping):
            raise _wrong(where, f"{where} must be an object.")
        hints = _hints(kind)
        known = {item.name: item for item in attrs.fields(kind) if item.init and item.name not in skipped}
        given = {}
        for name, value in data.items():
            if name == "type" and name not in known:
                continue
            place = f"{where}.{name}"
            if name not in known:
                raise _wrong(place, f"{kind.__name__} has no {name!r}; it has {', '.join(known)}.")
            if PATHS.fullmatch(name) and kind is not Grammar and hints.get(name, Any) is not Any:
                given[known[name].alias] = self._path(value, place)
            else:
                given[known[name].alias] = self.convert(value, hints.get(name, Any), place)
        missing = [
            item.name for item in known.values() if item.default is attrs.NOTHING and item.alias not in given
        ]
        if missing:
            raise _wrong(f"{where}.{missing[0]}", f"{kind.__name__} needs {', '.join(missing)}.")
        return kind(**given)

    def convert(self, value: Any, hint: Any, where: str) -> Any:
        """A value for an annotation."""
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            return self._one_of(value, arguments, where)
        if hint is Any or hint is object:
            return self._anything(value, where)
        if origin is typing.Literal:
            if value not in arguments:
                raise _wrong(where, f"{where} must be one of {', '.join(map(repr, arguments))}.")
            return value
        if origin is not None:
            return self._collection(value, origin, arguments, where)
        if hint is None or hint is type(None):
            if value is not None:
                raise _wrong(where, f"{where} must be null.")
            return None
        if isinstance(hint, type):
            return self._scalar(value, hint, where)
        raise _wrong(where, f"{where} cannot be said in JSON.")

    def _scalar(self, value: Any, kind: type, where: str) -> Any:
        if attrs.has(kind):
            return self.build(_named(kind, value), value, where)
        if issubclass(kind, enum.Enum):
            try:
                return kind(value)
            except ValueError:
                raise _wrong(where, f"{where} must be one of {', '.join(map(str, kind))}.") from None
        if kind is bytes:
            return _bytes(value, where)
        if issubclass(kind, Path):
            return Path(self._path(value, where))
        if kind in (list, tuple, dict):
            return self._anything(value, where)
        fits = kind in (str, int, float, bool) and isinstance(value, kind)
        fits |= kind is float and isinstance(value, int)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise _wrong(where, f"{where} must be {kind.__name__}.")
        return value

    def _collection(self, value: Any, origin: Any, arguments: tuple[Any, ...], where: str) -> Any:
        if isinstance(origin, type) and issubclass(origin, Mapping):
            if not isinstance(value, dict):
                raise _wrong(where, f"{where} must be an object.")
            return value
        if not isinstance(origin, type) or not issubclass(origin, Iterable) or not isinstance(value, list):
            raise _wrong(where, f"{where} must be a list.")
        inner: Sequence[Any] = arguments[:1] * len(value)
        if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
            if len(value) != len(arguments):
                raise _wrong(where, f"{where} must have {len(arguments)} items.")
            inner = arguments
        made = [
            self.convert(item, hint, f"{where}[{number}]")
            for number, (item, hint) in enumerate(zip(value, inner, strict=True))
        ]
        return tuple(made) if origin is tuple else made

    def _one_of(self, value: Any, arguments: tuple[Any, ...], where: str) -> Any:
        if isinstance(value, dict) and "type" in value:
            arguments = tuple(item for item in arguments if getattr(item, "__name__", "") == value["type"])
        problems: list[Refusal] = []
        for hint in arguments:
            try:
                return self.convert(value, hint, where)
            except Refusal as error:
                problems.append(error)
        if len(problems) == 1:
            raise problems[0]
        names = " or ".join(getattr(item, "__name__", str(item)) for item in arguments)
        raise _wrong(where, f"{where} must be {names or 'something else'}.")

    def _anything(self, value: Any, where: str) -> Any:
        if isinstance(value, str):
            raise _wrong(where, f'{where} may not be a text: it could name a file. Send {{"{BYTES}": …}}.')
        if isinstance(value, dict) and set(value) == {BYTES}:
            return _bytes(value, where)
        if isinstance(value, list):
            return tuple(self._anything(item, f"{where}[]") for item in value)
        return value

    def _path(self, value: Any, where: str) -> str:
        content = _bytes(value, where)
        path = self._folder() / f"{next(self._numbers)}"
        path.write_bytes(content)
        return str(path)


def _hints(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except Exception:  # a name that is there for type checkers alone: its fields take what they take
        return {}


def _named(kind: type[Any], value: Any) -> type[Any]:
    """The subclass that a value's ``type`` names, else the class itself."""
    wanted = value.get("type") if isinstance(value, dict) else None
    return next((item for item in subclasses(kind) if item.__name__ == wanted), kind)


def subclasses(kind: type) -> Iterable[type[Any]]:
    """All subclasses, theirs included.

    attrs makes a class with slots anew; the one that was written is there until it is collected, and has no
    fields of its own.
    """
    item: type[Any]
    for item in kind.__subclasses__():
        if "__attrs_attrs__" in vars(item):
            yield item
        yield from subclasses(item)


def _bytes(value: Any, where: str) -> bytes:
    text = value.get(BYTES) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise _wrong(where, f'{where} must be {{"{BYTES}": …}}: nothing is opened because a client names it.')
    return decoded(text, where)


def _wrong(where: str, message: str) -> Refusal:
    return Refusal(400, message, param=where, code="invalid_value")


__all__ = ["Builder", "event_value", "plain", "subclasses"]
