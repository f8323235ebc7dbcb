"""JSON values that nobody can change: what frozen values hold of files and requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class FrozenDict(dict[str, Any]):
    """A dict that refuses every change; unlike a mapping proxy it can be pickled and written as JSON."""

    def _refuse(self, *_arguments: object, **_keywords: object) -> Any:
        raise TypeError("this mapping is read-only; thaw() makes a copy that is not")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[FrozenDict], tuple[dict[str, Any]]]:
        return FrozenDict, (dict(self),)


def freeze(value: Any) -> Any:
    """A read-only copy of decoded JSON: mappings and tuples instead of dicts and lists."""
    if isinstance(value, Mapping):
        return FrozenDict({key: freeze(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    return value


def thaw(value: Any) -> Any:
    """The plain dicts and lists that a frozen JSON value stands for (a fresh copy)."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [thaw(item) for item in value]
    return value


__all__ = ["freeze", "thaw"]
