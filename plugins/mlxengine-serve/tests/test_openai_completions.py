"""Completions of raw text: prompts of every form, answers and chunks that OpenAI's own models take."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from mlxengine import Event, Finished, Request, TextDelta, TextRequest, TokenLogprob, TokenUsage, TopLogprob
from mlxengine_serve import openai_completions
from openai.types import Completion
from openai.types.completion_create_params import CompletionCreateParamsBase
from serve_harness import Served, planned

PATH = "/v1/completions"


def echo(request: Request) -> Iterator[Event]:
    """Says the prompt backwards, a character a step, once for each answer."""
    assert isinstance(request, TextRequest)
    said = request.prompt if request.prompt is not None else str(request.prompt_tokens)
    for index in range(request.params.n):
        for letter in reversed(said):
            yield TextDelta(text=letter, index=index)
    yield Finished(reason="stop", usage=TokenUsage(prompt_tokens=len(said), completion_tokens=len(said)))


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("abc", ["cba"]),
        (["ab", "cd"], ["ba", "dc"]),
        ([1, 2], [str((1, 2))[::-1]]),
        ([[1, 2], [3, 4]], [str((1, 2))[::-1], str((3, 4))[::-1]]),
        ("", [""]),
    ],
)
def test_prompts_of_every_form_have_their_answers_in_order(
    served: Served, prompt: Any, texts: list[str]
) -> None:
    served.plugin.plan = echo  # type: ignore[union-attr]
    answer = served.post(PATH, {"model": "scripted", "prompt": prompt})
    found = Completion.model_validate_json(answer.content, strict=True)
    assert [choice.text for choice in found.choices] == texts
    assert found.usage is not None
    assert found.usage.prompt_tokens == sum(map(len, texts)), "usage is that of all prompts"
    *frames, done = served.frames(PATH, {"prompt": prompt, "stream": True})
    for item in frames:  # their model has no null here, which their server sends until the end
        choice = item["choices"][0]
        filled = {**item, "choices": [{**choice, "finish_reason": choice["finish_reason"] or "stop"}]}
        Completion.model_validate_json(json.dumps(filled), strict=True)
    pieces = [item["choices"][0] for item in frames]
    joined = ["".join(item["text"] for item in pieces if item["index"] == i) for i in range(len(texts))]
    assert (joined, done) == (texts, "[DONE]")
    ends = [item["index"] for item in pieces if item["finish_reason"]]
    assert sorted(ends) == list(range(len(texts)))


def test_several_answers_to_several_prompts_are_numbered_through(served: Served) -> None:
    served.plugin.plan = echo  # type: ignore[union-attr]
    answer = served.post(PATH, {"prompt": ["ab", "cd"], "n": 2}).json()
    assert [item["text"] for item in answer["choices"]] == ["ba", "ba", "dc", "dc"]
    assert [item["index"] for item in answer["choices"]] == [0, 1, 2, 3]
    assert served.post(PATH, {"prompt": ["a"] * 9, "n": 2}).json()["error"]["param"] == "n"


def test_probabilities_come_in_their_older_form(served: Served) -> None:
    entries = [
        TokenLogprob(
            token_id=1, text="ab", logprob=-1.0, top=(TopLogprob(token_id=2, text="x", logprob=-2.0),)
        ),
        TokenLogprob(token_id=3, text="c", logprob=-3.0),
    ]
    events = [TextDelta(text=entry.text, logprobs=(entry,)) for entry in entries]
    served.plugin.plan = planned(*events, Finished())  # type: ignore[union-attr]
    answer = served.post(PATH, {"prompt": "x", "logprobs": 1})
    found = Completion.model_validate_json(answer.content, strict=True).choices[0].logprobs
    assert found is not None
    assert (found.tokens, found.token_logprobs, found.text_offset) == (["ab", "c"], [-1.0, -3.0], [0, 2])
    assert found.top_logprobs == [{"x": -2.0}, {}]
    params = served.plugin.last.params  # type: ignore[union-attr]
    assert (params.logprobs, params.top_logprobs) == (True, 1)
    frames = served.frames(PATH, {"prompt": "x", "logprobs": 1, "stream": True})
    offsets = [item["choices"][0]["logprobs"]["text_offset"] for item in frames[:2]]
    assert offsets == [[0], [2]]


@pytest.mark.parametrize(
    ("fields", "param"),
    [({}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": [1, "a"]}, "prompt"), ({"prompt": 3}, "prompt"),
     ({"prompt": "a", "echo": True}, "echo"), ({"prompt": "a", "suffix": "b"}, "suffix"),
     ({"prompt": "a", "best_of": 3}, "best_of"), ({"prompt": "a", "logprobs": True}, "logprobs"),
     ({"prompt": "a", "logprobs": 99}, "logprobs")],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_with_its_field(
    served: Served, fields: dict[str, Any], param: str
) -> None:
    answer = served.post(PATH, fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(param)


def test_one_prompt_that_fails_ends_them_all(served: Served) -> None:
    def plan(request: Request) -> Iterator[Event | None]:
        assert isinstance(request, TextRequest)
        if request.prompt == "bad":
            raise ZeroDivisionError
        while True:
            yield None

    served.plugin.plan = plan  # type: ignore[union-attr]
    assert served.post(PATH, {"prompt": ["good", "bad", "good"]}).status_code == 500
    served.wait_until(lambda: served.plugin.alive == 0)  # type: ignore[union-attr]


def test_openais_client_completes(served: Served) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    assert client.completions.create(model="scripted", prompt="x").choices[0].text == "Hello world"
    stream = client.completions.create(model="scripted", prompt="x", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "Hello world"


def test_the_table_has_every_field_of_openais_and_no_other() -> None:
    theirs = set(typing.get_type_hints(CompletionCreateParamsBase)) | {"stream"}
    assert {item.name for item in openai_completions.TABLE.fields} == theirs
    assert not {item.name for item in openai_completions.TABLE.extra} & theirs
