"""What an answer must look like: JSON of a schema, a regular expression, a Lark grammar, or choices."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from attrs import field, frozen

from ..contract._convert import document, text
from ..errors import InvalidParameterError
from ..readonly import thaw

_SPECIAL = r"[\\.+*?()|\[\]{}^$#&~-]"  # what means something in a pattern


class GrammarKind(enum.StrEnum):
    """How a grammar's source is to be read."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"


@frozen
class Grammar:
    """A constraint on the whole answer. Use `json`, `regex`, `lark` or `choices` to build one.

    Only its form is checked here; whether it can be compiled is known when a request uses it.
    """

    kind: GrammarKind = field(converter=GrammarKind)
    source: str = field(converter=text)

    @classmethod
    def json(cls, schema: Any = None) -> Grammar:
        """JSON that fits a schema: a mapping, its text, or a pydantic model class; any object without one.

        Raises:
            InvalidParameterError: the schema is none of these, or a part of it refers to nothing but itself.
        """
        if hasattr(schema, "model_json_schema"):
            schema = schema.model_json_schema()
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except ValueError as error:
                raise InvalidParameterError(f"The JSON schema is not JSON: {error}.") from error
        if schema is None:
            schema = {"type": "object"}
        if not isinstance(schema, Mapping | bool):
            raise InvalidParameterError(
                f"A JSON schema is a mapping, its text or a pydantic model, found {type(schema).__name__}."
            )
        try:
            source = json.dumps(thaw(document(schema)), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidParameterError(f"The JSON schema cannot be written as JSON: {error}.") from error
        check_references(schema, "The JSON schema")
        return cls(GrammarKind.JSON_SCHEMA, source)

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Text that matches a regular expression (Rust's syntax) from its first to its last character."""
        return cls(GrammarKind.REGEX, _text(pattern))

    @classmethod
    def lark(cls, grammar: str) -> Grammar:
        """Text of a context-free grammar in Lark's notation, as llguidance reads it."""
        return cls(GrammarKind.LARK, _text(grammar))

    @classmethod
    def choices(cls, texts: Iterable[str]) -> Grammar:
        """One of the texts, to the letter."""
        found = [_text(item) for item in ((texts,) if isinstance(texts, str) else texts)]
        if not found:
            raise InvalidParameterError("Choices need at least one text.")
        # a pattern, not a rule: thousands of alternatives are no more work than one
        return cls(
            GrammarKind.REGEX, "|".join(re.sub(_SPECIAL, r"\\\g<0>", item) for item in dict.fromkeys(found))
        )


def check_references(schema: Any, name: str) -> None:
    """Refuse a JSON schema of which a part refers, perhaps by way of others, to nothing but itself.

    Raises:
        InvalidParameterError: it says ``name``, and where that part is.
    """
    sound: set[str] = set()
    for path, part in _parts(schema):
        way: dict[str, None] = {}
        while (reference := _reference(part)) is not None and reference not in sound:
            if reference in way:
                raise InvalidParameterError(
                    f"{name} refers at {path} to nothing but itself: {' → '.join([*way, reference])}.",
                    hint="Say there what the value is: its type, or its properties.",
                )
            way[reference] = None
            part = pointed(schema, reference)
        sound.update(way)


def pointed(root: Any, reference: str) -> Any:
    """What a reference such as ``#/$defs/name`` stands for within its root; ``None`` for nothing."""
    found = root
    for step in reference.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        found = found.get(step) if isinstance(found, Mapping) else None
    return found


def _reference(schema: Any) -> str | None:
    """Where a schema refers to, if that is all that it says of a value."""
    if not isinstance(schema, Mapping):
        return None
    found = schema.get("$ref")
    if isinstance(found, str) and found.startswith("#"):
        return found
    for word in ("allOf", "anyOf", "oneOf"):
        parts = schema.get(word)
        if isinstance(parts, list | tuple) and len(parts) == 1:
            return _reference(parts[0])
    return None


def _parts(schema: Any) -> Iterator[tuple[str, Any]]:
    """All objects within a JSON value, each with its path."""
    waiting = [("#", schema)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Mapping):
            yield path, value
            waiting += [(f"{path}/{key}", item) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(f"{path}/{at}", item) for at, item in enumerate(value)]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidParameterError(f"A grammar is a non-empty text, found {value!r}.")
    return text(value)


__all__ = ["Grammar", "GrammarKind", "check_references", "pointed"]
