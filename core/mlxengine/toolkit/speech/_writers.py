"""How a call is written within a piece, as a grammar: for each notation that is read.

A writer gives an expression for one call of a tool. Without a schema, any arguments will do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from . import _schemas as schemas
from ._lark import ANYTHING, Lark, one_of
from ._readers import Tags
from ._values import Schema, dumped, kinds

Writer = Callable[[Lark, str, Schema | None], str]

_SCALARS = ("string", "integer", "number", "boolean", "null")


def whole_object(lark: Lark, schema: Schema | None) -> str:
    """JSON of a schema of arguments, which are an object."""
    return lark.json({**(schema or {}), "type": "object"})


def framed(before: str, after: str) -> Writer:
    """``before`` (with ``{name}`` for the tool's), the arguments as JSON, ``after``."""

    def write(lark: Lark, name: str, schema: Schema | None) -> str:
        ahead = lark.text(before.replace("NAME", name))
        return f"{ahead} {whole_object(lark, schema)} {lark.text(after)}"

    return write


def kimi_k2(lark: Lark, name: str, schema: Schema | None) -> str:
    """``<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{…}<|tool_call_end|>``."""
    ahead = f"{lark.text(f'<|tool_call_begin|>functions.{name}:')} /[0-9]{{1,2}}/"
    behind = f"{whole_object(lark, schema)} {lark.text('<|tool_call_end|>')}"
    return f"{ahead} {lark.text('<|tool_call_argument_begin|>')} {behind}"


def tagged(tags: Tags) -> Writer:
    """The writer of a notation with tags."""
    return partial(_tagged, tags)


def _tagged(tags: Tags, lark: Lark, name: str, schema: Schema | None) -> str:
    named = tags.call_name.replace("NAME", _attribute(tags, name))
    ahead = tags.line if tags.call else ""
    parts = [lark.text(f"{ahead}{tags.call}{named}{tags.head}{tags.line}")]
    if schema is None:
        free = f"{lark.text(tags.key)} {lark.through(tags.key_end)} {lark.text(tags.value)}"
        parts.append(f"({free} {lark.through(tags.value_end)} {lark.text(tags.line)})*")
    for key, item, required in [] if schema is None else schemas.members(schema, schema):
        told = kinds(item, schema or {})
        kind = "string" if told == {"string"} else min(told - {"string"}, default="object")
        named = tags.key_name.replace("NAME", _attribute(tags, key)).replace("KIND", kind)
        before = lark.text(f"{tags.key}{named}{tags.key_end}{tags.value}")
        value = _tagged_value(tags, lark, schemas.only(item, schema or {}), schema or {})
        rule = lark.rule(f"{before} {value} {lark.text(tags.line)}")
        parts.append(rule if required else f"{rule}?")
    if tags.call:  # where a piece is one call, what ends the call ends the piece too
        parts.append(lark.text(tags.end + tags.line))
    return " ".join(filter(None, parts))


def _attribute(tags: Tags, name: str) -> str:
    return name.replace("&", "&amp;").replace('"', "&quot;") if tags.types else name


def _tagged_value(tags: Tags, lark: Lark, schema: Schema, root: Schema) -> str:
    allowed = kinds(schema, root)
    listed = schemas.options(schema)
    line = "\n" if tags.trim == "line" else ""
    pad, end = lark.text(line), line + tags.value_end
    if "string" not in allowed or (tags.types and allowed != {"string"}):
        return f"{pad} {lark.json(schemas.with_definitions(schema, root))} {lark.text(end)}"
    if listed is not None:
        texts = [item if isinstance(item, str) else dumped(item) for item in listed]
        if any(text != text.strip() or not text or tags.value_end in text for text in texts):
            raise schemas.unsupported("enum")
        return f"{pad} {one_of(list(map(lark.text, texts)))} {lark.text(end)}"
    if allowed != {"string"}:
        schemas.check(schema, ("anyOf",))
        for part in schema.get("anyOf", ()):
            schemas.check(part, ())
        return f"{pad} {lark.through(end)}"
    pattern = schemas.string_pattern(schema)
    if pattern and tags.trim == "space":  # blank space around it would be taken away
        pattern = rf"{pattern} & /([^\s](?s:.*)[^\s]|[^\s]?)/"
    return f"{pad} {lark.through(end, pattern or ANYTHING)}"


def pythonic(lark: Lark, name: str, schema: Schema | None) -> str:
    """``NAME(key=value, …)`` with values as JSON, which Python reads too."""
    if schema is None:
        free = r"/[a-zA-Z_]\w*/ " + f'"=" {lark.json({})}'
        pair = lark.rule(free)
        return f'{lark.text(name + "(")} ({pair} (", " {pair})*)? ")"'
    pairs = []
    for key, item, required in schemas.members(schema, schema):
        if not key.isidentifier():
            raise schemas.unsupported(key)
        value = lark.json(schemas.with_definitions(item, schema))
        pairs.append((lark.rule(f"{lark.text(key + '=')} {value}"), required))
    return f'{lark.text(name + "(")} {listed(lark, pairs, ", ")} ")"'


def braced(quote: str) -> Writer:
    """``call:NAME{key:value,…}`` with strings between two ``quote``."""

    def write(lark: Lark, name: str, schema: Schema | None) -> str:
        return f"{lark.text(f'call:{name}')} {_Braced(lark, quote, schema or {}).object(schema or {})}"

    return write


class _Braced:
    """The values of one call."""

    def __init__(self, lark: Lark, quote: str, root: Schema) -> None:
        self._lark, self._quote, self._root = lark, quote, root
        self._known: dict[str, str] = {}
        self._any = ""

    def value(self, schema: Any) -> str:
        """Any value that a schema allows."""
        key = json.dumps(schema, sort_keys=True, default=str)
        if key not in self._known:
            self._known[key] = self._lark.later()
            self._lark.define(self._known[key], self._value(schemas.only(schema, self._root)))
        return self._known[key]

    def _value(self, schema: Schema) -> str:
        if (listed_ := schemas.options(schema)) is not None:
            return one_of([self._listed(item) for item in listed_])
        if parts := schema.get("anyOf"):
            schemas.check(schema, ("anyOf",))
            return one_of([self.value(part) for part in parts])
        named = schema.get("type")
        if named is None:
            schemas.check(schema, ())
            return self.anything()
        if not isinstance(named, str):
            schemas.check(schema, ())
            return one_of([self.value({"type": item}) for item in named])
        if named == "string":
            return self._string(schemas.string_pattern(schema))
        if named == "object":
            return self.object(schema)
        if named == "array":
            return self._array(schema)
        return self._lark.json(schema)

    def _listed(self, item: Any) -> str:
        if isinstance(item, dict | list) or (isinstance(item, str) and self._quote in item):
            raise schemas.unsupported("enum")
        return self._lark.text(f"{self._quote}{item}{self._quote}" if isinstance(item, str) else dumped(item))

    def _string(self, pattern: str) -> str:
        ahead = self._lark.text(self._quote)
        return f"{ahead} {self._lark.through(self._quote, pattern or ANYTHING)}"

    def _array(self, schema: Schema) -> str:
        schemas.check(schema, ("items", "minItems", "maxItems"))
        item = self.value(schema.get("items", {}))
        least, most = int(schema.get("minItems", 0)), schema.get("maxItems")
        if most == 0:
            return '"[" "]"'
        rest = f'("," {item}){{{max(least - 1, 0)},{"" if most is None else int(most) - 1}}}'
        return f'"[" {item} {rest} "]"' if least else f'"[" ({item} {rest})? "]"'

    def object(self, schema: Schema) -> str:
        """An object of a schema; one that names no properties may have any."""
        found = schemas.members(schema, self._root)
        more = schemas.only(schema, self._root).get("additionalProperties", True)
        if not found and more is not False:
            of = self.anything() if more is True else self.value(more)
            pair = self._lark.rule(rf'/[a-zA-Z_]\w*/ ":" {of}')
            return f'"{{" ({pair} ("," {pair})*)? "}}"'
        pairs = []
        for key, item, required in found:
            if not re.fullmatch(r"\w+", key):
                raise schemas.unsupported(key)
            pairs.append((self._lark.rule(f"{self._lark.text(key + ':')} {self.value(item)}"), required))
        return f'"{{" {listed(self._lark, pairs, ",")} "}}"'

    def anything(self) -> str:
        """Any value at all."""
        if not self._any:
            self._any = self._lark.later()
            parts = [self.value({"type": item}) for item in (*_SCALARS, "object", "array")]
            self._lark.define(self._any, one_of(parts))
        return self._any


def listed(lark: Lark, items: list[tuple[str, bool]], between: str) -> str:
    """Expressions in order with something between, those that are not required left out or not."""
    comma = lark.text(between)
    rest, alone = "", ""
    for item, required in reversed(items):
        one = f"{item} {rest}".strip()
        if required:
            rest, alone = lark.rule(f"{comma} {one}"), lark.rule(one)
        else:
            rest = lark.rule(f"{comma} {one} | {rest}" if rest else f"({comma} {one})?")
            alone = lark.rule(f"{one} | {alone}" if alone else f"({one})?")
    return alone


__all__ = ["Writer", "braced", "framed", "kimi_k2", "pythonic", "tagged", "whole_object"]
