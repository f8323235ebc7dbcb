"""A session that runs its tools: within its bound, side by side, and whatever the model or a tool does."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlxengine import (
    AsyncInferenceEngine,
    Claim,
    Finished,
    FinishReason,
    Fit,
    GenerateParams,
    ImagePart,
    InferenceEngine,
    Loaded,
    Message,
    ReasoningDelta,
    Request,
    TextDelta,
    TokenUsage,
    ToolCall,
    ToolCallPart,
    ToolChoice,
    ToolResult,
    ToolResultPart,
    hookimpl,
)
from mlxengine.errors import CancelledError, InvalidParameterError
from mlxengine.text.tools import DescribedTool, can_run, describe, run_calls, run_calls_async

ASK = [ToolCall(id="1", name="clock", arguments={"zone": "utc"})]


class Script:
    """A plugin whose model says what was written down: at each request the next entry."""

    def __init__(self, *lines: Any, calls: bool = True) -> None:
        self.lines = list(lines)
        self.capabilities = frozenset({"tools"} if calls else ())
        self.seen: list[Request] = []

    @hookimpl
    def claim_model(self, card: Any) -> Any:
        return (
            Claim(kind="llm", fit=Fit.NATIVE, files=("config.json",), uses_mlx=False) if card.config else None
        )

    @hookimpl
    def load_model(self, card: Any, context: Any) -> Any:
        return Loaded(model=object(), capabilities=self.capabilities)

    @hookimpl
    def generate(self, model: Any, request: Request) -> Any:
        self.seen.append(request)
        line = self.lines.pop(0) if len(self.lines) > 1 else self.lines[0]
        return self._say(line)

    def _say(self, line: Any) -> Iterator[Any]:
        if isinstance(line, str):
            yield TextDelta(text=line)
        else:
            yield from line
        reason = FinishReason.STOP if isinstance(line, str) else FinishReason.TOOL_CALLS
        yield Finished(reason=reason, usage=TokenUsage(prompt_tokens=10, completion_tokens=3))


def clock(zone: str) -> str:
    """The time."""
    if zone != "utc":
        raise LookupError(f"no zone {zone}")
    return "noon"


@pytest.fixture
def folder(tmp_path: Path) -> str:
    path = tmp_path / "model"
    path.mkdir()
    path.joinpath("config.json").write_text(json.dumps({"model_type": "script"}))
    return str(path)


@pytest.fixture
def session(folder: str) -> Iterator[Callable[..., Any]]:
    engines = []

    def make(script: Script, tools: Any = (clock,), rounds: int = 3, **options: Any) -> Any:
        engines.append(InferenceEngine(plugins=[script]))
        return engines[-1].load_text(folder).session(tools=tools, tool_rounds=rounds, **options)

    yield make
    for engine in engines:
        engine.close()


def results(events: Any) -> list[tuple[str, bool]]:
    return [(event.content, event.error) for event in events if isinstance(event, ToolResult)]


def test_calls_are_run_their_results_shown_and_the_whole_turn_kept(session: Any) -> None:
    script = Script([TextDelta(text="Let me look. "), *ASK], "It is noon.")
    talk = session(script)
    events = list(talk.stream("What time is it?"))
    assert [type(event).__name__ for event in events] == [
        "TextDelta",
        "ToolCall",
        "ToolResult",
        "TextDelta",
        "Finished",
    ]
    assert events[-1].usage == TokenUsage(prompt_tokens=20, completion_tokens=6)
    assert events[-1].reason == "stop"
    assert [message.role.value for message in talk.messages] == ["user", "assistant", "tool", "assistant"]
    assert script.seen[1].messages == talk.messages[:3]
    assert talk.messages[2].parts == (ToolResultPart("1", "clock", "noon"),)
    script.lines = [ASK, "Still noon."]
    assert talk.respond("And now?").text == "Still noon."
    assert [message.role.value for message in talk.undo()] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize(("calls", "then"), [(True, "auto"), (False, "none")], ids=["own", "generic"])
@pytest.mark.parametrize("choice", ["required", ToolChoice("clock")], ids=["required", "named"])
def test_a_forced_call_is_the_first_thing_that_a_user_is_answered_with_and_no_other(
    session: Any, choice: ToolChoice | str, calls: bool, then: str
) -> None:
    script = Script(ASK, "It is noon.", ASK, "Noon again.", calls=calls)
    switches = {"enable_thinking": False}
    talk = session(script, tool_choice=choice, parallel_tool_calls=False, chat_template_kwargs=switches)
    assert talk.respond("What time is it?").text == "It is noon."
    talk.tool_rounds = 0  # the calls are the caller's now
    (call,) = talk.respond("And now?").tool_calls
    talk.respond([Message.tool(ToolResultPart(call.id, call.name, "noon"))])
    talk.tool_choice = "none"
    talk.respond("Thanks.")
    assert [request.tool_choice for request in script.seen] == [choice, then, choice, then, "none"]
    assert all(request.tools == (clock,) for request in script.seen)
    assert {request.parallel_tool_calls for request in script.seen} == {False}
    assert all(request.chat_template_kwargs == switches for request in script.seen)


def test_what_was_thought_before_a_call_is_kept_and_shown_with_its_result(session: Any) -> None:
    thought = ReasoningDelta(text="I need the time.")
    script = Script([thought, *ASK], [ReasoningDelta(text="Noon."), TextDelta(text="It is noon.")])
    talk = session(script)
    talk.respond("What time is it?")
    assert script.seen[1].messages[1].reasoning == "I need the time."
    assert [item.reasoning for item in talk.messages] == ["", "I need the time.", "", "Noon."]
    assert talk.messages[1].parts[1] == ToolCallPart("1", "clock", {"zone": "utc"})


def test_a_tool_that_raises_and_calls_that_cannot_be_run_are_told_to_the_model(session: Any) -> None:
    calls = [
        ToolCall(id="1", name="clock", arguments={"zone": "mars"}),
        ToolCall(id="2", name="clock", arguments={"planet": "mars"}),
        ToolCall(id="3", name="calendar", arguments={}),
        ToolCall(id="4", name="clock", arguments=None, raw="{", error="it breaks off"),
    ]
    events = list(session(Script(calls, "Sorry.")).stream("?"))
    found = results(events)
    assert [error for _, error in found] == [True] * 4
    assert "LookupError: no zone mars" in found[0][0]
    assert "planet" in found[1][0]
    assert "There is no tool 'calendar'; there are: clock." in found[2][0]
    assert "it breaks off" in found[3][0]
    assert [event.raw for event in events if isinstance(event, ToolCall)][-1] == "{"


def test_a_tool_that_exits_ends_itself_and_not_the_program() -> None:
    def leave() -> None:
        sys.exit("no such file")

    async def leave_too() -> None:
        sys.exit(3)

    tools = [leave, leave_too]
    one, two = (ToolCall(id=tool.__name__, name=tool.__name__, arguments={}) for tool in tools)
    said = ["SystemExit: no such file", "SystemExit: 3"]
    assert [result.content for result in run_calls(tools, [one])] == said[:1]
    for found in (run_calls(tools, [one, two]), asyncio.run(run_calls_async(tools, [one, two]))):
        assert [(result.content, result.error) for result in found] == [(text, True) for text in said]


def test_calls_of_one_answer_run_side_by_side_and_answer_in_their_order(session: Any) -> None:
    together = threading.Barrier(3, timeout=20)

    def wait(number: int) -> int:
        together.wait()
        return number

    calls = [ToolCall(id=str(i), name="wait", arguments={"number": i}) for i in range(3)]
    events = list(session(Script(calls, "Done."), tools=(wait,)).stream("?"))
    assert [content for content, _ in results(events)] == ["0", "1", "2"]


def test_the_rounds_are_bounded_and_what_is_left_is_the_callers(session: Any) -> None:
    endless = Script(ASK)
    reply = session(endless, rounds=2).respond("?")
    assert len(endless.seen) == 3
    assert (reply.finish_reason, len(reply.tool_calls)) == ("tool_calls", 1)
    own = Script(ASK)
    assert session(own, rounds=0).respond("?").tool_calls == tuple(ASK)
    assert len(own.seen) == 1


def test_calls_of_a_tool_that_is_only_described_are_left_to_the_caller(session: Any) -> None:
    described = {"type": "function", "function": {"name": "remote", "parameters": {"type": "object"}}}
    script = Script([*ASK, ToolCall(id="2", name="remote", arguments={})], "Fine.")
    talk = session(script, tools=(clock, described))
    assert [call.name for call in talk.respond("?").tool_calls] == ["clock", "remote"]
    answers = [
        Message.tool(ToolResultPart(id=i, name=n, content="ok")) for i, n in (("1", "clock"), ("2", "remote"))
    ]
    assert talk.respond(answers).text == "Fine."


def test_a_turn_that_is_cancelled_while_a_tool_runs_leaves_no_trace(session: Any) -> None:
    streams: list[Any] = []

    def leave() -> str:
        streams[0].cancel()
        return "too late"

    script = Script([ToolCall(id="1", name="leave", arguments={})], "Never said.")
    talk = session(script, tools=(leave,))
    streams.append(talk.stream("?"))
    with pytest.raises(CancelledError):
        list(streams[0])
    assert talk.messages == ()
    assert len(script.seen) == 1
    script.lines = ["Hello."]
    assert talk.respond("again").text == "Hello."


def test_an_interrupt_within_a_tool_ends_the_turn_and_not_the_session(session: Any) -> None:
    def stop() -> str:
        raise KeyboardInterrupt

    script = Script([ToolCall(id="1", name="stop", arguments={})], "Hello.")
    talk = session(script, tools=(stop,))
    with pytest.raises(KeyboardInterrupt):
        talk.respond("?")
    assert talk.messages == ()
    assert talk.respond("again").text == "Hello."


def test_several_answers_and_negative_rounds_are_refused(session: Any) -> None:
    talk = session(Script(ASK))
    with pytest.raises(InvalidParameterError, match="one answer"):
        talk.respond("?", GenerateParams(n=2))
    assert talk.messages == ()
    with pytest.raises(InvalidParameterError, match="tool_rounds"):
        session(Script(ASK), rounds=-1)


def test_the_async_session_awaits_coroutine_tools_and_runs_the_others_in_threads(folder: str) -> None:
    loops: list[int] = []

    async def soon(zone: str) -> str:
        await asyncio.sleep(0)
        loops.append(threading.get_ident())
        return f"noon in {zone}"

    async def broken() -> str:
        raise LookupError("nothing")

    calls = [
        ToolCall(id="1", name="soon", arguments={"zone": "utc"}),
        ToolCall(id="2", name="clock", arguments={"zone": "utc"}),
        ToolCall(id="3", name="broken", arguments={}),
        ToolCall(id="4", name="soon", arguments=None, error="unreadable"),
    ]

    async def talk() -> None:
        async with AsyncInferenceEngine(plugins=[Script(calls, "Done.")]) as engine:
            model = await engine.load_text(folder)
            made = model.session(tools=[soon, clock, broken], tool_rounds=1)
            events = [event async for event in made.stream("?")]
            found = results(events)
            assert found[:2] == [("noon in utc", False), ("noon", False)]
            assert found[2] == ("LookupError: nothing", True)
            assert "unreadable" in found[3][0]
            assert loops == [threading.get_ident()]
            assert isinstance(made.messages[1].parts[0], ToolCallPart)
            assert made.messages[-1].text == "Done."

    asyncio.run(talk())


def test_a_session_without_asyncio_runs_coroutine_functions_too(session: Any) -> None:
    async def clock(zone: str) -> str:
        """The time."""
        await asyncio.sleep(0)
        return f"noon in {zone}"

    assert results(session(Script(ASK, "Fine."), tools=[clock]).stream("x")) == [("noon in utc", False)]


def test_a_described_tool_is_shown_as_it_says_and_its_pictures_go_along() -> None:
    described = {"name": "clock", "description": "Looks.", "parameters": {"type": "object"}}
    tool = DescribedTool(described, lambda zone: ["at noon", {"zone": zone}, ImagePart("clock.png")])
    assert describe(tool) == {"name": "clock", "description": "Looks.", "parameters": {"type": "object"}}
    assert can_run([tool], ASK)
    (result,) = run_calls([tool], ASK)
    assert (result.content, result.error) == ('at noon\n{"zone": "utc"}', False)
    assert result.images == (ImagePart("clock.png"),)
    (plain,) = run_calls([DescribedTool(described, lambda zone: [zone, 2])], ASK)
    assert (plain.content, plain.images) == ('["utc", 2]', ())


def test_ctrl_c_does_not_wait_for_tools_that_run_and_drops_the_turn(session: Any) -> None:
    begun, free = threading.Semaphore(0), threading.Event()
    ended: list[bool] = []

    def wait() -> str:
        """Wait."""
        begun.release()
        ended.append(free.wait(60))
        return "waited"

    def interrupt() -> None:
        begun.acquire()
        begun.acquire()
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # as a terminal's reaches it

    calls = [ToolCall(id=str(number), name="wait", arguments={}) for number in range(2)]
    talk = session(Script(calls, "Fine."), tools=[wait])
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            talk.respond("x")
        assert ended == []
        assert talk.messages == ()
    finally:
        free.set()
    assert talk.respond("y").text == "Fine."
