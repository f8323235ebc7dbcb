"""Ten turns with a real model: what was computed before is used again, and changes nothing."""

from __future__ import annotations

import pytest
from mlxengine import GenerateParams, InferenceEngine

from tests.hub import weights

TURNS = [
    "My name is Ada.",
    "What is my name?",
    "Name a colour.",
    "And another one.",
    "What is the capital of France?",
    "And of Italy?",
    "Count to three.",
    "Say hello.",
    "What is two and two?",
    "What did I ask first?",
]


@pytest.mark.feature("llm.prompt_cache")
def test_turn_ten_uses_what_was_computed_and_equals_a_cold_render_of_the_transcript() -> None:
    params = GenerateParams(max_tokens=6, temperature=0)
    with InferenceEngine() as engine:
        model = engine.load_text(weights.folder_of(weights.SMOLLM2))
        session = model.session(instructions="Be brief.", params=params)
        replies = [session.respond(text) for text in TURNS]
        last = replies[-1]
        # all but the newest turn: the last answer's end token and template, and the new question
        assert last.usage.cached_tokens > 0.7 * last.usage.prompt_tokens
        stopped = session.stream("Tell me a very long story.")
        next(stopped)
        stopped.close()
        assert len(session.messages) == 2 * len(TURNS)
        model.close()
        cold = engine.load_text(weights.folder_of(weights.SMOLLM2), features={"llm.prompt_cache": False})
        again = cold.generate(session.messages[:-1], params, instructions="Be brief.")
    assert again.usage.cached_tokens == 0
    assert (again.text, again.token_ids) == (last.text, last.token_ids)
    assert again.usage.prompt_tokens == last.usage.prompt_tokens
