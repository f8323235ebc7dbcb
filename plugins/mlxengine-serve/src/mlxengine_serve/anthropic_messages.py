"""Anthropic's messages: a body to a request, events to an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import evolve
from mlxengine import (
    AsyncTextHandle,
    Event,
    Finished,
    ImagePart,
    Message,
    Prepared,
    PrepareRequest,
    ReasoningPart,
    TextPart,
    TextReply,
    TextRequest,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from mlxengine.readonly import thaw
from mlxengine.text.messages import Part, Role

from ._answers import Asked, Dialect
from ._asking import decoded, parameters, schema
from ._fields import Field, Fields, Table, callers, honoured, refused
from ._message_stream import MessageStream, stop_of, usage_of

BILLING = "x-anthropic-billing-header:"
_SAMPLING = {
    "max_tokens": "max_tokens",
    "stop_sequences": "stop",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
}
_CONVERSATION = (
    honoured("messages", "Consecutive turns of one role are joined; a system turn is text of a user's turn."),
    honoured("model", "A served model's name or alias."),
    callers("cache_control", "Prompts that begin alike share what was computed, whoever asks."),
    honoured("output_config", "format, a JSON schema; effort is the caller's, and named in the header."),
    callers("speed", "It is as fast as it is."),
    honoured("system", "The line of Claude Code's that says who pays is left out: it changes each time."),
    honoured("thinking", "enabled with its budget, disabled; adaptive leaves it to the model."),
    honoured("tool_choice", "auto, any, tool, none; and disable_parallel_tool_use."),
    honoured("tools", "Tools with an input_schema. Those that Anthropic's servers run are refused."),
    callers("user_profile_id", "Nothing is sent anywhere."),
    callers("workspace_id", "Nothing is sent anywhere."),
)
_BEYOND: tuple[Field, ...] = (
    callers("context_management", "Nothing is taken out of a conversation."),
    callers("betas", "What they turn on is named on its own."),
    refused("mcp_servers", "Give the model the tools themselves.", []),
)

TABLE = Table(
    "Anthropic messages",
    "/v1/messages",
    (
        honoured("max_tokens", "It has to be there, as it has to there."),
        *_CONVERSATION,
        refused("container", "No code runs here."),
        callers("diagnostics", "usage says what was read from the cache."),
        callers("inference_geo", "It runs where the server runs."),
        callers("metadata", "Nothing is kept."),
        callers("service_tier", "A key has its priority."),
        honoured("stop_sequences"),
        honoured("stream"),
    ),
    (
        honoured("temperature", "Left out, it is the model's own default, not 1."),
        honoured("top_p"),
        honoured("top_k", "0 or -1: all tokens."),
        *_BEYOND,
    ),
)
COUNT_TABLE = Table(
    "Anthropic count_tokens", "/v1/messages/count_tokens", _CONVERSATION, (*_BEYOND, honoured("max_tokens"))
)


def read(body: dict[str, Any], request_id: str) -> Asked:
    """A body as what the engine is asked.

    Raises:
        Refusal: 400, with the field that is wrong.
    """
    unknown = TABLE.check(body)
    fields = Fields(body)
    if not fields.has("max_tokens"):
        raise fields.wrong("max_tokens", "max_tokens is missing.", "missing_value")
    request = _request(fields)
    model = fields.text("model")
    head = {"id": f"msg_{request_id[4:]}", "model": model or ""}
    stops = request.params.stop
    return Asked(
        model=model,
        requests=(request,),
        handle=AsyncTextHandle,
        gives="text",
        whole=lambda events: _whole(events, head, stops),
        writer=MessageStream(head, stops) if fields.flag("stream") else None,
        unknown=[*unknown, *_hints(fields)],
    )


def read_count(body: dict[str, Any], request_id: str) -> Asked:  # noqa: ARG001 - the answer has no id
    """A body of count_tokens as what the engine is asked.

    Raises:
        Refusal: 400, with the field that is wrong.
    """
    unknown = COUNT_TABLE.check(body)
    fields = Fields(body)
    request = _request(fields)
    return Asked(
        model=fields.text("model"),
        requests=(PrepareRequest(request=request),),
        handle=AsyncTextHandle,
        gives="text",
        whole=_count,
        unknown=[*unknown, *_hints(fields)],
    )


def _count(events: list[Event]) -> dict[str, int]:
    return {"input_tokens": next(len(event.token_ids) for event in events if isinstance(event, Prepared))}


def _hints(fields: Fields) -> list[str]:
    config = fields.object("output_config")
    return ["output_config.effort"] if config is not None and config.has("effort") else []


def _request(fields: Fields) -> TextRequest:
    messages = tuple(_conversation(fields))
    tools, choice, parallel = _tools(fields)
    thinking, budget = _thinking(fields)
    config = fields.object("output_config")
    format_ = None if config is None else config.object("format")
    grammar = None
    if format_ is not None:
        if format_.need("type") != "json_schema" or not format_.has("schema"):
            raise format_.wrong("type", "A format is a json_schema with its schema.")
        grammar = schema(format_, "schema")
    fields.texts("stop_sequences")  # our own `stop` may be a single text
    params = parameters(fields, _SAMPLING, thinking=thinking, thinking_budget=budget, grammar=grammar)
    return TextRequest(
        messages=messages,
        params=params,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        continue_final_message=messages[-1].role is Role.ASSISTANT,
    )


def _thinking(fields: Fields) -> tuple[bool | None, int | None]:
    wanted = fields.object("thinking")
    if wanted is None:
        return None, None
    kind = wanted.need("type")
    if kind == "enabled":
        return True, parameters(wanted, {"budget_tokens": "thinking_budget"}).thinking_budget
    if kind == "disabled":
        return False, None
    if kind == "adaptive":
        return None, None
    raise wanted.wrong("type", f"thinking is enabled, disabled or adaptive, found {kind!r}.")


def _tools(fields: Fields) -> tuple[tuple[Any, ...], ToolChoice | str, bool | None]:
    tools = []
    for tool in fields.objects("tools"):
        if tool.text("type") not in (None, "custom"):
            raise tool.wrong(
                "type", "Only tools with an input_schema can be called.", "unsupported_parameter"
            )
        described = tool.object("input_schema")
        if described is None:
            raise tool.wrong("input_schema", f"{tool.at('input_schema')} is missing.", "missing_value")
        function: dict[str, Any] = {"name": tool.need("name"), "parameters": described.data}
        if (text := tool.text("description")) is not None:
            function["description"] = text
        if tool.flag("strict"):
            function["strict"] = True
        tools.append({"type": "function", "function": function})
    wanted = fields.object("tool_choice")
    if wanted is None:
        return tuple(tools), "auto", None
    parallel = False if wanted.flag("disable_parallel_tool_use") else None
    kind = wanted.need("type")
    if kind == "tool":
        return tuple(tools), ToolChoice(wanted.need("name")), parallel
    words = {"auto": "auto", "any": "required", "none": "none"}
    if kind not in words:
        raise wanted.wrong("type", f"tool_choice is auto, any, tool or none, found {kind!r}.")
    return tuple(tools), words[kind], parallel


# -- messages ---------------------------------------------------------------------------------------------


def _conversation(fields: Fields) -> Iterator[Message]:
    """The messages, the system's first; neighbours of one role joined."""
    system = "\n\n".join(text for text in _system(fields) if text)
    turns: list[list[Message]] = [[Message.system(system)]] if system else []
    names: dict[str, str] = {}
    said = False
    for item in fields.objects("messages"):
        said = True
        for message in _turn(item, names):
            if turns and message.role is turns[-1][0].role and message.role is not Role.TOOL:
                turns[-1].append(message)
            else:
                turns.append([message])
    if not said or not turns:
        raise fields.wrong("messages", "messages must hold at least one.", "missing_value")
    for first, *others in turns:
        more = (part for message in others for part in message.parts)
        yield evolve(first, parts=(*first.parts, *more)) if others else first


def _system(fields: Fields) -> Iterator[str]:
    system = fields.data.get("system")
    if isinstance(system, str):
        texts = [system]
    else:
        texts = [block.need("text") for block in fields.objects("system")]
    for text in texts:
        lines = text.split("\n")
        yield "\n".join(line for line in lines if not line.startswith(BILLING))


def _turn(item: Fields, names: dict[str, str]) -> Iterator[Message]:
    role = item.need("role")
    if role == "assistant":
        yield Message.assistant(list(_assistant(item, names)))
    elif role in ("user", "system"):
        parts: list[Part] = []
        for part in _user(item, names):
            if isinstance(part, ToolResultPart):
                yield Message.tool(part)
            else:
                parts.append(part)
        if parts:
            yield Message.user(parts)
    else:
        raise item.wrong("role", f"{role!r} is no role here: user, assistant, system.")


def _blocks(item: Fields) -> Iterator[Fields]:
    content = item.data.get("content")
    if isinstance(content, str):
        yield Fields({"type": "text", "text": content}, where=item.at("content"))
        return
    if content is None:
        raise item.wrong("content", f"{item.at('content')} is missing.", "missing_value")
    yield from item.objects("content")


def _user(item: Fields, names: Mapping[str, str]) -> Iterator[Part]:
    for block in _blocks(item):
        kind = block.need("type")
        if kind == "text":
            yield TextPart(block.need("text"))
        elif kind == "image":
            yield _image(block)
        elif kind == "tool_result":
            yield _result(block, names)
        elif kind == "document":
            yield TextPart(_document(block))
        else:
            raise block.wrong("type", f"A block of type {kind!r} is not read here.", "unsupported_value")


def _image(block: Fields) -> ImagePart:
    source = block.object("source")
    if source is None or source.need("type") != "base64":
        raise block.wrong("source", "A picture comes in base64; nothing is fetched.", "unsupported_url")
    return ImagePart(decoded(source.need("data"), source.at("data")))


def _document(block: Fields) -> str:
    source = block.object("source")
    if source is None or source.need("type") != "text":
        raise block.wrong("source", "Only documents of plain text are read.", "unsupported_value")
    title = block.text("title")
    return f"{title}\n\n{source.need('data')}" if title else source.need("data")


def _result(block: Fields, names: Mapping[str, str]) -> ToolResultPart:
    identity = block.need("tool_use_id")
    texts, images = [], []
    if block.has("content"):
        for part in _blocks(block):
            if part.need("type") == "image":
                images.append(_image(part))
            else:
                texts.append(part.need("text"))
    return ToolResultPart(
        identity, names.get(identity, identity), "\n".join(texts), bool(block.flag("is_error")), images
    )


def _assistant(item: Fields, names: dict[str, str]) -> Iterator[Part]:
    for block in _blocks(item):
        kind = block.need("type")
        if kind == "text":
            yield TextPart(block.need("text"))
        elif kind == "thinking":
            yield ReasoningPart(block.need("thinking"))
        elif kind == "tool_use":
            called = block.object("input")
            name, identity = block.need("name"), block.need("id")
            names[identity] = name
            yield ToolCallPart(identity, name, {} if called is None else called.data)
        elif kind != "redacted_thinking":  # nobody can read that
            raise block.wrong("type", f"A block of type {kind!r} is not read here.", "unsupported_value")


# -- the whole answer -------------------------------------------------------------------------------------


def _whole(events: list[Event], head: Mapping[str, Any], stops: tuple[str, ...]) -> dict[str, Any]:
    reply = TextReply.of(events)
    content: list[dict[str, Any]] = []
    if reply.reasoning:
        content.append({"type": "thinking", "thinking": reply.reasoning, "signature": ""})
    if reply.text or not reply.tool_calls:
        content.append({"type": "text", "text": reply.text, "citations": None})
    for call in reply.tool_calls:
        given = {} if call.arguments is None else thaw(call.arguments)
        content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": given})
    last = events[-1]
    assert isinstance(last, Finished)
    return {
        "id": head["id"],
        "type": "message",
        "role": "assistant",
        "model": head["model"],
        "content": content,
        **stop_of(last, stops),
        "usage": usage_of(last.usage),
    }


DIALECT = Dialect(TABLE, read)
COUNT = Dialect(COUNT_TABLE, read_count)

__all__ = ["COUNT", "COUNT_TABLE", "DIALECT", "TABLE", "read", "read_count"]
