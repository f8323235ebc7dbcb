"""A session keeps complete turns only, one at a time, and can be written down and taken up again."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlxengine import (
    AsyncInferenceEngine,
    AudioPart,
    GenerateParams,
    ImagePart,
    InferenceEngine,
    Message,
    ReasoningPart,
    TextDelta,
    TextHandle,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    VideoPart,
)
from mlxengine.errors import ConfigurationError, GenerationError, InvalidParameterError, MisuseError
from mlxengine.text.grammar import Grammar
from mlxengine.text.session import Session
from mlxengine.text.transcript import read_transcript


@pytest.fixture
def chat() -> Iterator[TextHandle]:
    with InferenceEngine(backend="mock", plugins=[]) as engine:
        yield engine.load_text("any/name")


def texts(session: Session) -> list[tuple[str, str]]:
    return [(message.role.value, message.text[-9:]) for message in session.messages]


def test_a_turn_sees_all_turns_before_it(chat: TextHandle) -> None:
    session = chat.session(instructions="Be brief.")
    assert session.respond("one").usage.prompt_tokens == 1
    second = session.respond("two")
    assert second.usage.prompt_tokens == 1 + 8 + 1
    assert texts(session) == [
        ("user", "one"),
        ("assistant", "said: one"),
        ("user", "two"),
        ("assistant", "said: two"),
    ]
    assert session.instructions == "Be brief."


def test_a_stream_adds_the_turn_when_its_last_event_was_read(chat: TextHandle) -> None:
    session = chat.session()
    stream = session.stream("hello")
    text = ""
    for event in stream:
        if isinstance(event, TextDelta):
            assert session.messages == ()
            text += event.text
    assert session.messages[-1].text == text


def test_a_turn_whose_events_are_taken_several_at_once_is_whole(chat: TextHandle) -> None:
    session = chat.session()
    stream = session.stream("hello")
    found = [event for first in stream for event in (first, *stream.arrived())]
    assert "".join(event.text for event in found if isinstance(event, TextDelta)) == session.messages[-1].text


@pytest.mark.parametrize("leave", ["close", "cancel", "drop", "raise"])
def test_a_turn_that_is_left_leaves_no_trace_and_the_session_goes_on(chat: TextHandle, leave: str) -> None:
    session = chat.session()
    session.respond("one")
    before = session.messages
    if leave == "raise":
        with pytest.raises(ZeroDivisionError), session.stream("two") as stream:
            next(stream)
            raise ZeroDivisionError
    else:
        stream = session.stream("two")
        next(stream)
        getattr(stream, leave)() if leave != "drop" else None
        del stream
    assert session.messages == before
    assert session.respond("three").text.endswith("three")
    assert [message.text for message in session.messages if message.role == "user"] == ["one", "three"]


def test_a_turn_that_fails_leaves_no_trace(chat: TextHandle) -> None:
    session = chat.session(tools=())
    with InferenceEngine(backend="mock", plugins=[]) as other:
        closed = other.load_text("any/name")
        broken = closed.session()
        closed.close()
        with pytest.raises((MisuseError, GenerationError)):
            broken.respond("x")
        assert broken.messages == ()
        broken.clear()
    with pytest.raises(InvalidParameterError):
        session.respond(5)
    with pytest.raises(InvalidParameterError):
        session.respond([])
    with pytest.raises(InvalidParameterError):
        session.respond([Message.user("a"), "b"])
    assert session.respond("fine").mock


def test_a_second_turn_while_one_runs_raises_and_harms_neither(chat: TextHandle) -> None:
    session = chat.session()
    stream = session.stream("one")
    next(stream)
    for attempt in (lambda: session.respond("two"), session.undo, session.clear):
        with pytest.raises(MisuseError, match="answering already"):
            attempt()
    list(stream)
    assert texts(session) == [("user", "one"), ("assistant", "said: one")]


def test_threads_on_one_session_get_an_answer_or_an_error_and_turns_stay_whole(chat: TextHandle) -> None:
    session = chat.session()
    answered: list[str] = []
    refused: list[MisuseError] = []

    def talk(name: str) -> None:
        for number in range(10):
            try:
                session.respond(f"{name}{number}")
                answered.append(f"{name}{number}")
            except MisuseError as error:
                refused.append(error)

    threads = [threading.Thread(target=talk, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answered) + len(refused) == 30
    asked = [message.text for message in session.messages[::2]]
    assert sorted(asked) == sorted(answered)
    for question, answer in zip(session.messages[::2], session.messages[1::2], strict=True):
        assert answer.text.endswith(f"You said: {question.text}")


def test_undo_takes_back_the_last_turn_tool_results_included(chat: TextHandle) -> None:
    session = chat.session()
    session.respond("one")
    session.respond("two")
    session.respond([Message.tool(ToolResultPart(id="1", name="clock", content="noon"))])
    assert [message.role.value for message in session.undo()] == ["user", "assistant", "tool", "assistant"]
    assert len(session.messages) == 2
    session.undo()
    assert session.undo() == ()


def test_a_transcript_is_restored_as_it_was(chat: TextHandle, tmp_path: Path) -> None:
    history = (
        Message.user(
            [ImagePart("a.png"), ImagePart(b"\x89PNG"), TextPart("Ünïcode"), AudioPart(b"riff", 16000)]
        ),
        Message.assistant([TextPart("x"), ToolCallPart("1", "clock", {"zone": ["utc", None]})]),
        Message.tool(ToolResultPart("1", "clock", "noon", error=True)),
        Message.tool(ToolResultPart("2", "look", "here", images=[ImagePart(b"\x89PNG"), ImagePart("b.png")])),
        Message.assistant([ReasoningPart("Hm."), TextPart("It is.")]),
        Message.assistant([VideoPart(["f0.png", b"f1"], fps=2.0)]),
    )
    params = GenerateParams(seed=0, temperature=0.5, stop=("a", "b"), logit_bias={3: -1.5})
    switches = {"enable_thinking": False, "words": ["a"]}
    session = chat.session(
        instructions="Be brief.", params=params, history=history, chat_template_kwargs=switches
    )
    file = tmp_path / "talk.json"
    session.save(file)
    again = Session.restore(chat, file)
    assert again.messages == history
    assert (again.instructions, again.params) == ("Be brief.", params)
    assert again.chat_template_kwargs == switches
    assert read_transcript(file).model == "any/name"
    old = json.loads(file.read_text())
    del old["chat_template_kwargs"]  # as it was written before there were any
    file.write_text(json.dumps(old))
    assert Session.restore(chat, file).chat_template_kwargs == {}
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.json({"enum": [1, "ü"]}),
        Grammar.regex(r"\d+"),
        Grammar.lark('start: "x"'),
        Grammar.choices(["a"]),
    ],
)
def test_a_grammar_is_saved_with_the_parameters(chat: TextHandle, tmp_path: Path, grammar: Grammar) -> None:
    params = GenerateParams(grammar=grammar)
    chat.session(params=params).save(tmp_path / "talk.json")
    assert Session.restore(chat, tmp_path / "talk.json").params == params


@pytest.mark.parametrize(
    "wrong",
    [
        {"instructions": 5},
        {"chat_template_kwargs": [["a", 1]]},
        {"params": {"grammar": {"kind": "regex", "source": 5}}},
        {"params": {"grammar": {"kind": "prose", "source": "x"}}},
        {"params": {"seed": {}}},
    ],
)
def test_a_transcript_with_a_value_of_the_wrong_type_is_refused(
    chat: TextHandle, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    file = tmp_path / "talk.json"
    chat.session().save(file)
    file.write_text(json.dumps({**json.loads(file.read_text()), **wrong}))
    with pytest.raises(ConfigurationError, match="not a saved conversation"):
        Session.restore(chat, file)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        "[" * 50_000,
        '{"format": "other", "version": 1}',
        '{"format": "mlxengine-transcript"}',
        b"\xff",
    ],
)
def test_a_file_that_is_no_transcript_is_refused(
    chat: TextHandle, tmp_path: Path, content: str | bytes
) -> None:
    file = tmp_path / "talk.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigurationError, match="not a saved conversation"):
        Session.restore(chat, file)
    with pytest.raises(ConfigurationError):
        Session.restore(chat, tmp_path / "absent")


def test_a_transcript_of_a_later_version_is_refused(chat: TextHandle, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    chat.session().save(file)
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 2}))
    with pytest.raises(ConfigurationError, match="version 2"):
        Session.restore(chat, file)


def test_media_that_cannot_be_written_are_refused_and_the_old_file_stays(
    chat: TextHandle, tmp_path: Path
) -> None:
    file = tmp_path / "talk.json"
    chat.session(history=[Message.user("old")]).save(file)
    with pytest.raises(InvalidParameterError, match="object cannot be saved"):
        chat.session(history=[Message.user(ImagePart(object()))]).save(file)
    assert Session.restore(chat, file).messages == (Message.user("old"),)


def test_the_async_session_does_the_same() -> None:
    async def talk() -> None:
        async with AsyncInferenceEngine(backend="mock", plugins=[]) as engine:
            session = (await engine.load_text("any/name")).session()
            assert (await session.respond("one")).text.endswith("one")
            stream = session.stream("two")
            await anext(aiter(stream))
            with pytest.raises(MisuseError):
                session.stream("three")
            await stream.aclose()
            assert len(session.messages) == 2
            task = asyncio.create_task(session.respond("four"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(session.messages) == 2
            await session.respond("five")
            assert [message.text for message in session.messages[::2]] == ["one", "five"]

    asyncio.run(talk())
