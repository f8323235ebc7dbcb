"""A conversation as chat templates take it, and the other forms that some of them want.

Templates agree on little more than roles. Arguments of calls are objects to most and JSON text to some,
content is a list of parts to some and a text to others, pictures stand in a tool's result or only in what a
user says. `forms` gives one after another; whoever renders takes the first that comes out right.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..readonly import thaw
from ..text.messages import Message, Part, ReasoningPart, TextPart, ToolCallPart, ToolResultPart
from ..text.requests import TextRequest

REASONING = ("reasoning_content", "reasoning", "thinking", "thought")
"""The names by which templates look for what an assistant thought, the usual one first."""

Shown = Callable[[Part], list[dict[str, Any]]]
_Messages = list[dict[str, Any]]
_PART = str([{"type": "text"}])[:-2]  # how a list of parts begins where it is printed


def tools_of(request: TextRequest) -> list[dict[str, Any]]:
    """The request's tools as JSON-schema function objects."""
    return [thaw(tool) for tool in request.described.values()]


def turns(messages: Iterable[Message], shown: Shown, *, listed: bool, reasoning: str) -> _Messages:
    """Messages as the values that chat templates read.

    Args:
        messages: what was said. Several results in one message become one message each.
        shown: what stands for a part that is neither text, nor reasoning, nor a call.
        listed: whether content is a list of parts, or a text.
        reasoning: the name for what an assistant thought.
    """
    found = [item for message in messages for item in _said(message, shown, reasoning)]
    return found if listed else _texts_for_parts(found)


def _said(message: Message, shown: Shown, reasoning: str) -> _Messages:
    found: _Messages = []
    entry: dict[str, Any] | None = None  # what further parts belong to
    for part in message.parts or (TextPart(""),):
        if isinstance(part, ToolResultPart):
            content = [_part(part.content)]
            for image in part.images:
                content += shown(image)
            found.append({"role": "tool", "tool_call_id": part.id, "name": part.name, "content": content})
            entry = None
            continue
        if entry is None:
            entry = {"role": str(message.role), "content": []}
            found.append(entry)
        if isinstance(part, TextPart):
            entry["content"].append(_part(part.text))
        elif isinstance(part, ReasoningPart):
            entry[reasoning] = entry.get(reasoning, "") + part.text
        elif isinstance(part, ToolCallPart):
            function = {"name": part.name, "arguments": thaw(part.arguments)}
            entry.setdefault("tool_calls", []).append(
                {"id": part.id, "type": "function", "function": function}
            )
        else:
            entry["content"] += shown(part)
    for item in found:  # templates look at the first part
        item["content"] = item["content"] or [_part("")]
    return found


def says_nothing(messages: _Messages) -> bool:
    """Whether there is no message with anything in it."""
    return not any(text_of(item) or _media(item) or item.keys() - {"role", "content"} for item in messages)


def text_of(message: dict[str, Any]) -> str:
    """The text in a message's content."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def continued(message: dict[str, Any], mark: str, reasoning: str) -> dict[str, Any]:
    """The message with a mark where its answer goes on: after its text, or its reasoning if it is all."""
    content = message["content"]
    if reasoning in message and not text_of(message) and not _media(message):
        return {**message, reasoning: message[reasoning] + mark}
    more = content + mark if isinstance(content, str) else [*content, _part(mark)]
    return {**message, "content": more}


def forms(messages: _Messages) -> Iterator[_Messages]:
    """The messages, then each other form of them that differs, the likelier ones first."""
    seen: list[_Messages] = []
    for changes in itertools.product(*_CHANGES):
        found = messages
        for change in changes:
            found = change(found)
        if found not in seen:
            seen.append(found)
            yield found


def leaves_out(text: str, messages: _Messages) -> bool:
    """Whether something that a user says is not in a rendered text: the template looked for another form."""
    contents = [item["content"] for item in messages if item["role"] == "user"]
    parts = [
        part for content in contents for part in ([_part(content)] if isinstance(content, str) else content)
    ]
    return any(part.get("text", "").strip() not in text for part in parts)


def shows_values(text: str, messages: _Messages) -> bool:
    """Whether a rendered text shows lists or objects in Python's notation: the template meant text."""
    calls = [call for item in messages for call in item.get("tool_calls", ())]
    given = (call["function"]["arguments"] for call in calls)
    printed = {str(arguments) for arguments in given if arguments and not isinstance(arguments, str)}
    if any(isinstance(item["content"], list) for item in messages):
        printed.add(_PART)
    return any(text.count(item) > sum(text_of(one).count(item) for one in messages) for item in printed)


def _media(message: dict[str, Any]) -> bool:
    content = message["content"]
    return not isinstance(content, str) and any(part["type"] != "text" for part in content)


def _as_text(message: dict[str, Any]) -> dict[str, Any]:
    return message if _media(message) else {**message, "content": text_of(message)}


def _as_they_are(messages: _Messages) -> _Messages:
    return messages


def _texts_for_parts(messages: _Messages) -> _Messages:
    return list(map(_as_text, messages))


def _texts_for_results(messages: _Messages) -> _Messages:
    return [_as_text(item) if item["role"] == "tool" else item for item in messages]


def _parts_for_texts(messages: _Messages) -> _Messages:
    def listed(message: dict[str, Any]) -> dict[str, Any]:
        return message if _media(message) else {**message, "content": [_part(text_of(message))]}

    return list(map(listed, messages))


def _part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _texts_for_arguments(messages: _Messages) -> _Messages:
    def changed(call: dict[str, Any]) -> dict[str, Any]:
        arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        return {**call, "function": {**call["function"], "arguments": arguments}}

    def with_text(message: dict[str, Any]) -> dict[str, Any]:
        calls = message.get("tool_calls")
        return {**message, "tool_calls": list(map(changed, calls))} if calls else message

    return list(map(with_text, messages))


def _pictures_after_results(messages: _Messages) -> _Messages:
    """What results show, said by the user after them."""
    found: _Messages = []
    moved: list[dict[str, Any]] = []
    for item in messages:
        result = "tool_call_id" in item
        if moved and not result:
            found.append({"role": "user", "content": moved})
            moved = []
        if result and _media(item):
            moved = [*moved, *(part for part in item["content"] if part["type"] != "text")]
            item = {**item, "content": [part for part in item["content"] if part["type"] == "text"]}
        found.append(item)
    return [*found, {"role": "user", "content": moved}] if moved else found


def _thoughts_in_text(messages: _Messages) -> _Messages:
    """What was thought before a call, in front of what was said: some templates have one place for both."""

    def merged(message: dict[str, Any]) -> dict[str, Any]:
        name = next((name for name in REASONING if name in message), None)
        if name is None or "tool_calls" not in message or not (said := text_of(message)):
            return message
        rest = {key: value for key, value in message.items() if key != name}
        return {**rest, "content": f"{message[name]}\n\n{said}"}

    return list(map(merged, messages))


_CHANGES = (
    (_as_they_are, _thoughts_in_text),
    (_as_they_are, _pictures_after_results),
    (_as_they_are, _texts_for_results, _texts_for_parts, _parts_for_texts),
    (_as_they_are, _texts_for_arguments),
)

__all__ = [
    "REASONING",
    "continued",
    "forms",
    "leaves_out",
    "says_nothing",
    "shows_values",
    "text_of",
    "tools_of",
    "turns",
]
