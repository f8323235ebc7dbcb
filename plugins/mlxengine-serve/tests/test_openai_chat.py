"""Chat completions: what each field asks of the engine, and bytes that OpenAI's own models take."""

from __future__ import annotations

import base64
import json
import typing
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from mlxengine import (
    ChoiceFinished,
    Event,
    Finished,
    FinishReason,
    Grammar,
    ReasoningDelta,
    ReasoningPart,
    Request,
    TextDelta,
    TokenLogprob,
    TokenUsage,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    TopLogprob,
    errors,
)
from mlxengine_serve import openai_chat
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from serve_harness import Served, planned, said

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
LAMP = {"type": "function", "function": {"name": "lamp", "strict": True, "parameters": {"type": "object"}}}
PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()
USAGE = TokenUsage(prompt_tokens=5, completion_tokens=3, cached_tokens=2, reasoning_tokens=1)


def asked(served: Served, **fields: Any) -> Any:
    answer = served.post(PATH, {"model": "scripted", "messages": HI, **fields})
    assert answer.status_code == 200, answer.text
    return served.plugin.last  # type: ignore[union-attr]


def refused(served: Served, **fields: Any) -> tuple[int, str | None, str | None]:
    answer = served.post(PATH, {"model": "scripted", "messages": HI, **fields})
    error = answer.json()["error"]
    return answer.status_code, error["param"], error["code"]


# -- what fields ask ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "name", "ours"),
    [
        ("max_tokens", 7, "max_tokens", 7),
        ("max_completion_tokens", 8, "max_tokens", 8),
        ("temperature", 0, "temperature", 0),
        ("top_p", 0.5, "top_p", 0.5),
        ("frequency_penalty", -1.5, "frequency_penalty", -1.5),
        ("presence_penalty", 1, "presence_penalty", 1),
        ("n", 2, "n", 2),
        ("stop", "END", "stop", ("END",)),
        ("stop", ["a", "b"], "stop", ("a", "b")),
        ("seed", 0, "seed", 0),
        ("seed", -1, "seed", 2**64 - 1),
        ("logprobs", True, "logprobs", True),
        ("logit_bias", {"42": -100}, "logit_bias", ((42, -100),)),
        ("reasoning_effort", "none", "thinking", False),
        ("reasoning_effort", "high", "reasoning_effort", "high"),
        ("response_format", {"type": "json_object"}, "grammar", Grammar.json()),
        ("response_format", {"type": "text"}, "grammar", None),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {"type": "integer"}}},
         "grammar", Grammar.json({"type": "integer"})),
        ("top_k", 3, "top_k", 3),
        ("top_k", -1, "top_k", 0),
        ("top_k", -1.0, "top_k", 0),
        ("max_tokens", 4.0, "max_tokens", 4),
        ("seed", 4.0, "seed", 4),
        ("min_p", 0.1, "min_p", 0.1),
        ("thinking_budget", 4, "thinking_budget", 4),
    ],
)  # fmt: skip
def test_a_field_of_sampling_reaches_the_engine(
    served: Served, field: str, value: Any, name: str, ours: Any
) -> None:
    assert getattr(asked(served, **{field: value}).params, name) == ours


def test_what_is_left_out_or_null_is_the_models_own(served: Served) -> None:
    nothing = {name: None for name in CompletionCreateParamsBase.__annotations__ if name not in ("messages",)}
    assert asked(served, **{**nothing, "model": "scripted"}).params.given == frozenset()


def test_tools_and_what_to_choose_of_them(served: Served) -> None:
    request = asked(served, tools=[CLOCK, LAMP], tool_choice="required", parallel_tool_calls=False)
    assert [tool["function"]["name"] for tool in request.tools] == ["clock", "lamp"]
    assert request.tools[1]["function"]["strict"] is True
    assert (request.tool_choice, request.parallel_tool_calls) == ("required", False)
    named = {"type": "function", "function": {"name": "lamp"}}
    assert asked(served, tools=[CLOCK, LAMP], tool_choice=named).tool_choice == ToolChoice("lamp")
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    request = asked(served, tools=[CLOCK, LAMP], tool_choice=allowed)
    assert ([tool["function"]["name"] for tool in request.tools], request.tool_choice) == (
        ["lamp"], "required",
    )  # fmt: skip


NOT_JSON = ('{"on": 1e999}', '{"on": "\\ud800"}')  # what makes a call a broken one


def test_a_conversation_becomes_messages_part_by_part(served: Served) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "utc"}'}}
    bad = {"id": "c2", "type": "function", "function": {"name": "lamp", "arguments": '{"on'}}
    bads = [bad, *({**bad, "function": {"name": "lamp", "arguments": text}} for text in NOT_JSON)]
    request = asked(
        served,
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
            {"role": "user", "content": [
                {"type": "text", "text": "See?"},
                {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}},
                {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
            ]},
            {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [call, *bads]},
            {"role": "tool", "tool_call_id": "c1", "content": "noon"},
            {"role": "tool", "tool_call_id": "c2", "content": [
                {"type": "text", "text": "dark"}, {"type": "image_url", "image_url": {"url": PNG}},
            ]},
            {"role": "assistant", "content": "It is noon."},
        ],
        continue_final_message=True,
        add_generation_prompt=False,
        chat_template_kwargs={"enable_thinking": False},
    )  # fmt: skip
    system, user, assistant, first, second, last = request.messages
    assert system.text == "Be brief.\n\nBe kind."
    assert [type(part).__name__ for part in user.parts] == ["TextPart", "ImagePart", "AudioPart"]
    assert (user.parts[1].source, user.parts[2].source) == (b"\x89PNG", b"RIFF")
    assert assistant.parts[0] == ReasoningPart("Hm.")
    assert dict(assistant.parts[1].arguments) == {"zone": "utc"}
    assert [dict(part.arguments) for part in assistant.parts[2:]] == [{}, {}, {}]
    assert (first.parts[0].name, first.parts[0].content) == ("clock", "noon")
    assert (second.parts[0].name, second.parts[0].images[0].source) == ("lamp", b"\x89PNG")
    assert last.text == "It is noon."
    assert (request.continue_final_message, request.add_generation_prompt) == (True, False)
    assert dict(request.chat_template_kwargs) == {"enable_thinking": False}


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/a.png", "https://example.org/a.png", "file:///etc/passwd", "/etc/passwd",
            "a.png", "data:image/png,raw", "", "http://127.0.0.1/;base64,AAAA"],
)  # fmt: skip
def test_no_url_is_fetched_and_no_path_opened(served: Served, url: str) -> None:
    content = [{"type": "image_url", "image_url": {"url": url}}]
    status, param, code = refused(served, messages=[{"role": "user", "content": content}])
    assert (status, param, code) == (400, "messages[0].content[0].image_url.url", "unsupported_url")


def test_a_tier_never_raises_a_request_above_its_key(served: Served) -> None:
    assert asked(served, service_tier="flex").priority == -1
    assert asked(served, service_tier="auto").priority == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "messages[0].content[0].type"),
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"n": True}, "n"),
        ({"n": 17}, "n"),
        ({"n": 999}, "n"),
        ({"stop": [1]}, "stop"),
        ({"seed": "x"}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"max_tokens": 4.5}, "max_tokens"),
        ({"max_tokens": 1e300}, "max_tokens"),
        ({"top_k": -2}, "top_k"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}},
         "response_format.json_schema.schema"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"store": True}, "store"),
        ({"verbosity": "low"}, "verbosity"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"model": "gpt-9"}, "model"),
        ({"model": 5}, "model"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_with_its_field(
    served: Served, fields: dict[str, Any], param: str
) -> None:
    status, found, code = refused(served, **fields)
    assert (status, found) == (404 if code == "model_not_found" else 400, param)
    assert served.plugin.asked == []  # type: ignore[union-attr]


def test_a_field_that_nobody_knows_is_named_in_a_header(served: Served) -> None:
    answer = served.post(PATH, {"messages": HI, "mystery": 1, "store": False, "a\nb": 2})
    assert answer.status_code == 200
    assert answer.headers["x-mlxengine-ignored"] == "mystery, and 1 more"
    assert "x-mlxengine-ignored" not in served.post(PATH, {"messages": HI, "user": "me"}).headers


# -- what comes back ----------------------------------------------------------------------------------------

ENTRY = TokenLogprob(
    token_id=1, text="A", logprob=-0.5, bytes=b"A", top=(TopLogprob(token_id=2, text="B", logprob=-1.5),)
)
EVENTS: tuple[Event, ...] = (
    ReasoningDelta(text="Let me"),
    ReasoningDelta(text=" see."),
    TextDelta(text="A", logprobs=(ENTRY,)),
    TextDelta(text="", token_ids=(9,)),
    TextDelta(text='b \ud83d\ude00 "q"\n'.encode("utf-16", "surrogatepass").decode("utf-16")),
    ToolCallDelta(id="c1", name="clock"),
    ToolCallDelta(id="c1", name="clock", arguments='{"zone"'),
    ToolCallDelta(id="c1", name="clock", arguments=': "utc"}'),
    ToolCall(id="c1", name="clock", arguments={"zone": "utc"}),
    ToolCall(id="c2", name="lamp", arguments={}),
    ToolCall(id="c3", name="lamp", arguments=None, raw='{"on', error="cut"),
    Finished(reason=FinishReason.TOOL_CALLS, usage=USAGE),
)


def test_a_whole_answer_is_what_openais_model_takes(served: Served) -> None:
    served.plugin.plan = planned(*EVENTS)  # type: ignore[union-attr]
    answer = served.post(PATH, {"model": "scripted", "messages": HI, "logprobs": True, "top_logprobs": 1})
    found = ChatCompletion.model_validate_json(answer.content, strict=True)
    [choice] = found.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == 'Ab 😀 "q"\n'
    assert choice.message.model_extra == {
        "reasoning_content": "Let me see.", "reasoning": "Let me see.",
    }  # fmt: skip
    calls = [
        (call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()
    ]
    assert calls == [("c1", "clock", '{"zone": "utc"}'), ("c2", "lamp", "{}"), ("c3", "lamp", '{"on')]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert choice.logprobs.content[0].top_logprobs[0].token == "B"
    assert found.usage is not None
    assert (found.usage.total_tokens, found.usage.prompt_tokens_details.cached_tokens) == (8, 2)  # type: ignore[union-attr]


def test_an_answer_of_calls_alone_has_no_content(served: Served) -> None:
    served.plugin.plan = planned(ToolCall(id="c", name="clock", arguments={}), Finished())  # type: ignore[union-attr]
    message = served.post(PATH, {"messages": HI}).json()["choices"][0]["message"]
    assert message["content"] is None


def test_every_chunk_is_what_openais_model_takes_and_joins_to_the_whole(served: Served) -> None:
    served.plugin.plan = planned(*EVENTS)  # type: ignore[union-attr]
    body = {"model": "scripted", "messages": HI, "stream": True, "logprobs": True}
    *frames, done = served.frames(PATH, body)
    assert done == "[DONE]"
    chunks = [ChatCompletionChunk.model_validate_json(json.dumps(item), strict=True) for item in frames]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(len(chunk.choices) == 1 for chunk in chunks), "usage comes only where it was asked for"
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == 'Ab 😀 "q"\n'
    pieces = [piece for delta in deltas for piece in delta.tool_calls or ()]
    assert [(piece.index, piece.id, piece.function.name, piece.function.arguments) for piece in pieces] == [  # type: ignore[union-attr]
        (0, "c1", "clock", ""), (0, None, None, '{"zone"'), (0, None, None, ': "utc"}'),
        (1, "c2", "lamp", "{}"), (2, "c3", "lamp", '{"on'),
    ]  # fmt: skip
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == [
        "tool_calls"
    ]


def test_usage_is_one_last_chunk_without_choices_where_it_is_asked_for(served: Served) -> None:
    body = {"messages": HI, "stream": True, "stream_options": {"include_usage": True}}
    *_, last, done = served.frames(PATH, body)
    chunk = ChatCompletionChunk.model_validate_json(json.dumps(last), strict=True)
    assert (chunk.choices, done) == ([], "[DONE]")
    assert chunk.usage is not None
    assert chunk.usage.completion_tokens == 2


def test_several_answers_come_side_by_side_each_with_its_end(served: Served) -> None:
    served.plugin.plan = planned(  # type: ignore[union-attr]
        TextDelta(text="a"), TextDelta(text="x", index=1), TextDelta(text="b"),
        ChoiceFinished(index=1, reason="length"), ChoiceFinished(index=0, reason="stop"),
        Finished(usage=USAGE),
    )  # fmt: skip
    *frames, _ = served.frames(PATH, {"messages": HI, "n": 2, "stream": True})
    ends = [(item["choices"][0]["index"], item["choices"][0]["finish_reason"]) for item in frames]
    assert [end for end in ends if end[1]] == [(1, "length"), (0, "stop")]
    whole = served.post(PATH, {"messages": HI, "n": 2}).json()["choices"]
    assert [(item["message"]["content"], item["finish_reason"]) for item in whole] == [
        ("ab", "stop"), ("x", "length"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "theirs"),
    [("stop", "stop"), ("length", "length"), ("context", "length"), ("done", "stop"),
     ("tool_calls", "tool_calls")],
)  # fmt: skip
def test_every_reason_to_end_is_one_of_theirs(served: Served, reason: str, theirs: str) -> None:
    served.plugin.plan = said("x", reason=FinishReason(reason))  # type: ignore[union-attr]
    assert served.post(PATH, {"messages": HI}).json()["choices"][0]["finish_reason"] == theirs


# -- what goes wrong ----------------------------------------------------------------------------------------


def failing(error: Exception, *before: Event) -> Any:
    def plan(_request: Request) -> Iterator[Event]:
        yield from before
        raise error

    return plan


STATUS = [
    (errors.PromptTooLongError("long"), 400, "context_length_exceeded"),
    (errors.UnsupportedInputError("no"), 400, "unsupported_value"),
    (errors.InvalidParameterError("no"), 400, "invalid_value"),
    (errors.FeatureUnavailableError("no"), 400, "invalid_value"),
    (errors.InsufficientMemoryError("full"), 503, "out_of_memory"),
    (errors.WaitTimeoutError("late"), 504, "timeout"),
    (errors.QueueFullError("many"), 429, "queue_full"),
    (ZeroDivisionError("secret of the inside"), 500, "engine_error"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("error", "status", "code"), STATUS, ids=[type(item[0]).__name__ for item in STATUS])
def test_an_error_before_the_first_word_is_a_status(
    served: Served, error: Exception, status: int, code: str, stream: bool
) -> None:
    served.plugin.plan = failing(error)  # type: ignore[union-attr]
    answer = served.post(PATH, {"messages": HI, "stream": stream})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert ("retry-after" in answer.headers) == (status in (429, 503))


def test_an_error_in_the_middle_is_a_frame_and_the_stream_never_looks_complete(served: Served) -> None:
    served.plugin.plan = failing(errors.PluginCrashedError("broke", plugin="x"), TextDelta(text="Well"))  # type: ignore[union-attr]
    *_, word, error = served.frames(PATH, {"messages": HI, "stream": True})
    assert word["choices"][0]["delta"]["content"] == "Well"
    assert error["error"]["type"] == "server_error"
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(model="scripted", messages=HI, stream=True))  # type: ignore[call-overload]


# -- openai's client ----------------------------------------------------------------------------------------


def test_openais_client_has_its_answers_and_its_errors(served: Served) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.create(model="scripted", messages=HI)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == "Hello world"
    with client.chat.completions.stream(model="scripted", messages=HI) as stream:  # type: ignore[arg-type]
        assert [event.delta for event in stream if event.type == "content.delta"] == ["", "Hello", " world"]
    assert [model.id for model in client.models.list()] == ["scripted"]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=HI)  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="scripted", messages=HI, temperature=-1)  # type: ignore[arg-type]
    assert caught.value.param == "temperature"


def test_the_table_has_every_field_of_openais_and_no_other() -> None:
    theirs = set(typing.get_type_hints(CompletionCreateParamsBase)) | {"stream"}
    assert {item.name for item in openai_chat.TABLE.fields} == theirs
    assert not {item.name for item in openai_chat.TABLE.extra} & theirs
