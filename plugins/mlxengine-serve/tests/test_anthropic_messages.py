"""Messages: what each field asks of the engine, and bytes that Anthropic's own models take."""

from __future__ import annotations

import base64
import json
import typing
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from anthropic.types.message_count_tokens_params import MessageCountTokensParams
from anthropic.types.message_create_params import MessageCreateParamsBase
from mlxengine import (
    Event,
    Finished,
    FinishReason,
    Grammar,
    ImagePart,
    Prepared,
    PrepareRequest,
    ReasoningDelta,
    ReasoningPart,
    Request,
    TextDelta,
    TextPart,
    TokenUsage,
    ToolCall,
    ToolCallDelta,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
    errors,
)
from mlxengine_serve import anthropic_messages
from pydantic import TypeAdapter
from serve_harness import Served, planned, said

PATH = "/v1/messages"
HI = [{"role": "user", "content": "hi"}]
BODY = {"model": "scripted", "max_tokens": 64, "messages": HI}
CLOCK = {"name": "clock", "description": "The time.", "input_schema": {"type": "object"}}
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png",
                                       "data": base64.b64encode(b"\x89PNG").decode()}}  # fmt: skip
USAGE = TokenUsage(prompt_tokens=9, completion_tokens=4, cached_tokens=5)
EVENTS = TypeAdapter(RawMessageStreamEvent)


def asked(served: Served, **fields: Any) -> Any:
    answer = served.post(PATH, {**BODY, **fields})
    assert answer.status_code == 200, answer.text
    return served.plugin.last  # type: ignore[union-attr]


def stream(served: Served, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream, each taken by their model; its name is that of its frame."""
    lines = [line for line in served.lines(PATH, {**BODY, **fields, "stream": True}) if line]
    found = []
    for name, data in zip(lines[::2], lines[1::2], strict=True):
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        if event["type"] not in ("ping", "error"):
            EVENTS.validate_json(data.removeprefix("data: "), strict=True)
        found.append(event)
    return found


# -- what fields ask ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "name", "ours"),
    [
        ("max_tokens", 7, "max_tokens", 7),
        ("temperature", 0, "temperature", 0),
        ("top_p", 0.5, "top_p", 0.5),
        ("top_k", 3, "top_k", 3),
        ("stop_sequences", ["a", "b"], "stop", ("a", "b")),
        ("thinking", {"type": "enabled", "budget_tokens": 2048}, "thinking_budget", 2048),
        ("thinking", {"type": "enabled", "budget_tokens": 2048}, "thinking", True),
        ("thinking", {"type": "disabled"}, "thinking", False),
        ("thinking", {"type": "adaptive"}, "thinking", None),
        ("output_config", {"format": {"type": "json_schema", "schema": {"type": "integer"}}},
         "grammar", Grammar.json({"type": "integer"})),
    ],
)  # fmt: skip
def test_a_field_of_sampling_reaches_the_engine(
    served: Served, field: str, value: Any, name: str, ours: Any
) -> None:
    assert getattr(asked(served, **{field: value}).params, name) == ours


@pytest.mark.parametrize(
    ("choice", "ours", "parallel"),
    [
        ({"type": "auto"}, "auto", None),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        ({"type": "none"}, "none", None),
        ({"type": "tool", "name": "clock"}, ToolChoice("clock"), None),
    ],
)
def test_tools_and_what_to_choose_of_them(
    served: Served, choice: dict[str, Any], ours: Any, parallel: bool | None
) -> None:
    request = asked(served, tools=[CLOCK, {**CLOCK, "name": "lamp", "strict": True}], tool_choice=choice)
    assert [tool["function"] for tool in request.tools] == [
        {"name": "clock", "parameters": {"type": "object"}, "description": "The time."},
        {"name": "lamp", "parameters": {"type": "object"}, "description": "The time.", "strict": True},
    ]
    assert (request.tool_choice, request.parallel_tool_calls) == (ours, parallel)


def test_a_conversation_becomes_messages_block_by_block(served: Served) -> None:
    request = asked(
        served,
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=1a2b3;"},
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
        ],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "See?"}, PICTURE]},
            {"role": "system", "content": "Now in earnest."},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""},
                {"type": "redacted_thinking", "data": "zzz"},
                {"type": "tool_use", "id": "t1", "name": "clock", "input": {"zone": "utc"}},
                {"type": "tool_use", "id": "t2", "name": "lamp", "input": {}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "noon"},
                {"type": "tool_result", "tool_use_id": "t2", "is_error": True,
                 "content": [{"type": "text", "text": "dark"}, PICTURE]},
                {"type": "text", "text": "Well?"},
                {"type": "document", "title": "Notes",
                 "source": {"type": "text", "media_type": "text/plain", "data": "It rains."}},
            ]},
        ],
    )  # fmt: skip
    system, user, assistant, first, second, last = request.messages
    assert system.text == "Be brief.", "the line of who pays changes each time, and no prefix would be shared"
    assert user.parts == (TextPart("See?"), ImagePart(b"\x89PNG"), TextPart("Now in earnest."))
    assert assistant.parts == (
        ReasoningPart("Hm."), ToolCallPart("t1", "clock", {"zone": "utc"}), ToolCallPart("t2", "lamp", {}),
    )  # fmt: skip
    assert first.parts == (ToolResultPart("t1", "clock", "noon"),)
    assert second.parts == (ToolResultPart("t2", "lamp", "dark", True, (ImagePart(b"\x89PNG"),)),)
    assert last.parts == (TextPart("Well?"), TextPart("Notes\n\nIt rains."))
    assert request.continue_final_message is False


def test_a_last_turn_of_the_assistants_is_continued(served: Served) -> None:
    request = asked(served, messages=[*HI, {"role": "assistant", "content": "The answer is ("}])
    assert request.continue_final_message is True


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {
            "type": "url", "url": "http://127.0.0.1/a.png"}}]}]}, "messages[0].content[0].source"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {
            "type": "base64", "data": "/etc/passwd!"}}]}]}, "messages[0].content[0].source.data"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {
            "type": "base64", "data": ""}}]}]}, "messages[0].content[0].source"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"thinking": {"type": "deep"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": -1}}, "thinking.budget_tokens"),
        ({"stop_sequences": [1]}, "stop_sequences"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"model": "claude-9"}, "model"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_with_its_field(
    served: Served, fields: dict[str, Any], where: str
) -> None:
    answer = served.post(PATH, {**BODY, **fields})
    error = answer.json()
    assert error["type"] == "error"
    assert error["error"]["message"].startswith(f"{where}: ")
    kinds = {400: "invalid_request_error", 404: "not_found_error"}
    assert error["error"]["type"] == kinds[answer.status_code]
    assert error["request_id"] == answer.headers["request-id"]
    assert served.plugin.asked == []  # type: ignore[union-attr]


def test_a_wrong_value_is_told_by_the_dialects_own_name(served: Served) -> None:
    message = served.post(PATH, {**BODY, "stop_sequences": [""]}).json()["error"]["message"]
    assert message.startswith("stop_sequences: stop_sequences must hold")


def test_effort_and_unknown_fields_are_named_in_a_header(served: Served) -> None:
    answer = served.post(PATH, {**BODY, "output_config": {"effort": "high"}, "mystery": 1, "speed": "fast"})
    assert answer.headers["x-mlxengine-ignored"] == "mystery, output_config.effort"


# -- what comes back ----------------------------------------------------------------------------------------

SAID: tuple[Event, ...] = (
    ReasoningDelta(text="Let me"),
    ReasoningDelta(text=" see."),
    TextDelta(text="It is "),
    TextDelta(text="", token_ids=(1,)),
    TextDelta(text="😀."),
    ToolCallDelta(id="t1", name="clock"),
    ToolCallDelta(id="t1", name="clock", arguments='{"zone"'),
    ToolCallDelta(id="t1", name="clock", arguments=': "utc"}'),
    ToolCall(id="t1", name="clock", arguments={"zone": "utc"}),
    ToolCall(id="t2", name="lamp", arguments={"on": True}),
    Finished(reason=FinishReason.TOOL_CALLS, usage=USAGE),
)


def test_a_whole_message_is_what_anthropics_model_takes(served: Served) -> None:
    served.plugin.plan = planned(*SAID)  # type: ignore[union-attr]
    found = Message.model_validate_json(served.post(PATH, BODY).content, strict=True)
    assert [block.type for block in found.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert found.content[0].thinking == "Let me see."  # type: ignore[union-attr]
    assert found.content[1].text == "It is 😀."  # type: ignore[union-attr]
    assert [block.input for block in found.content[2:]] == [{"zone": "utc"}, {"on": True}]  # type: ignore[union-attr]
    assert found.stop_reason == "tool_use"
    assert (found.usage.input_tokens, found.usage.cache_read_input_tokens, found.usage.output_tokens) == (
        4,
        5,
        4,
    )


def test_every_event_is_what_anthropics_model_takes_and_blocks_follow_each_other(served: Served) -> None:
    served.plugin.plan = planned(*SAID)  # type: ignore[union-attr]
    events = stream(served)
    assert [event["type"].removeprefix("content_block_") for event in events] == [
        "message_start",
        "start", "delta", "delta", "stop",
        "start", "delta", "delta", "stop",
        "start", "delta", "delta", "stop",
        "start", "delta", "stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    assert [event["index"] for event in events if "index" in event] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 3
    pieces = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(item.get("thinking", "") for item in pieces) == "Let me see."
    assert "".join(item.get("text", "") for item in pieces) == "It is 😀."
    calls = [item["partial_json"] for item in pieces if item["type"] == "input_json_delta"]
    assert calls == ['{"zone"', ': "utc"}', '{"on": true}']
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 4


@pytest.mark.parametrize(
    ("reason", "stop", "theirs"),
    [("stop", None, "end_turn"), ("stop", "END", "stop_sequence"), ("stop", 7, "end_turn"),
     ("length", None, "max_tokens"), ("context", None, "model_context_window_exceeded"),
     ("tool_calls", None, "tool_use")],
)  # fmt: skip
def test_every_reason_to_end_is_one_of_theirs(served: Served, reason: str, stop: Any, theirs: str) -> None:
    served.plugin.plan = planned(TextDelta(text="x"), Finished(reason=FinishReason(reason), stop=stop))  # type: ignore[union-attr]
    answer = served.post(PATH, {**BODY, "stop_sequences": ["END"]}).json()
    assert answer["stop_reason"] == theirs
    assert answer["stop_sequence"] == ("END" if theirs == "stop_sequence" else None)


def test_an_empty_answer_is_a_message_still(served: Served) -> None:
    served.plugin.plan = planned(Finished(usage=USAGE))  # type: ignore[union-attr]
    assert [event["type"] for event in stream(served)] == ["message_start", "message_delta", "message_stop"]
    Message.model_validate_json(served.post(PATH, BODY).content, strict=True)


def test_a_long_prefill_is_kept_alive_by_pings(served: Served) -> None:
    import time

    def slow(_request: Request) -> Iterator[Event | None]:
        until = time.monotonic() + 0.8
        while time.monotonic() < until:
            time.sleep(0.005)
            yield None
        yield TextDelta(text="x")
        yield Finished()

    served.plugin.plan = slow  # type: ignore[union-attr]
    kinds = [event["type"] for event in stream(served)]
    assert kinds[0] == "message_start"
    assert "ping" in kinds


def test_an_error_in_the_middle_is_their_event(served: Served) -> None:
    def broken(_request: Request) -> Iterator[Event]:
        yield TextDelta(text="Well")
        raise errors.InsufficientMemoryError("full")

    served.plugin.plan = broken  # type: ignore[union-attr]
    *_, last = stream(served)
    assert (last["type"], last["error"]["type"]) == ("error", "overloaded_error")
    client = anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0)
    with pytest.raises(anthropic.APIStatusError), client.messages.stream(**BODY) as streamed:  # type: ignore[arg-type]
        streamed.get_final_message()


# -- count_tokens -------------------------------------------------------------------------------------------


def test_tokens_are_counted_by_the_model_itself_tools_included(served: Served) -> None:
    def count(request: Request) -> Iterator[Event]:
        assert isinstance(request, PrepareRequest)
        size = len(request.request.messages) + 10 * len(request.request.tools)
        yield Prepared(token_ids=tuple(range(size)), text="")
        yield Finished()

    served.plugin.plan = count  # type: ignore[union-attr]
    body = {"model": "scripted", "messages": HI, "tools": [CLOCK], "system": "x"}
    answer = served.post(f"{PATH}/count_tokens", body)
    assert MessageTokensCount.model_validate_json(answer.content, strict=True).input_tokens == 12


# -- anthropic's client -------------------------------------------------------------------------------------


def test_anthropics_client_has_its_answers_and_its_errors(served: Served) -> None:
    client = anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0)
    assert client.messages.create(**BODY).content[0].text == "Hello world"  # type: ignore[arg-type,union-attr]
    with client.messages.stream(**BODY) as streamed:  # type: ignore[arg-type]
        assert list(streamed.text_stream) == ["Hello", " world"]
    served.plugin.plan = planned(*SAID)  # type: ignore[union-attr]
    with client.messages.stream(**BODY, tools=[CLOCK]) as streamed:  # type: ignore[arg-type]
        final = streamed.get_final_message()
    assert [block.input for block in final.content if block.type == "tool_use"] == [
        {"zone": "utc"}, {"on": True},
    ]  # fmt: skip
    assert final.usage.output_tokens == 4
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**BODY, "model": "other"})  # type: ignore[arg-type]
    assert [model.id for model in client.models.list()] == ["scripted"]


def test_the_tables_have_every_field_of_anthropics_and_no_other() -> None:
    theirs = set(typing.get_type_hints(MessageCreateParamsBase)) | {"stream"}
    assert {item.name for item in anthropic_messages.TABLE.fields} == theirs
    assert not {item.name for item in anthropic_messages.TABLE.extra} & theirs
    counted = set(typing.get_type_hints(MessageCountTokensParams))
    assert {item.name for item in anthropic_messages.COUNT_TABLE.fields} == counted


def test_what_is_said_is_that_of_every_dialect(served: Served) -> None:
    served.plugin.plan = said("a", "b")  # type: ignore[union-attr]
    theirs = served.post(PATH, BODY).json()["content"][0]["text"]
    chat = served.post("/v1/chat/completions", {"messages": HI}).json()["choices"][0]["message"]["content"]
    assert theirs == chat == "ab"
