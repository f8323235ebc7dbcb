"""Tools: Python functions that a model may call, and the loop that runs them."""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import InvalidParameterError
from .messages import Message, Part, Role, TextPart, ToolCallPart, ToolResultPart

if TYPE_CHECKING:
    from .model import Prompt, TextHandle
    from .params import GenerateParams
    from .replies import TextReply

_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array"}


def describe(tool: Callable[..., Any] | Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool as the JSON-schema function object that chat templates take.

    A function is described by its name, its docstring (its first paragraph; a line ``name: text`` describes
    that parameter) and its annotations; parameters without a default are required. A mapping passes as it is.

    Raises:
        InvalidParameterError: it is neither, or a parameter cannot be described.
    """
    if isinstance(tool, Mapping):
        return tool
    if not callable(tool):
        raise InvalidParameterError(
            f"A tool is a function or a description, found {type(tool).__name__}.",
            hint="Pass a Python function with annotations.",
        )
    text = inspect.getdoc(tool) or ""
    try:
        hints = typing.get_type_hints(tool)
    except Exception as error:
        raise InvalidParameterError(f"The annotations of {_name(tool)} cannot be read: {error}.") from error
    properties: dict[str, Any] = {}
    required = []
    for name, parameter in inspect.signature(tool).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise InvalidParameterError(
                f"The parameter {name} of {_name(tool)} cannot be given by name.",
                hint="Tools are called with named arguments.",
            )
        properties[name] = _schema(hints.get(name, str), f"{_name(tool)}({name})")
        lines = [line.strip() for line in text.splitlines() if line.strip().startswith(f"{name}:")]
        if lines:
            properties[name]["description"] = lines[0].removeprefix(f"{name}:").strip()
        if parameter.default is parameter.empty:
            required.append(name)
    schema = {"type": "object", "properties": properties, "required": required}
    summary = " ".join(text.split("\n\n")[0].split())
    function = {"name": _name(tool), "description": summary, "parameters": schema}
    return {"type": "function", "function": function}


def _name(tool: Any) -> str:
    return str(getattr(tool, "__name__", type(tool).__name__))


def _schema(hint: Any, where: str) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _schema(arguments[0], where)
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        inner = [_schema(item, where) for item in arguments if item is not type(None)]
        return inner[0] if len(inner) == 1 else {"anyOf": inner}
    if origin in (list, tuple, set, Sequence, Iterable) and arguments:
        return {"type": "array", "items": _schema(arguments[0], where)}
    if hint is Any:
        return {}
    kind = _TYPES.get(origin or hint)
    if kind is None:
        raise InvalidParameterError(
            f"The type of {where} cannot be described to a model: {hint!r}.",
            hint="Use str, int, float, bool, list, dict, Literal or a union of these.",
        )
    return {"type": kind}


def call(tools: Sequence[Callable[..., Any]], part: ToolCallPart) -> ToolResultPart:
    """Run the tool that a call names; what it raises becomes a result that the model sees."""
    found = next((tool for tool in tools if _name(tool) == part.name), None)
    if found is None:
        names = ", ".join(map(_name, tools))
        return ToolResultPart(
            part.id, part.name, f"There is no tool {part.name!r}; there are: {names}.", True
        )
    try:
        result = found(**part.arguments)
    except Exception as error:
        return ToolResultPart(part.id, part.name, f"{type(error).__name__}: {error}", True)
    text = result if isinstance(result, str) else json.dumps(result, default=str)
    return ToolResultPart(part.id, part.name, text)


def answer_with_tools(
    model: TextHandle,
    prompt: Prompt,
    tools: Sequence[Callable[..., Any]],
    params: GenerateParams | None = None,
    *,
    instructions: str | None = None,
    rounds: int = 5,
) -> tuple[TextReply, tuple[Message, ...]]:
    """Let a model answer, running the tools that it calls, at most ``rounds`` times over.

    Calls of one answer are run in their order; one that could not be parsed is told to the model.

    Returns:
        The last reply (it may still hold calls, if the rounds were used up) and the whole conversation.

    Raises:
        MLXEngineError: what a request ended with.
    """
    from .messages import as_messages
    from .requests import Request

    if isinstance(prompt, Request):
        raise InvalidParameterError("Give a text or messages, not a request.")
    messages = as_messages(prompt)
    for turn in range(rounds + 1):
        reply = model.generate(messages, params, instructions=instructions, tools=tools)
        parts: list[Part] = [TextPart(reply.text)] if reply.text else []
        parts += [ToolCallPart(item.id, item.name, item.arguments or {}) for item in reply.tool_calls]
        messages = (*messages, Message(Role.ASSISTANT, parts or [TextPart("")]))
        if not reply.tool_calls or turn == rounds:
            break
        for item in reply.tool_calls:
            if item.arguments is None:
                said = f"The call could not be read: {item.error}"
                result = ToolResultPart(item.id, item.name, said, True)
            else:
                result = call(tools, ToolCallPart(item.id, item.name, item.arguments))
            messages = (*messages, Message.tool(result))
    return reply, messages


__all__ = ["answer_with_tools", "call", "describe"]
