# ruff: noqa: E501 (templates, in the manner of their publishers)
"""From messages to token ids: what each family's template makes of a conversation, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from mlxengine import (
    GenerateParams,
    ImagePart,
    Message,
    ReasoningPart,
    TextPart,
    TextRequest,
    ToolCallPart,
    ToolResultPart,
)
from mlxengine.errors import InvalidParameterError, PromptTooLongError, UnsupportedInputError
from mlxengine.text.messages import Part
from mlxengine.toolkit.conversation import Parts, Prompts

from .chat_formats import FORMATS, Format, tokenizer

CHATML = FORMATS[0]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}

QWEN3 = """{%- if tools %}{{- '<|im_start|>system\\n# Tools\\n' }}{%- for t in tools %}{{- t | tojson }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}{%- if m.role == 'assistant' %}{{- '<|im_start|>assistant\\n' }}
{%- if m.reasoning_content is string and loop.index0 > ns.last %}{{- '<think>\\n' + m.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif %}
{{- m.content }}{%- for c in m.tool_calls or [] %}{{- '<tool_call>' + c.function.name + (c.function.arguments | tojson) + '</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}
{%- elif m.role == 'tool' %}{{- '<|im_start|>user\\n<tool_response>' + m.content + '</tool_response><|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"""

QWEN35 = (
    "{%- set preserve_thinking = preserve_thinking | default(false) %}"
    "{%- for m in messages %}{%- if m.role == 'system' and not loop.first %}{{- raise_exception('System message must be at the beginning.') }}{%- endif %}"
    "{{- '<|im_start|>' + m.role + '\\n' }}{%- if m.reasoning_content and preserve_thinking %}{{- '<think>' + m.reasoning_content + '</think>' }}{%- endif %}"
    "{%- if m.content is string %}{{- m.content }}{%- else %}{%- for p in m.content %}{{- p.text }}{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is not defined or enable_thinking %}{{- '<think>\\n' }}{%- endif %}{%- endif %}"
)

HARMONY = (
    "<|im_start|>system\\nReasoning: {{ reasoning_effort or 'medium' }}<|im_end|>"
    "{%- for m in messages %}{%- if m.role == 'assistant' and m.tool_calls %}"
    "{%- if m.content and m.thinking %}{{- raise_exception('Cannot pass both content and thinking with tool calls!') }}{%- endif %}"
    "{{- 'analysis:' + (m.content or m.thinking or '') + ';call:' + m.tool_calls[0].function.name }}"
    "{%- elif m.role == 'assistant' %}{%- if m.thinking %}{{- 'analysis:' + m.thinking }}{%- endif %}{{- 'final:' + m.content + '<|im_end|>' }}"
    "{%- elif m.role == 'tool' %}{{- 'result:' + (m.content | tojson) }}"
    "{%- elif m.role == 'user' %}{{- 'user:' + m.content }}{%- elif loop.first %}{{- m.content }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant{%- endif %}"
)

GEMMA = (
    "{%- for m in messages %}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('Conversation roles must alternate') }}{%- endif %}"
    "{{- '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (m.content | trim) + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>model\\n' }}{%- endif %}"
)


def prompts(template: str, form: Format = CHATML, **options: Any) -> Prompts:
    return Prompts(tokenizer(attrs.evolve(form, template=template)), name="a/model", **options)


@pytest.fixture
def made() -> Iterator[Any]:
    """Renders a request with a template; what was started is ended afterwards."""
    kept: dict[str, Prompts] = {}

    def render(template: str, *messages: Message, params: dict[str, Any] | None = None, **more: Any) -> str:
        found = kept.setdefault(template, prompts(template))
        request = TextRequest(messages=messages, params=GenerateParams(**(params or {})), **more)
        prompt = found.make(request)
        assert found._tokenizer.decode(prompt.ids, clean_up_tokenization_spaces=False) == prompt.text
        return str(prompt.text)

    yield render
    for item in kept.values():
        item.close()


ASK = Message.user("How is it?")
CALL = ToolCallPart("c1", "weather", {"city": "Wien"})
RESULT = Message.tool(ToolResultPart("c1", "weather", "sunny"))


def thinking(name: str, template: str, made: Any) -> str:
    said = Message.assistant([ReasoningPart("I should look."), CALL])
    text = made(template, ASK, said, RESULT)
    assert text.count("I should look.") == 1, name
    return str(text)


def test_reasoning_survives_a_tool_loop_under_the_name_that_the_template_reads(made: Any) -> None:
    assert "<think>\nI should look.\n</think>\n\n<tool_call>" in thinking("Qwen3", QWEN3, made)
    assert "analysis:I should look.;call:weather" in thinking("harmony", HARMONY, made)
    assert "I should look." in thinking("other", QWEN3.replace("reasoning_content", "reasoning"), made)


def test_a_template_decides_how_much_reasoning_it_shows(made: Any) -> None:
    said = Message.assistant([ReasoningPart("Hm."), TextPart("Fine.")])
    assert "Hm." not in made(QWEN3, ASK, said, ASK)
    assert "Hm." not in made(QWEN35, ASK, said, ASK)
    shown = made(QWEN35, ASK, said, ASK, chat_template_kwargs={"preserve_thinking": True})
    assert "<think>Hm.</think>Fine.<|im_end|>" in shown


def test_thought_and_text_before_a_call_share_a_place_where_there_is_one_for_both(made: Any) -> None:
    said = Message.assistant([ReasoningPart("Hm."), TextPart("Let me see."), CALL])
    assert "analysis:Hm.\n\nLet me see.;call:weather" in made(HARMONY, ASK, said, RESULT)


@pytest.mark.parametrize("form", FORMATS, ids=[form.name for form in FORMATS])
def test_an_assistants_turn_with_calls_and_no_text_is_rendered(form: Format) -> None:
    found = prompts(form.template, form)
    text = found.make(TextRequest(messages=(ASK, Message.assistant([CALL]), RESULT, ASK))).text
    assert text is not None
    assert "weather" in text
    assert "sunny" in text
    assert "None" not in text
    found.close()


@pytest.mark.parametrize("said", ["The answer is", "Two words \n", "It says <|im_end|> and <s>", ""])
@pytest.mark.parametrize("form", FORMATS, ids=[form.name for form in FORMATS])
def test_a_continued_turn_ends_exactly_where_its_text_does(form: Format, said: str) -> None:
    found = prompts(form.template, form)
    messages = (ASK, Message.assistant(said))
    whole = found.make(TextRequest(messages=messages, add_generation_prompt=False)).text
    begun = found.make(TextRequest(messages=messages, continue_final_message=True))
    assert whole is not None
    assert begun.text is not None
    assert begun.text.endswith(said)
    assert whole.startswith(begun.text.rstrip())
    words = found._tokenizer
    assert words.decode(begun.ids, clean_up_tokenization_spaces=False).endswith(said)
    harmless = found.make(TextRequest(messages=(ASK, Message.assistant("x")), continue_final_message=True))
    for marker in form.special:
        token = words.convert_tokens_to_ids(marker)
        assert begun.ids.count(token) == harmless.ids.count(token)
    found.close()


def test_reasoning_that_is_all_there_is_is_continued_within_it(made: Any) -> None:
    text = made(QWEN3, ASK, Message.assistant(ReasoningPart("First, I")), continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\n<think>\nFirst, I")


def test_what_cannot_be_continued_says_so(made: Any) -> None:
    with pytest.raises(InvalidParameterError, match="makes calls"):
        made(QWEN3, ASK, Message.assistant([TextPart("I call"), CALL]), continue_final_message=True)
    silent = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(UnsupportedInputError, match="does not write the last message"):
        made(silent, ASK, Message.assistant("So"), continue_final_message=True)


LATE = (Message.system("Be brief."), ASK, Message.system("The user is away."), ASK)


def test_a_system_message_in_mid_conversation_stays_there_or_is_refused_by_name(made: Any) -> None:
    assert "<|im_start|>system\nThe user is away.<|im_end|>\n<|im_start|>user" in made(QWEN3, *LATE)
    for template in (QWEN35, HARMONY):
        with pytest.raises(UnsupportedInputError, match="system message at the front only") as caught:
            made(template, *LATE)
        assert "instructions" in str(caught.value.hint)
    with pytest.raises(UnsupportedInputError, match="must alternate"):  # that is another matter
        made(GEMMA, *LATE)


def test_template_variables_are_passed_where_they_are_read(made: Any) -> None:
    off = made(QWEN3, ASK, chat_template_kwargs={"enable_thinking": False})
    assert off.endswith("<think>\n\n</think>\n\n")
    assert made(QWEN3, ASK, params={"thinking": False}) == off
    assert made(QWEN3, ASK, params={"thinking": True}) == made(QWEN3, ASK)
    assert "Reasoning: high" in made(HARMONY, ASK, params={"reasoning_effort": "high"})
    granite = QWEN3.replace("enable_thinking", "thinking")
    assert made(granite, ASK, params={"thinking": False}) == off


@pytest.mark.parametrize(
    ("template", "more", "error", "says", "hint"),
    [
        (QWEN3, {"enable_thinkin": True}, InvalidParameterError, "'enable_thinkin'", "enable_thinking"),
        (QWEN35, {"colour": 1}, InvalidParameterError, "'colour'", "enable_thinking, preserve_thinking"),
        (GEMMA, {"colour": 1}, InvalidParameterError, "'colour'", "no variables"),
        (QWEN3, {"messages": []}, InvalidParameterError, "cannot set 'messages'", "own field"),
        (QWEN3, {"eos_token": "x"}, InvalidParameterError, "'eos_token'", "own field"),
    ],
)
def test_a_variable_that_nobody_reads_is_refused_with_the_nearest_ones(
    made: Any, template: str, more: dict[str, Any], error: type[Exception], says: str, hint: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        made(template, ASK, chat_template_kwargs=more)
    assert hint in str(caught.value.hint)  # type: ignore[attr-defined]


def test_a_switch_that_the_template_does_not_have_is_refused(made: Any) -> None:
    for params in ({"thinking": True}, {"thinking": False}, {"reasoning_effort": "low"}):
        with pytest.raises(UnsupportedInputError, match="has no choice of"):
            made(GEMMA, ASK, params=params)
    with pytest.raises(InvalidParameterError, match="thinking=True, but enable_thinking=False"):
        made(QWEN3, ASK, params={"thinking": True}, chat_template_kwargs={"enable_thinking": False})


def test_what_only_a_template_heeds_is_refused_beside_a_raw_prompt() -> None:
    found = prompts(QWEN3)
    for more in ({"tools": [WEATHER]}, {"chat_template_kwargs": {"enable_thinking": True}}):
        with pytest.raises(InvalidParameterError, match="needs messages"):
            found.make(TextRequest(prompt="x", **more))
    with pytest.raises(InvalidParameterError, match="reasoning_effort needs messages"):
        found.make(TextRequest(prompt_tokens=[1], params=GenerateParams(reasoning_effort="low")))


def test_a_variables_text_becomes_no_marker(made: Any) -> None:
    template = "{{ persona }}" + QWEN3
    text = made(template, ASK, chat_template_kwargs={"persona": "<|im_end|>"})
    found = prompts(template)
    request = TextRequest(messages=(ASK,), chat_template_kwargs={"persona": "<|im_end|>"})
    end = found._tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert text.startswith("<|im_end|>")
    assert found.make(request).ids.count(end) == text.count("<|im_end|>") - 1
    found.close()


def test_several_results_in_one_message_are_all_shown(made: Any) -> None:
    calls = [CALL, ToolCallPart("c2", "weather", {"city": "Graz"})]
    results = [ToolResultPart("c1", "weather", "sunny"), ToolResultPart("c2", "weather", "rainy")]
    text = made(QWEN3, ASK, Message.assistant(calls), Message.user([*results, TextPart("And now?")]))
    assert "<tool_response>sunny</tool_response>" in text
    assert "<tool_response>rainy</tool_response><|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>" in text


class Seen(Parts):
    """A stand-in for a back end that takes pictures, each of which is the letter P."""

    listed = True  # type: ignore[assignment]

    def __init__(self) -> None:
        self.count = 0

    def shown(self, part: Part) -> list[dict[str, Any]]:
        self.count += 1
        return [{"type": "image"}]

    def placed(self, text: str) -> bool:
        return text.count("[P]") == self.count


LISTED = (
    "{% for m in messages %}{{ m.role }}:{% for c in m.tool_calls or [] %}({{ c.function.arguments | tojson }}){% endfor %}"
    "{% for p in m.content %}{% if p.type == 'image' %}[P]{% else %}{{ p.text }}{% endif %}{% endfor %};{% endfor %}"
)
SHOWN = Message.tool(ToolResultPart("c1", "look", "here", images=[ImagePart(b"")]))


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (LISTED, 'user:How is it?;assistant:({"city": "Wien"});tool:here[P];user:How is it?;'),
        (  # a template whose tools answer in text alone
            LISTED.replace(
                "{% for p", "{% if m.role == 'tool' %}{{ '' + m.content }}{% else %}{% for p"
            ).replace("{% endfor %};", "{% endfor %}{% endif %};"),
            'user:How is it?;assistant:({"city": "Wien"});tool:here;user:[P];user:How is it?;',
        ),
    ],
    ids=["in-the-result", "after-it"],
)
def test_pictures_of_a_result_stand_in_it_or_after_it_as_the_template_has_it(
    template: str, text: str
) -> None:
    found = prompts(template)
    messages = (ASK, Message.assistant([CALL]), SHOWN, ASK)
    assert found.make(TextRequest(messages=messages), True, Seen()).text == text
    with pytest.raises(UnsupportedInputError, match="takes text only, found image"):
        found.make(TextRequest(messages=messages))
    found.close()


def test_a_template_that_comes_out_right_is_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = prompts(LISTED), []
    real = found._template.write
    monkeypatch.setattr(found._template, "write", lambda item: (asked.append(item), real(item))[1])
    parts = [TextPart("Left:"), ImagePart(b""), TextPart("\nwhat is it?")]
    text = found.make(TextRequest(messages=(Message.user(parts),)), True, Seen()).text
    assert (text, len(asked)) == ("user:Left:[P]\nwhat is it?;", 1)
    found.close()


def test_a_template_for_parts_gets_parts_from_a_back_end_that_gives_texts(made: Any) -> None:
    assert made(LISTED, Message.system("Be brief."), ASK) == "system:Be brief.;user:How is it?;"


def test_a_template_for_texts_gets_texts_from_a_back_end_that_gives_parts() -> None:
    found = prompts(GEMMA)
    text = found.make(TextRequest(messages=(Message.user(["a", "b"]),)), True, Seen()).text
    assert text == "<|im_start|>user\nab<|im_end|>\n<|im_start|>model\n"
    found.close()


def test_a_prompt_has_to_fit_the_context_and_to_be_of_the_vocabulary() -> None:
    found = prompts(QWEN3, context=40)
    with pytest.raises(PromptTooLongError, match="40 tokens, answer included"):
        found.make(TextRequest(messages=(Message.user("long " * 20),)))
    with pytest.raises(InvalidParameterError, match="-1 is not a token id"):
        found.make(TextRequest(prompt_tokens=[-1]))
    for empty in (TextRequest(prompt=""), TextRequest(messages=(Message.user(""),))):
        with pytest.raises(InvalidParameterError, match="is empty"):
            found.make(empty)
    found.close()


def test_the_shell_needs_no_mlx_and_no_model_library() -> None:
    code = (
        "import sys, mlxengine.toolkit.conversation\n"
        "assert not {'mlx', 'mlx_lm', 'mlx_vlm', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
