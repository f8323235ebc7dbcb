"""OpenAI's chat completions: a body to a request, events to an answer or its chunks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from mlxengine import (
    AsyncTextHandle,
    Event,
    Message,
    ReasoningPart,
    TextPart,
    TextReply,
    TextRequest,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from mlxengine.text.messages import Part

from ._answers import Asked, Dialect
from ._asking import BEYOND, SAMPLING, TIERS, arguments, choice, image, parameters, schema, seed_of, sound
from ._chat_stream import ChatStream, finish_reason, logprobs_of, usage_of, written
from ._fields import Fields, Table, callers, honoured, refused

_DIRECT = {
    **SAMPLING,
    "max_completion_tokens": "max_tokens",  # behind max_tokens: it goes before that
    "top_logprobs": "top_logprobs",
    "thinking_budget": "thinking_budget",
}

TABLE = Table(
    "OpenAI chat completions",
    "/v1/chat/completions",
    (
        honoured("messages", "Leading system and developer messages become one."),
        honoured("model", "A served model's name or alias; left out, it is the first one."),
        refused("audio", "Models of this kind write text only."),
        honoured("frequency_penalty"),
        refused("function_call", "Say tool_choice.", "auto", "none"),
        refused("functions", "Say tools.", []),
        honoured("logit_bias", "Token ids of the model's own tokenizer."),
        honoured("logprobs"),
        honoured("max_completion_tokens", "Reasoning included; it goes before max_tokens."),
        honoured("max_tokens"),
        callers("metadata", "Nothing is kept."),
        refused("modalities", 'Only ["text"] is made.', ["text"]),
        refused("moderation", "Nothing is moderated."),
        honoured("n"),
        honoured("parallel_tool_calls"),
        callers("prediction", "A hint for speed alone: answers are the same."),
        honoured("presence_penalty"),
        callers("prompt_cache_key", "Prompts that begin alike share what was computed, whoever asks."),
        callers("prompt_cache_options", "As prompt_cache_key."),
        callers("prompt_cache_retention", "The engine's flags say how much is kept."),
        honoured("reasoning_effort", "none: no reasoning; else a word of the model's template."),
        honoured("response_format", "text, json_object and json_schema, which is always strict."),
        callers("safety_identifier", "Nothing is sent anywhere."),
        honoured("seed"),
        honoured("service_tier", "flex waits behind others; priority goes no further than the key's own."),
        honoured("stop"),
        refused("store", "Nothing is kept.", False),
        honoured("stream"),
        honoured("stream_options", "include_usage; what pads a stream is the caller's."),
        honoured("temperature", "null is the model's own default, not 1."),
        honoured("tool_choice", "auto, none, required, a function, or allowed tools."),
        honoured(
            "tools", "Functions; strict ones are called by their schema only. Custom tools are refused."
        ),
        honoured("top_logprobs"),
        honoured("top_p"),
        callers("user", "Nothing is sent anywhere."),
        refused("verbosity", "Say it in the messages.", "medium"),
        refused("web_search_options", "Give the model a tool that searches."),
    ),
    (
        *BEYOND,
        honoured("thinking_budget", "Most tokens of reasoning."),
        honoured("chat_template_kwargs", "Variables of the chat template, such as enable_thinking."),
        honoured("add_generation_prompt"),
        honoured("continue_final_message"),
    ),
)


def read(body: dict[str, Any], request_id: str) -> Asked:
    """A body as what the engine is asked.

    Raises:
        Refusal: 400, with the field that is wrong.
    """
    unknown = TABLE.check(body)
    fields = Fields(body)
    request = request_of(fields)
    streamed = fields.flag("stream") or False
    include = fields.include_usage(streamed)
    model = fields.text("model")
    head = {"id": f"chatcmpl-{request_id[4:]}", "created": int(time.time()), "model": model or ""}
    tier = fields.text("service_tier")
    return Asked(
        model=model,
        requests=(request,),
        handle=AsyncTextHandle,
        gives="text",
        whole=lambda events: whole(events, head, request.params.logprobs),
        writer=ChatStream(head, request.params.n, include_usage=include) if streamed else None,
        unknown=unknown,
        priority=TIERS.get(tier or "", 0),
    )


def request_of(fields: Fields) -> TextRequest:
    """The request that a body's fields make."""
    tools, mode = tools_of(fields)
    effort = fields.text("reasoning_effort")
    bias = fields.object("logit_bias")
    params = parameters(
        fields,
        _DIRECT,
        seed=seed_of(fields),
        logprobs=fields.flag("logprobs"),
        grammar=_format(fields),
        thinking=False if effort == "none" else None,
        reasoning_effort=None if effort == "none" else effort,
        logit_bias=None if bias is None else bias.token_numbers(),
    )
    if params.top_logprobs and not params.logprobs:
        raise fields.wrong("top_logprobs", "top_logprobs goes with logprobs: true.")
    kwargs = fields.object("chat_template_kwargs")
    prompted, continued = fields.flag("add_generation_prompt"), fields.flag("continue_final_message")
    return TextRequest(
        messages=messages_of(fields),
        params=params,
        tools=tools,
        tool_choice=mode,
        parallel_tool_calls=fields.flag("parallel_tool_calls"),
        chat_template_kwargs={} if kwargs is None else kwargs.data,
        add_generation_prompt=True if prompted is None else prompted,
        continue_final_message=bool(continued),
    )


def _format(fields: Fields) -> Any:
    wanted = fields.object("response_format")
    if wanted is None:
        return None
    kind = wanted.need("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return schema(Fields({}), "schema")
    described = wanted.object("json_schema")
    if kind != "json_schema" or described is None:
        raise fields.wrong("response_format", "response_format is text, json_object or json_schema.")
    return schema(described, "schema")


def tools_of(fields: Fields) -> tuple[tuple[Any, ...], ToolChoice | str]:
    """The functions of a body, and what it says of them."""
    tools: list[Any] = []
    called: list[str] = []
    for tool in fields.objects("tools"):
        if tool.need("type") != "function":
            raise tool.wrong("type", "Only tools of type function can be called.", "unsupported_parameter")
        function = tool.object("function")
        if function is None:
            raise tool.wrong("function", f"{tool.at('function')} is missing.", "missing_value")
        called.append(function.need("name"))
        tools.append({"type": "function", "function": function.data})
    wanted = fields.data.get("tool_choice")
    if wanted is None:
        return tuple(tools), "auto"
    if not isinstance(wanted, dict):
        return tuple(tools), choice(fields, wanted, None)
    chosen = Fields(wanted, where="tool_choice")
    allowed = chosen.object("allowed_tools")
    if chosen.data.get("type") == "allowed_tools" and allowed is not None:
        names = [
            function.need("name")
            for tool in allowed.objects("tools")
            if (function := tool.object("function"))
        ]
        left = tuple(tool for tool, name in zip(tools, called, strict=True) if name in names)
        return left, choice(fields, allowed.need("mode"), None)
    function = chosen.object("function")
    named = None if function is None else function.need("name")
    if chosen.data.get("type") != "function":
        named = None
    return tuple(tools), choice(fields, wanted, named)


# -- messages ---------------------------------------------------------------------------------------------


def messages_of(fields: Fields) -> tuple[Message, ...]:
    """The conversation.

    Raises:
        Refusal: 400, with the message and its field.
    """
    found: list[Message] = []
    opening: list[str] = []
    names: dict[str, str] = {}
    for item in fields.objects("messages"):
        role = item.need("role")
        if role in ("system", "developer"):
            text = "".join(_texts(item))
            if found:  # a template may know no such turn; that is for the plugin to say
                found.append(Message.system(text))
            else:
                opening.append(text)
        elif role == "user":
            found.append(Message.user(list(_parts(item))))
        elif role == "assistant":
            found.append(Message.assistant(list(_assistant(item, names))))
        elif role == "tool":
            found.append(Message.tool(_result(item, names)))
        else:
            raise item.wrong("role", f"{role!r} is no role here: system, developer, user, assistant, tool.")
    if not found and not opening:
        raise fields.wrong("messages", "messages must hold at least one.", "missing_value")
    start = (Message.system("\n\n".join(opening)),) if opening else ()
    return (*start, *found)


def _texts(item: Fields) -> Iterator[str]:
    """The texts of a content that may hold nothing else."""
    content = item.data.get("content")
    if content is None or isinstance(content, str):
        yield content or ""
        return
    for part in item.objects("content"):
        if part.data.get("type") != "text":
            raise part.wrong("type", "Only text may stand here.")
        yield part.need("text")


def _parts(item: Fields) -> Iterator[Part]:
    content = item.data.get("content")
    if isinstance(content, str):
        yield TextPart(content)
        return
    if content is None:
        raise item.wrong("content", f"{item.at('content')} is missing.", "missing_value")
    for part in item.objects("content"):
        kind = part.need("type")
        if kind == "text":
            yield TextPart(part.need("text"))
        elif kind == "image_url" and (picture := part.object("image_url")):
            yield image(picture.need("url"), picture.at("url"))
        elif kind == "input_audio" and (recording := part.object("input_audio")):
            yield sound(recording.need("data"), recording.at("data"))
        else:
            raise part.wrong(
                "type", f"A part is text, image_url or input_audio, found {kind!r}.", "unsupported_value"
            )


def _assistant(item: Fields, names: dict[str, str]) -> Iterator[Part]:
    thought = item.text("reasoning_content") or item.text("reasoning")
    if thought:
        yield ReasoningPart(thought)
    calls = list(item.objects("tool_calls"))
    text = "".join(_said(item))
    if text or not calls:
        yield TextPart(text)
    for call in calls:
        function = call.object("function")
        if function is None:
            raise call.wrong("function", f"{call.at('function')} is missing.", "missing_value")
        name, identity = function.need("name"), call.need("id")
        names[identity] = name
        yield ToolCallPart(identity, name, arguments(function.text("arguments") or "{}"))


def _said(item: Fields) -> Iterator[str]:
    content = item.data.get("content")
    if isinstance(content, list):
        for part in item.objects("content"):
            yield part.text("text") or part.text("refusal") or ""
        return
    yield item.text("content") or item.text("refusal") or ""


def _result(item: Fields, names: Mapping[str, str]) -> ToolResultPart:
    identity = item.need("tool_call_id")
    name = names.get(identity) or item.text("name") or identity
    texts, images = [], []
    content = item.data.get("content")
    if isinstance(content, list):
        for part in item.objects("content"):
            picture = part.object("image_url") if part.data.get("type") == "image_url" else None
            if picture is not None:
                images.append(image(picture.need("url"), picture.at("url")))
            else:
                texts.append(part.need("text"))
    else:
        texts.append(item.text("content") or "")
    return ToolResultPart(identity, name, "".join(texts), images=images)


# -- the whole answer -------------------------------------------------------------------------------------


def whole(events: list[Event], head: Mapping[str, Any], logprobs: bool) -> dict[str, Any]:
    """A ``chat.completion`` of all events."""
    reply = TextReply.of(events)
    return {
        "id": head["id"],
        "object": "chat.completion",
        "created": head["created"],
        "model": head["model"],
        "choices": [_choice(number, item, logprobs) for number, item in enumerate(reply.choices or (reply,))],
        "usage": usage_of(reply.usage),
    }


def _choice(number: int, reply: TextReply, logprobs: bool) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": reply.text if reply.text or not reply.tool_calls else None,
        "refusal": None,
    }
    if reply.reasoning:
        message |= {"reasoning_content": reply.reasoning, "reasoning": reply.reasoning}
    if reply.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": written(call)}}
            for call in reply.tool_calls
        ]
    return {
        "index": number,
        "message": message,
        "logprobs": logprobs_of(reply.logprobs) if logprobs else None,
        "finish_reason": finish_reason(reply.finish_reason),
    }


DIALECT = Dialect(TABLE, read)

__all__ = ["DIALECT", "TABLE", "messages_of", "read", "request_of", "tools_of", "whole"]
