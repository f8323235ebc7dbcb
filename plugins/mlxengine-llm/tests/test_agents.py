"""Agents that talk side by side: each turn reads what is new in it, and nothing that was read before."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import mlxengine_llm.plugin
import numpy as np
import pytest
from llm_harness import write_tiny
from mlxengine import GenerateParams, InferenceEngine, Message, TextHandle, ToolResultPart
from mlxengine.toolkit.reading import Readings
from mlxengine_llm._decoder import BatchDecoder
from speech_texts import SHOWN

pytestmark = pytest.mark.feature("llm.prompt_cache")
AGENTS, TURNS = 8, 20
MARKS = ["<tool_call>", "</tool_call>"]
TEMPLATE = (
    "{# SHOWN #}{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
).replace("SHOWN", SHOWN["json_tools"])
LOOK = {
    "type": "function",
    "function": {"name": "a", "parameters": {"type": "object", "additionalProperties": False}},
}


def talk(model: TextHandle, number: int, found: list[tuple[int, int]]) -> None:
    """The requests of one agent: in each turn a call, and what is said to its result.

    ``found`` gets the tokens of each prompt, and how many of them were not read again.
    """
    session = model.session(
        instructions=f"{number} is your number.",
        tools=[LOOK],
        parallel_tool_calls=False,
        params=GenerateParams(temperature=0),
    )
    for turn in range(TURNS):
        session.tool_choice = "required"
        reply = session.respond(f"{turn}?")
        found.append((reply.usage.prompt_tokens, reply.usage.cached_tokens))
        (call,) = reply.tool_calls
        assert call.arguments == {}
        result = Message.tool(ToolResultPart(call.id, call.name, f"{turn}!"))
        session.tool_choice = "none"
        reply = session.respond([result], GenerateParams(max_tokens=2, temperature=0))
        found.append((reply.usage.prompt_tokens, reply.usage.cached_tokens))
    assert len(session.messages) == 4 * TURNS


def common(before: Any, prompt: list[int]) -> int:
    """Tokens of a prompt that are the beginning of what a row held at its end."""
    held = [*before.prompt, *before.tokens[:-1]]
    size = min(len(held), len(prompt))
    return int(np.argmin([*np.equal(held[:size], prompt[:size]), False]))


def test_each_turn_of_eight_agents_with_tools_reads_only_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny(tmp_path / "model", extra=MARKS, template=TEMPLATE, max_position_embeddings=16_384)
    rows: list[Any] = []
    read: list[int] = []
    insert, passed = BatchDecoder.insert, Readings._read
    monkeypatch.setattr(BatchDecoder, "insert", lambda self, row: (rows.append(row), insert(self, row)))
    monkeypatch.setattr(Readings, "_read", lambda self, *given: read.append(passed(self, *given)) or read[-1])
    found: list[list[tuple[int, int]]] = [[] for _ in range(AGENTS)]
    engine = InferenceEngine(plugins=[("llm", mlxengine_llm.plugin)])
    with engine, engine.load_text(folder) as model:
        threads = [
            threading.Thread(target=talk, args=(model, number, asked)) for number, asked in enumerate(found)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    told = [asked for one in found for asked in one]
    assert len(told) == len(rows) == AGENTS * TURNS * 2
    assert sorted(told) == sorted((len(row.prompt), row.cached) for row in rows)
    # A prompt's last token is read by the pass that draws the first one of its answer.
    assert sum(read) == sum(prompt - cached - 1 for prompt, cached in told)
    shared = min(common(rows[0], row.prompt) for row in rows)  # by all agents
    turns = 0
    for at, row in enumerate(rows):
        known = max((common(before, row.prompt) for before in rows[:at]), default=0)
        if known > shared:  # the agent's own request before is among them
            turns += 1
            assert row.cached >= min(known, len(row.prompt) - 1)
    assert turns == AGENTS * (2 * TURNS - 1)
