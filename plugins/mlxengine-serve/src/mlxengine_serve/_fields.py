"""What becomes of each field of a request: one table a dialect, which checks requests and makes the docs."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from attrs import define, field, frozen

from ._refusals import Refusal


class Fate(enum.StrEnum):
    """What becomes of a field."""

    HONOURED = "honoured"
    REFUSED = "refused"
    CALLERS = "the caller's"


@frozen
class Field:
    """A field.

    Args:
        name: as the dialect has it.
        fate: honoured; refused, unless its value is ``null`` or one of ``neutral``; or the caller's: it asks
            nothing of a model, and changes nothing here.
        note: what it becomes, or what to do instead.
        neutral: values of a refused field that ask for what there is anyway.
        ours: what the engine calls it, where those are other words.
    """

    name: str
    fate: Fate
    note: str = ""
    neutral: tuple[Any, ...] = ()
    ours: str = ""

    def allows(self, value: Any) -> bool:
        """Whether a value is one of the neutral ones; to Python, true and 1 are the same."""
        flag = isinstance(value, bool)
        return any(value == item and isinstance(item, bool) == flag for item in self.neutral)


def honoured(name: str, note: str = "", ours: str = "") -> Field:
    """A field that does here what the dialect says."""
    return Field(name, Fate.HONOURED, note, ours=ours)


def refused(name: str, note: str, *neutral: Any) -> Field:
    """A field that asks for what there is not."""
    return Field(name, Fate.REFUSED, note, neutral)


def callers(name: str, note: str) -> Field:
    """A field for whoever keeps books, or for another machine."""
    return Field(name, Fate.CALLERS, note)


@frozen
class Table:
    """The fields of one path's requests. ``extra``: those that other servers of this kind have besides."""

    title: str
    path: str
    fields: tuple[Field, ...]
    extra: tuple[Field, ...] = ()

    def check(self, body: Mapping[str, Any]) -> list[str]:
        """The names of fields that the table does not know.

        Raises:
            Refusal: 400, one asks for what there is not.
        """
        known = {item.name: item for item in (*self.fields, *self.extra)}
        unknown = []
        for name, value in body.items():
            item = known.get(name)
            if item is None:
                unknown.append(name)
            elif item.fate is Fate.REFUSED and value is not None and not item.allows(value):
                note = f" {item.note}" if item.note else ""
                raise Refusal(
                    400, f"{name} is not served here.{note}", param=name, code="unsupported_parameter"
                )
        return unknown

    def told(self, body: Mapping[str, Any], message: str) -> tuple[str | None, str]:
        """The field that an error of the engine is about, if it is about one, and its text in this dialect.

        A message that is about an argument begins with it: ``truncate_dim=9 is``, ``texts[1] has``.
        """
        found = _ARGUMENT.match(message)
        name = None if found is None else self._theirs.get(found[1])
        if found is None or name is None:
            return None, message
        given = body.get(name)
        several = isinstance(given, list) and not all(isinstance(item, int) for item in given)  # no token ids
        param = name + (found[2] if several else "")
        part = name == "size" and found[1] != name  # its width is no size
        return param, message if part else param + message[found.end() :]

    @cached_property
    def _theirs(self) -> dict[str, str]:
        fields = [item for item in (*self.fields, *self.extra) if item.fate is Fate.HONOURED]
        return {ours: item.name for item in fields for ours in item.ours.split() or [item.name]}


_ARGUMENT = re.compile(r"([a-z_]+)((?:\[\d+\])*)(?=[ =:])")
_NAMES = {str: "a text", bool: "true or false", int: "an integer", float: "a number", dict: "an object"}


def whole(value: Any) -> Any:
    """A number without a fraction as an integer: some programs write 4 as 4.0. Anything else stays."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


@define
class Fields:
    """An object of a request, read field by field; ``null`` is as good as absent.

    Every reader raises a `Refusal` (400) that names the place where something else stands.
    """

    data: Mapping[str, Any]
    where: str = field(default="", kw_only=True)

    def at(self, name: str) -> str:
        """Where a field stands, for messages."""
        return f"{self.where}.{name}" if self.where else name

    def wrong(self, name: str, message: str, code: str = "invalid_value") -> Refusal:
        """A refusal that names a field."""
        return Refusal(400, message, param=self.at(name), code=code)

    def has(self, name: str) -> bool:
        """Whether the field says something."""
        return self.data.get(name) is not None

    def _get(self, name: str, kind: type) -> Any:
        value = self.data.get(name)
        if value is None:
            return None
        if kind is int:
            value = whole(value)
        kinds: Any = (int, float) if kind is float else kind
        if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(name, f"{self.at(name)} must be {_NAMES[kind]}.", "invalid_type")
        return value

    def text(self, name: str) -> str | None:
        """A text, or nothing."""
        found: str | None = self._get(name, str)
        return found

    def flag(self, name: str) -> bool | None:
        """True, false, or nothing."""
        found: bool | None = self._get(name, bool)
        return found

    def integer(self, name: str) -> int | None:
        """A whole number, or nothing."""
        found: int | None = self._get(name, int)
        return found

    def number(self, name: str) -> float | None:
        """A number, or nothing."""
        found: float | None = self._get(name, float)
        return found

    def need(self, name: str) -> str:
        """A text that has to be there."""
        found = self.text(name)
        if found is None:
            raise self.wrong(name, f"{self.at(name)} is missing.", "missing_value")
        return found

    def object(self, name: str) -> Fields | None:
        """An object, or nothing."""
        found = self._get(name, dict)
        return None if found is None else Fields(found, where=self.at(name))

    def items(self, name: str) -> list[Any]:
        """A list; an empty one where there is nothing."""
        found = self.data.get(name)
        if found is None:
            return []
        if not isinstance(found, list):
            raise self.wrong(name, f"{self.at(name)} must be a list.", "invalid_type")
        return found

    def texts(self, name: str) -> list[str]:
        """The texts of a list."""
        found = self.items(name)
        if not all(isinstance(item, str) for item in found):
            raise self.wrong(name, f"{self.at(name)} must be a list of texts.", "invalid_type")
        return found

    def objects(self, name: str) -> Iterator[Fields]:
        """The objects of a list."""
        for number, item in enumerate(self.items(name)):
            where = f"{self.at(name)}[{number}]"
            if not isinstance(item, dict):
                raise Refusal(400, f"{where} must be an object.", param=where, code="invalid_type")
            yield Fields(item, where=where)

    def token_numbers(self) -> dict[int, float]:
        """This object as numbers by token id."""
        found = {}
        for name in self.data:
            value = self.number(name)
            if not name.isdecimal() or value is None:
                raise self.wrong(name, f"{self.where} maps token ids to numbers.")
            found[int(name)] = value
        return found

    def include_usage(self, streamed: bool) -> bool:
        """What ``stream_options`` says of usage; it goes with a stream alone."""
        options = self.object("stream_options")
        if options is not None and not streamed:
            raise self.wrong("stream_options", "stream_options goes with stream: true.")
        return options is not None and bool(options.flag("include_usage"))


__all__ = ["Fate", "Field", "Fields", "Table", "callers", "honoured", "refused", "whole"]
