"""How the calls within a piece are read, by the notation that they are written in.

Each reader begins behind the mark that opens a piece and ends behind the one that closes it, which is its
second argument. Of a call it yields `Named`, pieces of the arguments' JSON, and `Whole`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Any

from attrs import frozen

from ...text.tools import is_name
from ._source import Item, Named, Reading, Source, Whole
from ._values import (
    Schema,
    dumped,
    json_arguments,
    json_text,
    kinds,
    literal,
    object_of,
    python_string,
    resolved,
    string,
    typed,
)

Tools = Mapping[str, Schema]
"""The schemas of the tools' arguments."""

Reader = Callable[[Source, str, Tools], Reading]

_NAMES, _ARGUMENTS = ("name", "tool_name"), ("arguments", "parameters")
_ATTRIBUTE = re.compile(r"\b(?:name|tool|key)\s*=\s*(\"[^\"]*\"|'[^']*'|[^\s\"'<>]+)")


def json_calls(source: Source, closes: str, _tools: Tools) -> Reading:
    """``{"name": …, "arguments": {…}}``, or a list of such."""
    while True:
        yield from source.space()
        mark = yield from source.next(closes, "{", "[", "]", ",")
        if mark == closes:
            return
        if mark == "{":
            yield from json_call(source)
        elif not mark:
            raise ValueError("a call should be a JSON object")


def json_call(source: Source) -> Reading:
    """What follows the brace that opens a call."""
    name, held, told = "", "", False
    while True:
        yield from source.space()
        mark = yield from source.next("}", ",", '"')
        if mark == "}":
            break
        if mark == ",":
            continue
        if not mark:
            raise ValueError("a key should follow")
        source.at -= 1
        key = json.loads((yield from json_text(source, told=False)))
        yield from source.space()
        yield from source.expect(":")
        if key in _ARGUMENTS and name and not told:
            yield from json_arguments(source)
            told = True
            continue
        text = yield from json_text(source, told=False)
        if key in _ARGUMENTS:
            held = object_of(text)
        elif key in _NAMES and not name:
            name = _checked(json.loads(text))
            yield Named(name)
            if held:
                yield held
                told = True
    if not name:
        raise ValueError("the call has no name")
    if not told:
        yield "{}"
    yield Whole()


def kimi_k2(source: Source, closes: str, _tools: Tools) -> Reading:
    """``<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{…}<|tool_call_end|>``."""
    while True:
        yield from source.space()
        if (yield from source.next(closes, "<|tool_call_begin|>")) == closes:
            return
        head, _ = yield from source.until("<|tool_call_argument_begin|>")
        yield Named(_checked(re.sub(r":\d+$", "", head.strip().removeprefix("functions."))))
        yield from json_arguments(source)
        yield from source.space()
        yield from source.expect("<|tool_call_end|>")
        yield Whole()


def mistral(source: Source, _closes: str, _tools: Tools) -> Reading:
    """``NAME[ARGS]{…}`` (with ``[CALL_ID]…`` before that, perhaps), or a JSON list; nothing closes it."""
    while True:
        yield from source.space()
        mark = yield from source.next("[TOOL_CALLS]", "{", "[", "]", ",")
        if mark == "{":
            yield from json_call(source)
        if mark:
            continue
        name, mark = yield from source.until("[ARGS]", "[CALL_ID]", "{")
        yield Named(_checked(name))
        if mark == "[CALL_ID]":
            yield from source.until("[ARGS]")
        elif mark == "{":
            source.at -= 1
        yield from json_arguments(source)
        yield Whole()


@frozen(kw_only=True)
class Tags:
    """A notation with a tag around each argument.

    Args:
        call: opens a call; empty where the piece is one call.
        call_name: how its name is written there, ``NAME``.
        head: ends that; empty where the first argument or the end does.
        end: ends the call.
        key, key_end: around an argument's name.
        key_name: how that is written, ``NAME``, with its type, ``KIND``, if ``types``.
        value: between that and the value.
        value_end: ends the value.
        trim: see `string`.
        cdata: a value may stand in ``<![CDATA[…]]>``.
        types: the tag of an argument says its type.
        line: what models write behind each tag.
    """

    call: str = ""
    call_name: str = "NAME"
    head: str = ">"
    end: str
    key: str
    key_name: str = "NAME"
    key_end: str = ">"
    value: str = ""
    value_end: str
    trim: str = "space"
    cdata: bool = False
    types: bool = False
    line: str = ""


def tagged(tags: Tags) -> Reader:
    """The reader of a notation with tags."""
    return partial(_tagged, tags)


def _tagged(tags: Tags, source: Source, closes: str, tools: Tools) -> Reading:
    while True:
        yield from source.space()
        if tags.call:
            mark = yield from source.next(tags.call, closes)
            if mark == closes:
                return
            if not mark:
                raise ValueError(f"{tags.call!r} should follow")
        if tags.head:
            head, _ = yield from source.until(tags.head)
        else:
            if (yield from source.next("{")):  # some models write JSON between these marks too
                source.at -= 1
                yield from json_calls(source, closes, tools)
                return
            head, mark = yield from source.until(tags.key, tags.end)
            source.at -= len(mark)
        name = _checked(_name_in(head))
        yield Named(name)
        before = "{"
        while True:
            yield from source.space()
            mark = yield from source.next(tags.key, tags.end, *(["<|open|>json"] if tags.types else []))
            if mark == tags.end:
                break
            if not mark:
                raise ValueError(f"{tags.key!r} or {tags.end!r} should follow")
            head, _ = yield from source.until(tags.key_end)
            if mark != tags.key:
                yield from json_arguments(source)
                yield from source.until("<|close|>json<|sep|>")
                before = ""
                continue
            if tags.value:
                yield from source.space()
                yield from source.expect(tags.value)
            key = _name_in(head)
            yield f"{before}{dumped(key)}: "
            before = ", "
            yield from _tagged_value(tags, source, _allowed(tags, head, key, tools.get(name, {})))
        if before:
            yield "{}" if before == "{" else "}"
        yield Whole()
        if not tags.call:
            return


def _allowed(tags: Tags, head: str, key: str, schema: Schema) -> frozenset[str]:
    if tags.types:
        said = re.search(r'\btype="([^"]*)"', head)
        return frozenset(["string"] if said is None or said[1] == "string" else [])
    properties = resolved(schema, schema).get("properties")
    return kinds(properties.get(key), schema) if isinstance(properties, Mapping) else frozenset()


def _tagged_value(tags: Tags, source: Source, allowed: frozenset[str]) -> Reading:
    if tags.cdata:
        yield from source.space()
        if (yield from source.next("<![CDATA[")):
            if allowed in ({"string"}, frozenset()):
                yield from string(source, ("]]>",))
            else:
                text, _ = yield from source.until("]]>")
                yield dumped(typed(text, allowed))
            yield from source.space()
            yield from source.expect(tags.value_end)
            return
    if allowed == {"string"}:
        yield from string(source, (tags.value_end,), tags.trim)
        return
    text, _ = yield from source.until(tags.value_end)
    text = text.strip() if tags.trim == "space" else text.removeprefix("\n").removesuffix("\n")
    yield dumped(typed(text, allowed))


def pythonic(source: Source, closes: str, _tools: Tools) -> Reading:
    """``[NAME(key="value", …), …]``."""
    while True:
        yield from source.space()
        mark = yield from source.next(closes, "[", "]", ",")
        if mark == closes:
            return
        if mark:
            continue
        name, _ = yield from source.until("(")
        yield Named(_checked(name))
        before = "{"
        while True:
            yield from source.space()
            mark = yield from source.next(")", ",")
            if mark == ")":
                break
            if mark:
                continue
            key, _ = yield from source.until("=")
            yield f"{before}{dumped(_checked(key))}: "
            before = ", "
            yield from source.space()
            quote = yield from source.next('"""', "'''", '"', "'")
            if quote:
                yield from python_string(source, quote)
            else:
                yield dumped(literal((yield from _python_text(source))))
        yield "{}" if before == "{" else "}"
        yield Whole()


def _python_text(source: Source) -> Generator[Item, None, str]:
    """The text of an expression, up to the comma or bracket that follows it."""
    found, depth = "", 0
    while True:
        piece, mark = yield from source.some(*"()[]{},\"'")
        found += piece
        if not mark:
            continue
        if not depth and mark in ",)":
            source.at -= 1
            return found
        depth += (mark in "([{") - (mark in ")]}")
        found += mark
        if mark in "\"'":
            while True:
                piece, end = yield from source.some("\\", mark)
                found += piece + end
                if end == mark:
                    break
                if end:
                    found += yield from source.letters(1)


def braced(quote: str) -> Reader:
    """``call:NAME{key:value,…}`` with strings between two ``quote``, bare keys, and JSON's other values."""
    return partial(_braced, quote)


def _braced(quote: str, source: Source, closes: str, _tools: Tools) -> Reading:
    while True:
        yield from source.space()
        mark = yield from source.next(closes, "call:", ",")
        if mark == closes:
            return
        if not mark:
            raise ValueError("'call:' should follow")
        if mark == ",":
            continue
        name, _ = yield from source.until("{")
        yield Named(_checked(name))
        yield from _braced_object(source, quote)
        yield Whole()


def _braced_object(source: Source, quote: str) -> Reading:
    """What follows the brace that opens the arguments, as JSON."""
    yield "{"
    open_, word = ["}"], ""
    while open_:
        piece, mark = yield from source.some(quote, *"{}[],:")
        word += piece
        if not mark:
            continue
        bare, word = word.strip(), ""
        if bare:
            yield dumped(bare if mark == ":" else literal(bare))
        if mark == quote:
            yield from string(source, (quote,))
        elif mark in "{[":
            open_.append("}" if mark == "{" else "]")
            yield mark
        elif mark in "}]":
            if mark != open_.pop():
                raise ValueError(f"{mark!r} closes what is not open")
            yield mark
        else:
            yield f"{mark} "


def one_object(name: str, closes: tuple[str, ...]) -> Callable[[Source], Reading]:
    """The reader of a message that is the arguments of one call, whose name its header said."""

    def read(source: Source) -> Reading:
        yield Named(name)
        yield from json_arguments(source)
        yield Whole()
        rest, _ = yield from source.until(*closes)
        if rest.strip():
            raise ValueError(f"{rest.strip()[:20]!r} follows the arguments")

    return read


def _name_in(head: str) -> str:
    """The name in a tag: an attribute, or the text itself, in quotes or not."""
    found = _ATTRIBUTE.search(head)
    text = (found[1] if found else head).strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    if found:
        text = text.replace("&quot;", '"').replace("&amp;", "&")
    return text


def _checked(name: Any) -> str:
    text = name.strip() if isinstance(name, str) else ""
    if not is_name(text):
        raise ValueError(f"{name!r} is no name")
    return text


__all__ = [
    "Reader",
    "Tags",
    "Tools",
    "braced",
    "json_calls",
    "kimi_k2",
    "mistral",
    "one_object",
    "pythonic",
    "tagged",
]
