"""OpenAI's responses: a body to a request, events to a response. Nothing is kept between two of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from mlxengine import (
    AsyncTextHandle,
    Event,
    Grammar,
    Message,
    ReasoningPart,
    TextPart,
    TextRequest,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from mlxengine.text.messages import Part, Role

from ._answers import Asked, Dialect
from ._asking import BEYOND, TIERS, arguments, choice, image, parameters, schema, seed_of, sound
from ._fields import Fields, Table, callers, honoured, refused
from ._response_stream import ResponseStream

_DIRECT = {
    "max_output_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_logprobs": "top_logprobs",
    "stop": "stop",
    **{item.name: item.name for item in BEYOND},
}
LOGPROBS = "message.output_text.logprobs"

TABLE = Table(
    "OpenAI responses",
    "/v1/responses",
    (
        callers("access_programs", "Nothing is asked of them."),
        refused("background", "Ask for a stream.", False),
        callers("background_options", "They go with background."),
        refused("context_management", "A conversation is never cut; leave turns out yourself.", []),
        refused("conversation", "Nothing is kept: send the whole conversation as input."),
        callers("image", "Pictures are read as they are."),
        honoured(
            "include", "message.output_text.logprobs; reasoning comes in the open, the rest is of tools."
        ),
        honoured("input", "A text or items: messages, function calls and their outputs, reasoning."),
        honoured("instructions"),
        honoured("max_output_tokens", "Reasoning included."),
        callers("max_tool_calls", "No tool is run here."),
        honoured("metadata", "It comes back with the response."),
        honoured("model", "A served model's name or alias; left out, it is the first one."),
        refused("moderation", "Nothing is moderated."),
        honoured("parallel_tool_calls"),
        refused("previous_response_id", "Nothing is kept: send the whole conversation as input."),
        refused("prompt", "There are no stored prompts: send it as input."),
        callers("prompt_cache_key", "Prompts that begin alike share what was computed, whoever asks."),
        callers("prompt_cache_options", "As prompt_cache_key."),
        callers("prompt_cache_retention", "The engine's flags say how much is kept."),
        honoured(
            "reasoning", "effort: none, or a word of the model's template; it comes whole, not as a summary."
        ),
        callers("safety_identifier", "Nothing is sent anywhere."),
        honoured("service_tier", "flex waits behind others; priority goes no further than the key's own."),
        callers("store", "Nothing is kept."),
        honoured("stream"),
        callers("stream_options", "The stream carries no padding."),
        honoured("temperature", "null is the model's own default, not 1."),
        honoured("text", "format: text, json_object, json_schema; verbosity is named in the header."),
        honoured("tool_choice", "auto, none, required, a function, or allowed tools."),
        honoured("tools", "Functions; tools of other types are left out and named in the header."),
        honoured("top_logprobs"),
        honoured("top_p"),
        refused("truncation", "A prompt is never cut.", "disabled"),
        callers("user", "Nothing is sent anywhere."),
    ),
    (*BEYOND, honoured("seed"), honoured("stop")),
)


def read(body: dict[str, Any], request_id: str) -> Asked:
    """A body as what the engine is asked.

    Raises:
        Refusal: 400, with the field that is wrong.
    """
    unknown = TABLE.check(body)
    fields = Fields(body)
    tools, skipped = _tools(fields)
    left, chosen = _choice(fields, tools)
    effort, hints = _reasoning(fields)
    grammar, verbosity = _format(fields)
    include = fields.texts("include")
    params = parameters(
        fields,
        _DIRECT,
        seed=seed_of(fields),
        grammar=grammar,
        logprobs=True if LOGPROBS in include or fields.integer("top_logprobs") else None,
        thinking=False if effort == "none" else None,
        reasoning_effort=None if effort == "none" else effort,
    )
    request = TextRequest(
        messages=tuple(_conversation(fields)),
        params=params,
        tools=left,
        tool_choice=chosen,
        parallel_tool_calls=fields.flag("parallel_tool_calls"),
    )
    writer = ResponseStream(_head(fields, request, request_id), request_id)
    return Asked(
        model=fields.text("model"),
        requests=(request,),
        handle=AsyncTextHandle,
        gives="text",
        whole=lambda events: _whole(events, writer),
        writer=writer if fields.flag("stream") else None,
        unknown=[*unknown, *skipped, *hints, *verbosity],
        priority=TIERS.get(fields.text("service_tier") or "", 0),
    )


def _whole(events: list[Event], writer: ResponseStream) -> dict[str, Any]:
    for event in events:
        writer.event(event)
    return writer.response


def _head(fields: Fields, request: TextRequest, request_id: str) -> dict[str, Any]:
    """What a response says of its request."""
    chosen = request.tool_choice
    named = {"type": "function", "name": chosen.name} if isinstance(chosen, ToolChoice) else chosen
    tools = [
        {"type": "function", "parameters": None, "strict": None, **tool["function"]} for tool in request.tools
    ]
    parallel = request.parallel_tool_calls
    return {
        "id": f"resp_{request_id[4:]}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": fields.text("instructions"),
        "max_output_tokens": request.params.max_tokens,
        "metadata": metadata.data if (metadata := fields.object("metadata")) else {},
        "model": fields.text("model") or "",
        "output": [],
        "parallel_tool_calls": True if parallel is None else parallel,
        "previous_response_id": None,
        "reasoning": {"effort": request.params.reasoning_effort, "summary": None},
        "store": False,
        "temperature": request.params.temperature,
        "text": {"format": {"type": "text"}} if request.params.grammar is None else fields.data["text"],
        "tool_choice": named,
        "tools": tools,
        "top_p": request.params.top_p,
        "truncation": "disabled",
        "usage": None,
    }


def _tools(fields: Fields) -> tuple[list[Any], list[str]]:
    """The functions, as the engine takes them; and the names of tools of other types."""
    tools, skipped = [], []
    for tool in fields.objects("tools"):
        kind = tool.need("type")
        if kind != "function":
            skipped.append(f"{tool.where} {kind}")
            continue
        names = ("name", "description", "parameters", "strict")
        tool.need("name")
        tools.append(
            {"type": "function", "function": {name: tool.data[name] for name in names if tool.has(name)}}
        )
    return tools, skipped


def _choice(fields: Fields, tools: list[Any]) -> tuple[list[Any], ToolChoice | str]:
    wanted = fields.data.get("tool_choice")
    if wanted is None:
        return tools, "auto"
    if not isinstance(wanted, dict):
        return tools, choice(fields, wanted, None)
    chosen = Fields(wanted, where="tool_choice")
    if chosen.data.get("type") == "allowed_tools":
        names = {tool.text("name") for tool in chosen.objects("tools")}
        left = [tool for tool in tools if tool["function"]["name"] in names]
        return left, choice(fields, chosen.need("mode"), None)
    named = chosen.need("name") if chosen.data.get("type") == "function" else None
    return tools, choice(fields, wanted, named)


def _reasoning(fields: Fields) -> tuple[str | None, list[str]]:
    wanted = fields.object("reasoning")
    if wanted is None:
        return None, []
    hints = [f"reasoning.{name}" for name in wanted.data if name != "effort" and wanted.has(name)]
    return wanted.text("effort"), hints


def _format(fields: Fields) -> tuple[Grammar | None, list[str]]:
    wanted = fields.object("text")
    if wanted is None:
        return None, []
    hints = ["text.verbosity"] if wanted.has("verbosity") else []
    described = wanted.object("format")
    kind = "text" if described is None else described.need("type")
    if kind == "json_object":
        return Grammar.json(), hints
    if kind == "json_schema" and described is not None:
        return schema(described, "schema"), hints
    if kind != "text":
        raise wanted.wrong("format", "text.format is text, json_object or json_schema.")
    return None, hints


# -- the conversation --------------------------------------------------------------------------------------


def _conversation(fields: Fields) -> Iterator[Message]:
    """The messages: one of the system, then turns, each with what was thought and called in it."""
    opening = [text] if (text := fields.text("instructions")) else []
    given = fields.data.get("input")
    items = [Fields({"role": "user", "content": given})] if isinstance(given, str) else None
    names: dict[str, str] = {}
    turn: list[Part] = []  # of the assistant: reasoning, text and calls come as items of their own
    began = False
    for item in items or fields.objects("input"):
        kind, role = item.text("type") or "message", item.text("role")
        if kind == "message" and role in ("system", "developer") and not began and not turn:
            opening.append("".join(part.text for part in _content(item) if isinstance(part, TextPart)))
            continue
        if not began:
            began = True
            if opening:
                yield Message.system("\n\n".join(opening))
        spoken = list(_spoken(item, kind, names))
        if spoken:
            turn += spoken
            continue
        if turn:
            yield Message.assistant(turn)
            turn = []
        yield _other(item, kind, names)
    if turn:
        yield Message.assistant(turn)
    elif not began:
        raise fields.wrong("input", "input must hold at least one message.", "missing_value")


def _spoken(item: Fields, kind: str, names: dict[str, str]) -> Iterator[Part]:
    """What the assistant said, thought or called."""
    if kind == "message" and item.text("role") == Role.ASSISTANT:
        yield from _content(item)
    elif kind == "reasoning":
        texts = [part.text("text") or "" for name in ("content", "summary") for part in item.objects(name)]
        yield ReasoningPart("".join(texts))
    elif kind == "function_call":
        identity, name = item.need("call_id"), item.need("name")
        names[identity] = name
        yield ToolCallPart(identity, name, arguments(item.text("arguments") or "{}"))


def _other(item: Fields, kind: str, names: dict[str, str]) -> Message:
    """What was said or answered to the assistant."""
    if kind == "function_call_output":
        identity = item.need("call_id")
        output = item.data.get("output")
        parts = [TextPart(output)] if isinstance(output, str) else list(_content(item, "output"))
        text = "".join(part.text for part in parts if isinstance(part, TextPart))
        pictures = [part for part in parts if not isinstance(part, TextPart)]
        return Message.tool(ToolResultPart(identity, names.get(identity, identity), text, images=pictures))
    if kind != "message":
        raise item.wrong("type", f"An item of type {kind!r} is not read here.", "unsupported_value")
    role = item.need("role")
    if role in ("system", "developer"):
        return Message.system(list(_content(item)))
    if role != "user":
        raise item.wrong("role", f"{role!r} is no role here: system, developer, user, assistant.")
    return Message.user(list(_content(item)))


def _content(item: Fields, name: str = "content") -> Iterator[Part]:
    content = item.data.get(name)
    if isinstance(content, str):
        yield TextPart(content)
        return
    if content is None:
        raise item.wrong(name, f"{item.at(name)} is missing.", "missing_value")
    for part in item.objects(name):
        kind = part.need("type")
        if kind in ("input_text", "output_text", "text"):
            yield TextPart(part.need("text"))
        elif kind == "refusal":
            yield TextPart(part.need("refusal"))
        elif kind == "input_image":
            yield image(part.need("image_url"), part.at("image_url"))
        elif kind == "input_audio" and (recording := part.object("input_audio")):
            yield sound(recording.need("data"), recording.at("data"))
        else:
            raise part.wrong("type", f"A part of type {kind!r} is not read here.", "unsupported_value")


DIALECT = Dialect(TABLE, read)

__all__ = ["DIALECT", "TABLE", "read"]
