"""Let a model call Python functions: describe them to it, run what it calls, hand it the results.

A `Session` does all of that by itself (``tool_rounds``); these are its parts, for loops of your own.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from ..contract._convert import document, json_object
from ..errors import InvalidParameterError, ToolError
from ..readonly import freeze
from .messages import ImagePart, ToolCallPart, ToolResultPart

if TYPE_CHECKING:
    from .outputs import ToolCall

_SIDE_BY_SIDE = 8
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array"}


@frozen
class DescribedTool:
    """A function with a description of its own, where its annotations do not say what it takes.

    Args:
        description: the JSON-schema function object that models are shown.
        function: called with the arguments by their names; it may be a coroutine function.
    """

    description: Mapping[str, Any] = field(converter=json_object)
    function: Callable[..., Any]

    @property
    def __name__(self) -> str:
        return name_of(self.description)

    def __call__(self, **arguments: Any) -> Any:
        return self.function(**arguments)


def describe(tool: Callable[..., Any] | Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool as the JSON-schema function object that chat templates take.

    A function is described by its name, its docstring (its first paragraph; a line ``name: text`` describes
    that parameter) and its annotations; parameters without a default are required. A mapping, and what a
    `DescribedTool` says of itself, passes as it is.

    Raises:
        InvalidParameterError: it is neither, or a parameter cannot be described.
    """
    if isinstance(tool, DescribedTool):
        return _checked(tool.description)
    if isinstance(tool, Mapping):
        json_object(tool)
        return _checked(tool)
    if not callable(tool):
        raise InvalidParameterError(
            f"A tool is a function or a description, found {type(tool).__name__}.",
            hint="Pass a Python function with annotations.",
        )
    text = inspect.getdoc(tool) or ""
    try:
        hints, signature = typing.get_type_hints(tool), inspect.signature(tool)
    except Exception as error:
        raise InvalidParameterError(f"The annotations of {name_of(tool)} cannot be read: {error}.") from error
    properties: dict[str, Any] = {}
    required = []
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise InvalidParameterError(
                f"The parameter {name} of {name_of(tool)} cannot be given by name.",
                hint="Tools are called with named arguments.",
            )
        properties[name] = _schema(hints.get(name, str), f"{name_of(tool)}({name})")
        lines = [line.strip() for line in text.splitlines() if line.strip().startswith(f"{name}:")]
        if lines:
            properties[name]["description"] = lines[0].removeprefix(f"{name}:").strip()
        if parameter.default is parameter.empty:
            required.append(name)
    schema = {"type": "object", "properties": properties, "required": required}
    summary = " ".join(text.split("\n\n")[0].split())
    function = {"name": name_of(tool), "description": summary, "parameters": schema}
    return _checked(document({"type": "function", "function": function}))


def _checked(description: Mapping[str, Any]) -> Mapping[str, Any]:
    function = description.get("function", description)
    if not isinstance(function, Mapping):
        raise InvalidParameterError(
            f"The description of a tool has no function: {function!r:.60}.",
            hint='Write {"type": "function", "function": {"name": …, "parameters": …}}.',
        )
    name = function.get("name")
    if not is_name(name):
        raise InvalidParameterError(
            f"{name!r:.60} is no name for a tool: a model's call of it could not be read.",
            hint="Use letters, digits, _ and -.",
        )
    if not isinstance(function.get("parameters"), Mapping | None):
        raise InvalidParameterError(
            f"The parameters of {name} are no JSON schema: {function['parameters']!r:.60}.",
            hint='Write {"type": "object", "properties": {…}}.',
        )
    if not isinstance(function.get("strict"), bool | None):
        raise InvalidParameterError(f"strict={function['strict']!r:.60} of {name} must be true or false.")
    return description


def is_name(value: object) -> bool:
    """Whether a model can call a tool by it in every format of calls."""
    return isinstance(value, str) and re.fullmatch(r"[^\s\[\](){}<>\"'\\]+", value) is not None


def described(tools: Sequence[Any]) -> dict[str, Mapping[str, Any]]:
    """What `describe` says now of each of a request's tools, by their names.

    Raises:
        InvalidParameterError: one cannot be described, or two have one name.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        description = freeze(describe(tool))
        if (name := name_of(tool)) in found:
            raise InvalidParameterError(
                f"Two tools are called {name!r}.", hint="A model calls tools by their names: rename one."
            )
        found[name] = description
    return found


def name_of(tool: Any) -> str:
    """The name by which a model calls a tool."""
    if isinstance(tool, Mapping):
        return str(tool.get("function", tool).get("name"))
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
    """Run the tool that a call names; what it raises becomes a result that the model sees.

    It may be a coroutine function, where no event loop runs in this thread. What it returns is shown as it is
    if it is a text, else as JSON; of a list with pictures (`ImagePart`), these go along with the texts.
    """
    found = _find(tools, part.name)
    if found is None:
        names = ", ".join(map(name_of, tools))
        return _failed(part, f"There is no tool {part.name!r}; there are: {names}.")
    try:
        result = found(**part.arguments)
        if inspect.iscoroutine(result):
            import asyncio

            result = asyncio.run(result)
        return _said(part, result)
    except (Exception, SystemExit) as error:  # what a tool ends is itself, not who called it
        return _raised(part, error)


def run_calls(tools: Sequence[Any], calls: Sequence[ToolCall]) -> list[ToolResultPart]:
    """Run the calls of one answer, several of them side by side in threads; the results in their order.

    A call that could not be parsed gets an error as its result. Ctrl-C does not wait for tools that run.
    """
    functions = _functions(tools)
    if len(calls) == 1:
        return [_run(functions, calls[0])]
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(min(len(calls), _SIDE_BY_SIDE), "mlxengine-tool")
    try:
        return list(pool.map(lambda item: _run(functions, item), calls))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


async def run_calls_async(tools: Sequence[Any], calls: Sequence[ToolCall]) -> list[ToolResultPart]:
    """Run the calls of one answer side by side, coroutine functions on the loop and the others in threads.

    The results come in the order of the calls; one that could not be parsed gets an error as its result.
    """
    import asyncio

    functions = _functions(tools)

    async def run(item: ToolCall) -> ToolResultPart:
        found = _find(functions, item.name)
        if item.arguments is None or not inspect.iscoroutinefunction(found):
            return await asyncio.to_thread(_run, functions, item)
        part = ToolCallPart(item.id, item.name, item.arguments)
        try:
            return _said(part, await found(**part.arguments))
        except (Exception, SystemExit) as error:
            return _raised(part, error)

    return list(await asyncio.gather(*map(run, calls)))


def can_run(tools: Sequence[Any], calls: Sequence[ToolCall]) -> bool:
    """Whether no call is meant for a tool that is only described: such calls are the caller's."""
    described = {name_of(tool) for tool in tools if isinstance(tool, Mapping)}
    return not any(item.name in described for item in calls)


def _functions(tools: Sequence[Any]) -> list[Callable[..., Any]]:
    return [tool for tool in tools if callable(tool)]


def _find(tools: Sequence[Callable[..., Any]], name: str) -> Callable[..., Any] | None:
    found = next((tool for tool in tools if name_of(tool) == name), None)
    return found.function if isinstance(found, DescribedTool) else found


def _run(tools: Sequence[Callable[..., Any]], item: ToolCall) -> ToolResultPart:
    part = ToolCallPart(item.id, item.name, item.arguments or {})
    if item.arguments is None:
        return _failed(part, f"The call could not be read: {item.error}")
    return call(tools, part)


def _said(part: ToolCallPart, result: Any) -> ToolResultPart:
    items = result if isinstance(result, list | tuple) else [result]
    images = tuple(item for item in items if isinstance(item, ImagePart))
    said = [item for item in items if not isinstance(item, ImagePart)] if images else [result]
    text = "\n".join(item if isinstance(item, str) else json.dumps(item, default=str) for item in said)
    return ToolResultPart(part.id, part.name, _shown(text), images=images)


def _raised(part: ToolCallPart, error: BaseException) -> ToolResultPart:
    return _failed(part, str(error) if isinstance(error, ToolError) else f"{type(error).__name__}: {error}")


def _failed(part: ToolCallPart, reason: str) -> ToolResultPart:
    return ToolResultPart(part.id, part.name, _shown(reason), True)


def _shown(text: str) -> str:
    """What a tool said as a model can read it: names of files, for one, may hold bytes that are no text."""
    return text.encode("utf-8", "backslashreplace").decode()


__all__ = [
    "DescribedTool",
    "call",
    "can_run",
    "describe",
    "described",
    "is_name",
    "name_of",
    "run_calls",
    "run_calls_async",
]
