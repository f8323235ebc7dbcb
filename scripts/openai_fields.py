"""Write docs/reference/openai.md: what becomes of every field of an OpenAI chat-completions request.

python scripts/openai_fields.py [--check]

The fields are those of `CompletionCreateParams` in openai-python, and of its messages. A test runs every
``ours`` against the ``example``: an honoured one has to make ``shows`` true, a refused one has to raise.
"""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import Any

from attrs import frozen

TARGET = Path(__file__).parents[1] / "docs" / "reference" / "openai.md"
HEAD = """\
# OpenAI's request fields

Written by `scripts/openai_fields.py`; do not edit it by hand.

For whoever puts a chat-completions server, or a client that speaks its words, before the engine: what each
field of the request becomes. *Honoured*: the expression does what the field asks (`value` is the field's
value). *Refused*: there is no counterpart, and asking for one raises. *Yours*: nothing that a model has to do
with; the server acts on it, or drops it knowingly.
"""


class Kind(enum.StrEnum):
    """What becomes of a field."""

    HONOURED = "honoured"
    REFUSED = "refused"
    YOURS = "yours"


@frozen(kw_only=True)
class Field:
    """A field, or one form of it: an example of its value, our expression, and what shows its effect.

    ``shows`` sees the expression's result as ``found``.
    """

    name: str
    kind: Kind
    note: str = ""
    example: Any = None
    ours: str = ""
    shows: str = ""


def honoured(name: str, example: Any, ours: str, shows: str, note: str = "") -> Field:
    """A field that the expression does justice to."""
    return Field(name=name, kind=Kind.HONOURED, example=example, ours=ours, shows=shows, note=note)


def same(name: str, example: Any, ours: str | None = None, note: str = "") -> Field:
    """A field that is one of `GenerateParams`, perhaps under another name."""
    ours = ours or name
    return honoured(name, example, f"GenerateParams({ours}=value)", f"found.{ours} == value", note)


def refused(name: str, example: Any, note: str) -> Field:
    """A field that no parameter stands for."""
    key = name.split(" ")[0]
    return Field(
        name=name, kind=Kind.REFUSED, example=example, ours=f"params_from({{{key!r}: value}})", note=note
    )


def yours(name: str, note: str) -> Field:
    """A field for the server alone."""
    return Field(name=name, kind=Kind.YOURS, note=note)


_FUNCTION = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
_CALL = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "utc"}'}}
_URL = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}

REQUEST = (
    honoured(
        "messages",
        [{"role": "user", "content": "Hi"}],
        "TextRequest(messages=[Message(item['role'], item['content']) for item in value])",
        "found.messages[0].text == 'Hi'",
        "At least one. The next table says what its messages become.",
    ),
    yours("model", "Choose the handle by it: `engine.load_text(value)`."),
    refused("audio", {"voice": "alloy"}, "Models of this kind write text only."),
    same("frequency_penalty", 0.5),
    refused("function_call", "auto", "Deprecated there: see `tool_choice`."),
    refused("functions", [{"name": "clock"}], "Deprecated there: see `tools`."),
    honoured(
        "logit_bias",
        {"42": -100},
        "GenerateParams(logit_bias={int(token): bias for token, bias in value.items()})",
        "found.logit_bias == ((42, -100),)",
        "Token ids of the model's own tokenizer; one outside its vocabulary is refused.",
    ),
    same("logprobs", True),
    same("max_completion_tokens", 64, "max_tokens", "Reasoning included."),
    same("max_tokens", 64),
    yours("metadata", "Keep it with what you log."),
    refused('modalities ["text", "audio"]', ["text", "audio"], '`["text"]` is what there is: drop it.'),
    same("n", 3),
    honoured(
        "parallel_tool_calls",
        False,
        "TextRequest(messages=[Message.user('…')], parallel_tool_calls=value)",
        "found.parallel_tool_calls is False",
    ),
    refused(
        "prediction",
        {"type": "content", "content": "x"},
        "`llm.speculation` guesses from the whole prompt: put the text there.",
    ),
    same("presence_penalty", 0.5),
    yours("prompt_cache_key", "Prompts that begin alike share what was computed, whoever asks."),
    yours("prompt_cache_retention", "`llm.prompt_cache_mb` and `llm.prompt_cache_folder` are set at load."),
    honoured(
        'reasoning_effort "none"',
        "none",
        "GenerateParams(thinking=value != 'none')",
        "found.thinking is False",
    ),
    same(
        "reasoning_effort",
        "low",
        note="Refused where the chat template has no such choice: bound it with `thinking_budget`.",
    ),
    honoured(
        'response_format "json_schema"',
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}},
        "GenerateParams(grammar=Grammar.json(value['json_schema']['schema']))",
        "found.grammar == Grammar.json({'type': 'integer'})",
        "Always strict.",
    ),
    honoured(
        'response_format "json_object"',
        {"type": "json_object"},
        "GenerateParams(grammar=Grammar.json())",
        "found.grammar == Grammar.json({'type': 'object'})",
    ),
    honoured(
        'response_format "text"', {"type": "text"}, "GenerateParams(grammar=None)", "found.grammar is None"
    ),
    yours("safety_identifier", "Nothing is sent anywhere."),
    same("seed", 0, note="Exact alone; beside other requests but for rounding."),
    honoured(
        "service_tier",
        "priority",
        "TextRequest(prompt='…', priority={'flex': -1, 'priority': 1}.get(value, 0))",
        "found.priority == 1",
        "A higher priority is admitted first.",
    ),
    honoured(
        "stop",
        ["\n", "END"],
        "GenerateParams(stop=value)",
        "found.stop == ('\\n', 'END')",
        "A text or several; `null` is `()`.",
    ),
    yours("store", "Nothing is stored, but by you."),
    yours("stream", "`model.stream(…)` or `model.generate(…)`."),
    yours("stream_options", "`Finished.usage` is always there, and the streams carry no padding."),
    same("temperature", 0.0, note="0 is greedy; `null` is the model's own default, not 1."),
    honoured(
        'tool_choice "auto"',
        [_FUNCTION],
        "TextRequest(messages=[Message.user('…')], tools=value)",
        "len(found.tools) == 1",
    ),
    honoured(
        'tool_choice "none"',
        [_FUNCTION],
        "TextRequest(messages=[Message.user('…')], tools=value, tool_choice='none')",
        "found.tool_choice == 'none'",
        "The model is told of the tools, and calls none.",
    ),
    honoured(
        'tool_choice "required"',
        [_FUNCTION],
        "TextRequest(messages=[Message.user('…')], tools=value, tool_choice='required')",
        "found.tool_choice == 'required'",
        "A function by name is `ToolChoice(name)`.",
    ),
    honoured(
        "tools",
        [_FUNCTION],
        "TextRequest(messages=[Message.user('…')], tools=value)",
        "describe(found.tools[0])['function']['name'] == 'clock'",
        "As they are, `strict` too; Python functions as well.",
    ),
    same("top_logprobs", 5),
    same("top_p", 0.9),
    yours("user", "Nothing is sent anywhere."),
    refused("verbosity", "low", "Say it in the instructions, or bound `max_tokens`."),
    refused(
        "web_search_options", {}, "Nothing is fetched from the web. Give the model a tool that searches."
    ),
)

MESSAGES = (
    honoured("role system", "Be brief.", "Message.system(value)", "found.text == value"),
    honoured(
        "role developer",
        "Be brief.",
        "Message.system(value)",
        "found.role == 'system'",
        "Templates of open models know it as `system`; `Message('developer', …)` raises.",
    ),
    honoured("role user", "Hi", "Message.user(value)", "found.text == value"),
    honoured("role assistant", "Yes?", "Message.assistant(value)", "found.text == value"),
    honoured(
        "role tool",
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
        "Message.tool(ToolResultPart(id=value['tool_call_id'], name='clock', content=value['content']))",
        "found.parts[0].content == 'noon'",
        "The name is that of the call.",
    ),
    Field(
        name="role function",
        kind=Kind.REFUSED,
        example="function",
        ours="Message(value, 'noon')",
        note="Deprecated there: `tool`.",
    ),
    honoured(
        "content, text part", {"type": "text", "text": "Hi"}, "TextPart(value['text'])", "found.text == 'Hi'"
    ),
    honoured(
        "content, image_url part",
        _URL,
        "ImagePart(base64.b64decode(value['image_url']['url'].partition(',')[2]))",
        "found.source.startswith(b'\\x89PNG')",
        "For vision-language models. `detail` has no counterpart; other URLs are fetched by you.",
    ),
    honoured(
        "content, input_audio part",
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
        "AudioPart(base64.b64decode(value['input_audio']['data']))",
        "found.source == b'RIFF'",
        "For models that hear.",
    ),
    Field(
        name="content, file part",
        kind=Kind.REFUSED,
        example={"type": "file", "file": {"file_id": "file-1"}},
        ours="Message.user([value])",
        note="Read the file and send its text or its pictures.",
    ),
    Field(
        name="content, refusal part",
        kind=Kind.REFUSED,
        example={"type": "refusal", "refusal": "No."},
        ours="Message.assistant([value])",
        note="Send it as text: a template knows no other.",
    ),
    honoured(
        "tool_calls",
        _CALL,
        "ToolCallPart(value['id'], value['function']['name'], json.loads(value['function']['arguments']))",
        "found.arguments == {'zone': 'utc'}",
        "A part of the assistant's message.",
    ),
    yours("name", "Templates of open models have no place for it: put it into the text."),
    yours("audio", "Of an earlier answer in sound, which there is none of."),
    yours("function_call", "Deprecated there: `tool_calls`."),
)


def cell(text: str) -> str:
    """A text as a table's cell."""
    return text.replace("|", "\\|").replace("\n", "\\n")


def rows(fields: tuple[Field, ...]) -> str:
    """The fields as a table."""
    lines = ["| field | what becomes of it | how | |", "|-|-|-|-|"]
    for field in fields:
        name, _, form = field.name.partition(" ")
        ours = f"`{field.ours}`" if field.ours and field.kind is Kind.HONOURED else ""
        shown = f"`{name}` {form}" if form else f"`{name}`"
        lines.append("| " + " | ".join(map(cell, (shown, field.kind.value, ours, field.note))) + " |")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    return f"{HEAD}\n## The request\n\n{rows(REQUEST)}\n\n## Its messages\n\n{rows(MESSAGES)}\n"


def main() -> int:
    """Write the page, or with --check say whether it is up to date."""
    if "--check" in sys.argv[1:]:
        current = TARGET.exists() and TARGET.read_text() == page()
        print("up to date" if current else f"{TARGET} is out of date: run scripts/openai_fields.py")
        return 0 if current else 1
    TARGET.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
