"""What works with the first back end of the kind works with a second one."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlxengine import (
    AsyncInferenceEngine,
    GenerateParams,
    InferenceEngine,
    ScoreRequest,
    TextHandle,
    ToolResult,
)
from mlxengine.cli import main
from mlxengine.errors import FeatureUnavailableError, UnsupportedInputError
from mlxengine_echo import write_model

SPECIMEN = Path(__file__).parent / "specimen"


def weather(city: str) -> str:
    """The weather in a city."""
    return f"It rains in {city}."


@pytest.fixture
def echo() -> Iterator[TextHandle]:
    with InferenceEngine() as engine, engine.load_text(SPECIMEN) as handle:
        yield handle


def test_it_says_what_it_is_told(echo: TextHandle) -> None:
    reply = echo.generate("Good  morning\nto you ", instructions="Be brief.")
    assert (reply.text, reply.finish_reason) == ("Good  morning\nto you ", "stop")
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (7, 5)
    assert (echo.kind, echo.plugin, echo.info["context_length"]) == ("llm", "echo", 64)


@pytest.mark.parametrize(
    ("params", "text", "reason"),
    [
        (GenerateParams(max_tokens=2), "one two", "length"),
        (GenerateParams(max_tokens=3), "one two three", "stop"),
        (GenerateParams(stop=["th", "wo thr"]), "one t", "stop"),
        (GenerateParams(stop="none"), "one two three", "stop"),
        (GenerateParams(max_tokens=7, ignore_eos=True), "one two three one two three one", "length"),
        (GenerateParams(temperature=0, seed=5), "one two three", "stop"),
    ],
    ids=str,
)
def test_a_parameter_that_it_honours_does_what_it_says(
    echo: TextHandle, params: GenerateParams, text: str, reason: str
) -> None:
    reply = echo.generate("one two three", params)
    assert (reply.text, reply.finish_reason) == (text, reason)


def test_what_it_would_ignore_is_refused(echo: TextHandle) -> None:
    with pytest.raises(UnsupportedInputError, match="does not honour top_k, top_p"):
        echo.generate("x", GenerateParams(top_k=1, top_p=0.5))
    with pytest.raises(UnsupportedInputError, match="does not take a ScoreRequest"):
        echo.run(ScoreRequest(text="x"))
    with InferenceEngine() as engine, pytest.raises(FeatureUnavailableError, match="'echo' does not honour"):
        engine.load_text(SPECIMEN, features={"llm.kv_bits": 4})


def test_a_session_keeps_its_history_and_runs_its_tools(echo: TextHandle) -> None:
    session = echo.session(tools=[weather], tool_rounds=2)
    assert session.respond("hello").text == "hello"
    events = list(session.stream('weather {"city": "Oslo"}'))
    assert [event.content for event in events if isinstance(event, ToolResult)] == ["It rains in Oslo."]
    assert session.messages[-1].text == "It rains in Oslo."
    assert session.respond("weather {city}").text.startswith("The call could not be read")
    assert [message.role for message in session.messages[:2]] == ["user", "assistant"]


def test_so_it_does_for_asyncio() -> None:
    async def later() -> str:
        async with AsyncInferenceEngine() as engine:
            return (await (await engine.load_text(SPECIMEN)).generate("good night")).text

    assert asyncio.run(later()) == "good night"


def test_the_verbs_of_the_kind_work_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(write_model(tmp_path / "model"))
    assert main(["run", "-m", folder, "hi", "there"]) == 0
    assert capsys.readouterr().out == "hi there\n"
    assert main(["run", "-m", folder, "hi", "--temperature", "1"]) == 6
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("good day\nto you\n"))
    assert main(["chat", "-m", folder]) == 0
    assert capsys.readouterr().out == "good day\nto you\n"
    assert main(["bench", "-m", folder, "--repeats", "1", "--max-tokens", "8", "--json"]) == 0
    assert "batch of 4, tokens/s" in json.loads(capsys.readouterr().out)["figures"]
    assert main(["fit", folder, "--context", "100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fit"]["kind"] == "llm"
