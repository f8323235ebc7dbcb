"""How long an answer may become, and what its end is called: the request's limit, or the context's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llm_harness import Plugin, raw, write_tiny
from mlxengine import GenerateParams, InferenceEngine
from mlxengine.cli import main
from mlxengine.toolkit.answers import MAX_TOKENS, token_limit

CONTEXT = 300  # more than the libraries' usual 256 tokens of an answer
PROMPT = "four"
LEFT = CONTEXT - len(PROMPT)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a short context that seldom ends an answer by itself."""
    return write_tiny(tmp_path_factory.mktemp("short") / "llama", max_position_embeddings=CONTEXT)


@pytest.mark.parametrize(
    ("asked", "count", "reason"),
    [
        (None, LEFT, "context"),
        (LEFT + 1, LEFT, "context"),
        (LEFT, LEFT, "length"),
        (LEFT - 1, LEFT - 1, "length"),
    ],
)
def test_an_answer_ends_at_the_requests_limit_or_at_the_contexts_end_and_says_which(
    plugin: Plugin, short: Path, asked: int | None, count: int, reason: str
) -> None:
    model = plugin.load(short)
    (events,) = plugin.run([plugin.start(model, raw(PROMPT, max_tokens=asked, ignore_eos=True))])
    end = events[-1]
    assert (end.reason, end.usage.completion_tokens) == (reason, count)


@pytest.mark.parametrize(
    ("asked", "own", "context", "limit"),
    [
        (None, {}, None, (MAX_TOKENS, "length")),
        (9000, {}, None, (9000, "length")),
        (None, {}, 8192, (8092, "context")),
        (None, {"max_new_tokens": 50}, 8192, (50, "length")),
        (None, {"max_new_tokens": 50}, 120, (20, "context")),
        (None, {"max_length": 130}, 8192, (30, "length")),
        (None, {"max_length": 90}, 8192, (1, "length")),
        (60, {"max_new_tokens": 50, "max_length": 90}, 8192, (60, "length")),
    ],
)
def test_what_bounds_an_answer_to_a_prompt_of_100_tokens(
    asked: int | None, own: dict[str, Any], context: int | None, limit: tuple[int, str]
) -> None:
    assert token_limit(GenerateParams(max_tokens=asked), own, 100, context) == limit


def test_choices_and_sessions_tell_the_contexts_end(short: Path) -> None:
    with InferenceEngine() as engine, engine.load_text(str(short)) as model:
        endless = GenerateParams(ignore_eos=True)
        reply = model.generate("x", GenerateParams(ignore_eos=True, n=2, temperature=1.0, seed=1))
        assert [choice.finish_reason for choice in reply.choices] == ["context"] * 2
        assert reply.finish_reason == "context"
        session = model.session(params=endless)
        assert session.respond("x").finish_reason == "context"


def test_verbs_tell_the_contexts_end(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "-m", str(short), "x", "--temperature", "0", "--json"]
    assert main(words) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["finish_reason"], value["usage"]["completion_tokens"] > 256) == ("context", True)
    assert main([*words, "--max-tokens", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["finish_reason"] == "length"
