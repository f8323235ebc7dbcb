"""Responses: what each field asks of the engine, and bytes that OpenAI's own models take."""

from __future__ import annotations

import base64
import json
import time
import typing
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from mlxengine import (
    AudioPart,
    Event,
    Finished,
    FinishReason,
    Grammar,
    ImagePart,
    ReasoningDelta,
    ReasoningPart,
    Request,
    TextDelta,
    TextPart,
    TokenLogprob,
    TokenUsage,
    ToolCall,
    ToolCallDelta,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
    TopLogprob,
    errors,
)
from mlxengine_serve import openai_responses
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from pydantic import TypeAdapter
from serve_harness import Served, planned

PATH = "/v1/responses"
BODY = {"model": "scripted", "input": "hi"}
CLOCK = {"type": "function", "name": "clock", "parameters": {"type": "object"}, "strict": True}
LAMP = {"type": "function", "name": "lamp", "parameters": {"type": "object"}, "strict": False}
PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()
USAGE = TokenUsage(prompt_tokens=5, completion_tokens=3, cached_tokens=2, reasoning_tokens=1)
EVENTS = TypeAdapter(ResponseStreamEvent)


def asked(served: Served, **fields: Any) -> Any:
    answer = served.post(PATH, {**BODY, **fields})
    assert answer.status_code == 200, answer.text
    return served.plugin.last  # type: ignore[union-attr]


def stream(served: Served, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream, each taken by their model, numbered through, named as its frame says."""
    lines = [line for line in served.lines(PATH, {**BODY, **fields, "stream": True}) if line]
    found = []
    for number, (name, data) in enumerate(zip(lines[::2], lines[1::2], strict=True)):
        raw = data.removeprefix("data: ")
        event = json.loads(raw)
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        EVENTS.validate_json(raw, strict=True)
        found.append(event)
    return found


# -- what fields ask ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "name", "ours"),
    [
        ("max_output_tokens", 7, "max_tokens", 7),
        ("temperature", 0, "temperature", 0),
        ("top_p", 0.5, "top_p", 0.5),
        ("top_logprobs", 2, "top_logprobs", 2),
        ("include", ["message.output_text.logprobs"], "logprobs", True),
        ("include", ["reasoning.encrypted_content"], "logprobs", False),
        ("reasoning", {"effort": "none"}, "thinking", False),
        ("reasoning", {"effort": "low", "summary": "auto"}, "reasoning_effort", "low"),
        ("text", {"format": {"type": "json_object"}}, "grammar", Grammar.json()),
        ("text", {"format": {"type": "json_schema", "name": "x", "schema": {"type": "integer"}}},
         "grammar", Grammar.json({"type": "integer"})),
        ("text", {"format": {"type": "text"}, "verbosity": "low"}, "grammar", None),
        ("top_k", 3, "top_k", 3),
        ("seed", 4, "seed", 4),
        ("stop", ["a"], "stop", ("a",)),
    ],
)  # fmt: skip
def test_a_field_of_sampling_reaches_the_engine(
    served: Served, field: str, value: Any, name: str, ours: Any
) -> None:
    assert getattr(asked(served, **{field: value}).params, name) == ours


def test_what_is_left_out_or_null_is_the_models_own(served: Served) -> None:
    nothing = {name: None for name in ResponseCreateParamsBase.__annotations__ if name != "input"}
    assert asked(served, **{**nothing, "model": "scripted"}).params.given == frozenset()


@pytest.mark.parametrize(
    ("choice", "ours", "names"),
    [
        ("required", "required", ["clock", "lamp"]),
        ({"type": "function", "name": "lamp"}, ToolChoice("lamp"), ["clock", "lamp"]),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "lamp"}]},
         "auto", ["lamp"]),
    ],
)  # fmt: skip
def test_tools_and_what_to_choose_of_them(served: Served, choice: Any, ours: Any, names: list[str]) -> None:
    request = asked(served, tools=[CLOCK, LAMP], tool_choice=choice, parallel_tool_calls=False)
    assert [tool["function"]["name"] for tool in request.tools] == names
    assert (request.tool_choice, request.parallel_tool_calls) == (ours, False)


def test_tools_of_types_that_nobody_knows_are_left_out_and_named(served: Served) -> None:
    tools = [CLOCK, {"type": "web_search"}, {"type": "namespace", "name": "mcp", "tools": []}]
    body = {**BODY, "tools": tools, "reasoning": {"summary": "auto"}, "text": {"verbosity": "low"}}
    answer = served.post(PATH, body)
    assert answer.headers["x-mlxengine-ignored"] == (
        "tools[1] web_search, tools[2] namespace, reasoning.summary, text.verbosity"
    )
    assert [tool["name"] for tool in answer.json()["tools"]] == ["clock"]


def test_a_conversation_becomes_messages_item_by_item(served: Served) -> None:
    request = asked(
        served,
        instructions="Be brief.",
        input=[
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be kind."}]},
            {"role": "developer", "content": "Be true."},
            {"role": "user", "content": [
                {"type": "input_text", "text": "See?"},
                {"type": "input_image", "image_url": PNG, "detail": "auto"},
                {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
            ]},
            {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": None,
             "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "message", "role": "assistant", "id": "m", "status": "completed",
             "content": [{"type": "output_text", "text": "Wait.", "annotations": []}]},
            {"type": "function_call", "call_id": "c1", "name": "clock", "arguments": '{"zone": "utc"}'},
            {"type": "function_call", "call_id": "c2", "name": "lamp", "arguments": '{"on'},
            {"type": "function_call_output", "call_id": "c1", "output": "noon"},
            {"type": "function_call_output", "call_id": "c2", "output": [
                {"type": "input_text", "text": "dark"}, {"type": "input_image", "image_url": PNG}]},
            {"role": "user", "content": "Well?"},
        ],
    )  # fmt: skip
    system, user, assistant, first, second, last = request.messages
    assert system.text == "Be brief.\n\nBe kind.\n\nBe true."
    assert user.parts == (TextPart("See?"), ImagePart(b"\x89PNG"), AudioPart(b"RIFF"))
    assert assistant.parts == (
        ReasoningPart("Hm."), TextPart("Wait."),
        ToolCallPart("c1", "clock", {"zone": "utc"}), ToolCallPart("c2", "lamp", {}),
    )  # fmt: skip
    assert first.parts == (ToolResultPart("c1", "clock", "noon"),)
    assert second.parts == (ToolResultPart("c2", "lamp", "dark", images=(ImagePart(b"\x89PNG"),)),)
    assert last.text == "Well?"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "developer", "content": "x"}]}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://127.0.0.1/"}]}]},
         "input[0].content[0].image_url"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
         "input[0].content[0].image_url"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format"),
        ({"model": "gpt-9"}, "model"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_with_its_field(
    served: Served, fields: dict[str, Any], param: str
) -> None:
    answer = served.post(PATH, {**BODY, **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (404 if param == "model" else 400, param)
    assert served.plugin.asked == []  # type: ignore[union-attr]


# -- what comes back ----------------------------------------------------------------------------------------

ENTRY = TokenLogprob(
    token_id=1, text="It", logprob=-0.5, top=(TopLogprob(token_id=2, text="B", logprob=-1.5),)
)
SAID: tuple[Event, ...] = (
    ReasoningDelta(text="Let me"),
    ReasoningDelta(text=" see."),
    TextDelta(text="It", logprobs=(ENTRY,)),
    TextDelta(text="", token_ids=(1,)),
    TextDelta(text=" is 😀."),
    ToolCallDelta(id="c1", name="clock"),
    ToolCallDelta(id="c1", name="clock", arguments='{"zone"'),
    ToolCallDelta(id="c1", name="clock", arguments=': "utc"}'),
    ToolCall(id="c1", name="clock", arguments={"zone": "utc"}),
    ToolCall(id="c2", name="lamp", arguments={"on": True}),
    Finished(reason=FinishReason.TOOL_CALLS, usage=USAGE),
)


def test_a_whole_response_is_what_openais_model_takes(served: Served) -> None:
    served.plugin.plan = planned(*SAID)  # type: ignore[union-attr]
    body = {**BODY, "tools": [CLOCK, LAMP], "metadata": {"a": "b"}, "instructions": "x", "top_logprobs": 1}
    found = Response.model_validate_json(served.post(PATH, body).content, strict=True)
    assert [item.type for item in found.output] == ["reasoning", "message", "function_call", "function_call"]
    assert found.output_text == "It is 😀."
    assert (found.status, found.metadata, found.instructions) == ("completed", {"a": "b"}, "x")
    assert found.usage is not None
    assert (found.usage.total_tokens, found.usage.input_tokens_details.cached_tokens) == (8, 2)
    assert found.output[0].content[0].text == "Let me see."  # type: ignore[union-attr,index]
    assert [item.arguments for item in found.output[2:]] == ['{"zone": "utc"}', '{"on": true}']  # type: ignore[union-attr]
    assert found.output[1].content[0].logprobs[0].top_logprobs[0].token == "B"  # type: ignore[union-attr,index]


def test_every_event_is_what_openais_model_takes_and_items_follow_each_other(served: Served) -> None:
    served.plugin.plan = planned(*SAID)  # type: ignore[union-attr]
    events = stream(served, tools=[CLOCK, LAMP])
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]  # fmt: skip
    last = events[-1]["response"]
    whole = served.post(PATH, {**BODY, "tools": [CLOCK, LAMP]}).json()
    same = ("id", "call_id")
    streamed, asked_whole = (
        [{key: value for key, value in item.items() if key not in same} for item in found["output"]]
        for found in (last, whole)
    )
    assert streamed == asked_whole
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == last["output"]
    assert events[0]["response"]["output"] == []


@pytest.mark.parametrize("reason", ["length", "context"])
def test_an_answer_that_was_cut_is_incomplete(served: Served, reason: str) -> None:
    served.plugin.plan = planned(TextDelta(text="x"), Finished(reason=FinishReason(reason)))  # type: ignore[union-attr]
    last = stream(served)[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["output"][0]["status"] == "incomplete"


def test_a_long_prefill_is_kept_alive_by_real_events(served: Served) -> None:
    def slow(_request: Request) -> Iterator[Event | None]:
        until = time.monotonic() + 0.8
        while time.monotonic() < until:
            time.sleep(0.005)
            yield None
        yield TextDelta(text="x")
        yield Finished()

    served.plugin.plan = slow  # type: ignore[union-attr]
    kinds = [event["type"] for event in stream(served)]
    assert kinds.count("response.in_progress") >= 2, "a comment is no sign of life to Codex"


def test_a_failure_in_the_middle_is_response_failed(served: Served) -> None:
    def broken(_request: Request) -> Iterator[Event]:
        yield TextDelta(text="Well")
        raise errors.InsufficientMemoryError("full")

    served.plugin.plan = broken  # type: ignore[union-attr]
    last = stream(served)[-1]
    assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", "server_error")
    assert last["response"]["output"][0]["content"][0]["text"] == "Well"


def test_openais_client_has_its_responses(served: Served) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    assert client.responses.create(model="scripted", input="hi").output_text == "Hello world"
    served.plugin.plan = planned(*SAID)  # type: ignore[union-attr]
    with client.responses.stream(model="scripted", input="hi", tools=[CLOCK, LAMP]) as streamed:  # type: ignore[list-item]
        text = "".join(event.delta for event in streamed if event.type == "response.output_text.delta")
        final = streamed.get_final_response()
    assert text == final.output_text == "It is 😀."
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="scripted", input="hi", previous_response_id="resp_1")
    assert caught.value.code == "unsupported_parameter"


def test_the_table_has_every_field_of_openais_and_no_other() -> None:
    theirs = set(typing.get_type_hints(ResponseCreateParamsBase)) | {"stream"}
    assert {item.name for item in openai_responses.TABLE.fields} == theirs
    assert not {item.name for item in openai_responses.TABLE.extra} & theirs
