"""The arguments of calls, made JSON of what formats write: JSON itself, typed texts, Python's literals."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from ...text.grammar import pointed
from ._source import Item, Source

Schema = Mapping[str, Any]

_ESCAPED = {letter: f"\\{letter}" for letter in 'nrtbf"\\'} | {
    "'": "'",
    "\n": "",
    "a": "\\u0007",
    "v": "\\u000b",
}
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_HEX = {"x": 2, "u": 4, "U": 8}
_NAMES = {"true": True, "false": False, "null": None}
_KINDS = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}


def dumped(value: Any) -> str:
    """A value as JSON."""
    return json.dumps(value, ensure_ascii=False)


def escaped(text: str) -> str:
    """A text as it stands within a JSON string."""
    return dumped(text)[1:-1]


def resolved(schema: Any, root: Schema) -> Schema:
    """A schema, or what it refers to within its root."""
    for _ in range(32):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        schema = pointed(root, reference)
    return schema if isinstance(schema, Mapping) else {}


def kinds(schema: Any, root: Schema) -> frozenset[str]:
    """The types that a schema allows; none where it does not say."""
    found = resolved(schema, root)
    named = found.get("type")
    if named is not None:
        return frozenset([named] if isinstance(named, str) else named)
    if "enum" in found or "const" in found:
        return frozenset(_KINDS.get(type(item), "null") for item in found.get("enum", [found.get("const")]))
    parts = [kinds(item, root) for item in (*found.get("anyOf", ()), *found.get("oneOf", ()))]
    return frozenset().union(*parts) if parts and all(parts) else frozenset()


def typed(text: str, allowed: frozenset[str]) -> Any:
    """The value that a text means: JSON or a literal of Python, unless only a string is allowed."""
    if allowed == {"string"}:
        return text
    value = literal(text)
    if allowed == {"integer"} and isinstance(value, float) and value.is_integer():
        return int(value)
    kind = _KINDS.get(type(value), "null")
    fits = not allowed or kind in allowed or (kind == "integer" and "number" in allowed)
    return text if "string" in allowed and not fits else value


def literal(text: str) -> Any:
    """JSON, a literal of Python in which JSON's names may stand, or the text itself."""
    try:
        return _plain(json.loads(text))
    except (ValueError, RecursionError):
        pass
    try:
        tree = ast.parse(_ESCAPE.sub(_known, text.strip()), mode="eval")
        return _plain(ast.literal_eval(_JsonNames().visit(tree)))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text


def _known(escape: re.Match[str]) -> str:
    """An escape that Python knows; of another it means the backslash, but warns."""
    return escape[0] if escape[1] in "\n\\'\"abfnrtvxuUN01234567" else f"\\{escape[0]}"


class _JsonNames(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(_NAMES[node.id]) if node.id in _NAMES else node


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))  # raises for what JSON has no form of


def json_text(source: Source, *, told: bool) -> Generator[Item, None, str]:
    """The text of the JSON value that comes, which is yielded as it comes if ``told``."""
    yield from source.space()
    start = sent = at = source.at
    depth, quoted, skip = 0, False, False
    while True:
        if at == len(source.text):
            if told and at > sent:
                yield source.text[sent:at]
            source.at = sent = at
            yield from source.wait()
            continue
        letter = source.text[at]
        at += 1
        if quoted:
            if skip or letter == "\\":
                skip = not skip
            elif letter == '"':
                quoted = False
        elif letter == '"':
            quoted = True
        elif letter in "{[":
            depth += 1
        elif depth and letter in "}]":
            depth -= 1
        else:
            if not depth and (letter in ",:}]" or letter.isspace()):
                at -= 1  # behind a number or a name
                break
            continue
        if not depth and not quoted:
            break
    source.at = at
    if told and at > sent:
        yield source.text[sent:at]
    return source.text[start:at]


def json_arguments(source: Source) -> Generator[Item, None, None]:
    """An object of arguments, yielded as it comes.

    Raises:
        ValueError: what comes is no object.
    """
    yield from source.space()
    if source.text[source.at] == "{":
        yield from json_text(source, told=True)
        return
    yield object_of((yield from json_text(source, told=False)))


def object_of(text: str) -> str:
    """The JSON of arguments that were written as text within JSON, or left out.

    Raises:
        ValueError: they are no object.
    """
    value = json.loads(text)
    if isinstance(value, str):
        text, value = value, json.loads(value)
    if value is None:
        return "{}"
    if not isinstance(value, dict):
        raise ValueError(f"arguments are {type(value).__name__}, not an object")
    return text


def string(source: Source, ends: Sequence[str], trim: str = "") -> Generator[Item, None, str]:
    """A raw text up to one of the ends as a JSON string, yielded as it comes; which end it was.

    ``trim``: ``"space"`` around it is left out, or ``"line"``: one line break on either side.
    """
    yield '"'
    begun, held = not trim, ""
    while True:
        piece, mark = yield from source.some(*ends)
        held += piece
        if not begun and held:
            held = held.lstrip() if trim == "space" else held.removeprefix("\n")
            begun = bool(held) or trim == "line"
        kept = held if not trim else held.rstrip() if trim == "space" else held.removesuffix("\n")
        if kept:
            yield escaped(kept)
        held = held[len(kept) :]
        if mark:
            yield '"'
            return mark


def python_string(source: Source, quote: str) -> Generator[Item, None, None]:
    """What follows the quote that opens a literal of Python, as a JSON string, yielded as it comes."""
    yield '"'
    while True:
        piece, mark = yield from source.some("\\", quote)
        if piece:
            yield escaped(piece)
        if mark == quote:
            yield '"'
            return
        if mark:
            letter = yield from source.letters(1)
            if letter in _HEX:
                digits = yield from source.letters(_HEX[letter])
                int(digits, 16)
                yield f"\\u{digits}" if letter == "u" else escaped(chr(int(digits, 16)))
            else:
                yield _ESCAPED.get(letter, f"\\\\{escaped(letter)}")


__all__ = [
    "Schema",
    "dumped",
    "escaped",
    "json_arguments",
    "json_text",
    "kinds",
    "literal",
    "object_of",
    "python_string",
    "resolved",
    "string",
    "typed",
]
