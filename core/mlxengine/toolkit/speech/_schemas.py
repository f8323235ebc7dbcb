"""What a schema asks of arguments that are not written as JSON, and what of it cannot be held."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...errors import UnsupportedInputError
from ._values import Schema, resolved

_TOLD = {"title", "description", "default", "examples", "deprecated", "$schema", "$id", "$comment", "type"}
_DEFINED = {"$defs", "definitions"}
_OBJECT = {"properties", "required", "additionalProperties", *_DEFINED}


def members(schema: Schema, root: Schema) -> list[tuple[str, Schema, bool]]:
    """An object's properties: name, schema, whether it has to be there.

    Raises:
        UnsupportedInputError: the schema asks for more of the object.
    """
    found = resolved(schema, root)
    check(found, _OBJECT)
    properties = found.get("properties", {})
    required = [name for name in found.get("required", ()) if name not in properties]
    return [
        *((name, item, name in found.get("required", ())) for name, item in properties.items()),
        *((name, dict[str, Any](), True) for name in required),
    ]


def check(schema: Schema, held: Iterable[str]) -> None:
    """Refuse what is asked for beyond what is ``held``.

    Raises:
        UnsupportedInputError: naming the keyword.
    """
    beyond = sorted(set(schema) - _TOLD - set(held))
    if beyond:
        raise unsupported(beyond[0])


def unsupported(keyword: str) -> UnsupportedInputError:
    """The refusal of a keyword."""
    return UnsupportedInputError(
        f"A tool's schema uses {keyword!r}, which this model's format of calls cannot be held to.",
        hint='Leave it out, or let the model choose by itself: tool_choice="auto" and no "strict".',
    )


def with_definitions(schema: Schema, root: Schema) -> dict[str, Any]:
    """A schema with what it may refer to."""
    return {**{name: root[name] for name in _DEFINED if name in root}, **schema}


def options(schema: Schema) -> list[Any] | None:
    """The values that a schema lists, or ``None``."""
    if "const" in schema:
        return [schema["const"]]
    found = schema.get("enum")
    return list(found) if isinstance(found, list | tuple) else None


def string_pattern(schema: Schema) -> str:
    """A pattern, as a terminal's, of the strings that a schema allows.

    Raises:
        UnsupportedInputError: it asks for something else than a length or a pattern.
    """
    check(schema, ("minLength", "maxLength", "pattern"))
    parts = []
    if "minLength" in schema or "maxLength" in schema:
        parts.append(f"(?s:.{{{int(schema.get('minLength', 0))},{schema.get('maxLength', '')}}})")
    if (pattern := schema.get("pattern")) is not None:
        begin = "" if pattern.startswith("^") else "(?s:.*)"
        ends = pattern.endswith("$") and not pattern.endswith("\\$")
        inner = pattern.removeprefix("^")[: -1 if ends else None].replace("/", "\\/")
        parts.append(f"{begin}({inner}){'' if ends else '(?s:.*)'}")
    return " & ".join(f"/{part}/" for part in parts)


def only(schema: Any, root: Schema) -> Mapping[str, Any]:
    """What a schema means where it is another one with a name or a reference around it."""
    found = resolved(schema, root)
    parts = found.get("allOf")
    return resolved(parts[0], root) if isinstance(parts, list | tuple) and len(parts) == 1 else found


__all__ = ["check", "members", "only", "options", "string_pattern", "unsupported", "with_definitions"]
