"""MCP servers, run as processes, give their tools to sessions, and none outlives its user."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlxengine import AsyncInferenceEngine, InferenceEngine, ToolCallPart, ToolResult
from mlxengine.errors import (
    ConfigurationError,
    InvalidParameterError,
    MisuseError,
    MLXEngineError,
    ToolError,
    ToolServerError,
)
from mlxengine.text.mcp import ToolServer, mcp_tools
from mlxengine.text.tools import DescribedTool, call, describe
from mlxengine_echo import write_model

from .planted import mcp_server

PLANTED = str(Path(mcp_server.__file__))
TIME = ["-m", "mcp_server_time"]


def planted(*words: str, timeout: float = 60.0, start_timeout: float = 60.0) -> ToolServer:
    return mcp_tools(sys.executable, [PLANTED, *words], timeout=timeout, start_timeout=start_timeout)


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[DescribedTool, ...]]:
    """The tools of one server for all tests that leave it as it is; it writes junk to stdout first."""
    with planted("junk") as tools:
        yield tools


def named(tools: tuple[DescribedTool, ...]) -> dict[str, DescribedTool]:
    return {tool.__name__: tool for tool in tools}


def living() -> list[tuple[int, str]]:
    """Group and command line of every process that runs."""
    words = ["ps", "-axwwo", "pgid=,stat=,command="]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    found = [line.split(maxsplit=2) for line in lines]
    return [(int(pgid), command) for pgid, state, command in found if not state.startswith("Z")]


def groups(mark: str) -> set[int]:
    """The groups of processes, other than ours, with a word on their command line."""
    return {pgid for pgid, command in living() if mark in command} - {os.getpgid(0)}


def members(found: set[int]) -> list[str]:
    return [command for pgid, command in living() if pgid in found]


def soon(true: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_a_session_uses_the_tools_of_a_server_from_an_index(tmp_path: Path) -> None:
    with InferenceEngine() as engine, mcp_tools(sys.executable, TIME) as tools:
        echo = engine.load_text(write_model(tmp_path))
        session = echo.session(tools=tools, tool_rounds=2)
        asked = '{"source_timezone": "Asia/Tokyo", "time": "09:00", "target_timezone": "Asia/Kolkata"}'
        events = list(session.stream(f"convert_time {asked}"))
        wrong = list(session.stream('get_current_time {"timezone": "Mars"}'))
    assert sorted(named(tools)) == ["convert_time", "get_current_time"]
    result = next(event for event in events if isinstance(event, ToolResult))
    assert not result.error
    assert "05:30:00+05:30" in result.content
    assert "05:30:00+05:30" in session.messages[3].text, "the model was shown it"
    assert [message.role.value for message in session.messages[:4]] == [
        "user", "assistant", "tool", "assistant",
    ]  # fmt: skip
    failed = next(event for event in wrong if isinstance(event, ToolResult))
    assert failed.error
    assert "Invalid timezone" in failed.content


def test_asyncio_has_coroutine_functions_that_run_side_by_side(tmp_path: Path) -> None:
    async def main() -> tuple[list[str], float, ToolResult]:
        async with AsyncInferenceEngine() as engine, planted() as tools:
            wait = named(tools)["wait"]
            start = time.monotonic()
            answers = await asyncio.gather(*(wait(seconds=0.5) for _ in range(4)))
            took = time.monotonic() - start
            echo = await engine.load_text(write_model(tmp_path))
            session = echo.session(tools=tools, tool_rounds=1)
            events = [event async for event in session.stream('add {"first": 2, "second": 40}')]
            return answers, took, next(event for event in events if isinstance(event, ToolResult))

    answers, took, result = asyncio.run(main())
    assert answers == ["waited"] * 4
    assert took < 1.5
    assert (result.content, result.error) == ("42", False)


def test_threads_may_call_at_once(shared: tuple[DescribedTool, ...]) -> None:
    with ThreadPoolExecutor(8) as pool:
        add = named(shared)["add"]
        found = list(pool.map(lambda number: add(first=number, second=1), range(40)))
    assert found == [str(number + 1) for number in range(40)]


def test_a_tool_is_described_by_the_server_s_own_schema(shared: tuple[DescribedTool, ...]) -> None:
    said = describe(named(shared)["add"])["function"]
    assert said["description"] == "Add two numbers."
    assert said["parameters"]["required"] == ("first", "second")
    assert said["parameters"]["properties"]["first"]["type"] == "integer"


def test_a_picture_that_a_tool_returns_is_in_its_result(shared: tuple[DescribedTool, ...]) -> None:
    result = call(shared, ToolCallPart("1", "look", {}))
    assert result.content == "a pixel"
    assert [image.source for image in result.images] == [mcp_server.PIXEL]


def test_every_page_of_tools_is_listed_and_every_kind_of_content_is_told() -> None:
    with planted("pages") as tools:
        assert list(named(tools)) == ["page0", "page1", "page2"]
        assert named(tools)["page0"]() == "a text\na file\nb: file:///b\n(audio/wav, which cannot be shown)"
        assert named(tools)["page2"]() == '{"page": "page2"}'


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [("fail", {"why": "it rains"}, "it rains"), ("add", {"first": "many"}, "first")],
)
def test_a_call_that_fails_is_an_error_and_the_server_goes_on(
    shared: tuple[DescribedTool, ...], name: str, arguments: dict[str, object], said: str
) -> None:
    with pytest.raises(ToolError, match=said) as caught:
        named(shared)[name](**arguments)
    assert not isinstance(caught.value, ToolServerError)
    result = call(shared, ToolCallPart("1", name, arguments))
    assert (result.error, said in result.content) == (True, True)
    assert named(shared)["add"](first=1, second=2) == "3"


def test_a_call_ends_when_its_time_is_over_and_the_server_goes_on() -> None:
    with planted(timeout=1) as tools:
        with pytest.raises(ToolError, match="wait did not answer within 1 s"):
            named(tools)["wait"](seconds=30)
        assert named(tools)["add"](first=1, second=2) == "3"


def test_a_server_that_dies_ends_the_calls_that_run_and_all_later_ones_with_a_typed_error() -> None:
    with planted() as tools, ThreadPoolExecutor(1) as pool:
        running = pool.submit(named(tools)["wait"], seconds=30)
        time.sleep(0.3)
        with pytest.raises(ToolServerError, match="this is the end"):
            named(tools)["die"](code=3)
        with pytest.raises(ToolServerError):
            running.result(timeout=10)
        for _ in range(2):
            with pytest.raises(ToolServerError, match="has ended"):
                named(tools)["add"](first=1, second=2)


def test_a_tool_of_a_server_that_was_left_is_an_error_and_so_is_entering_it_again() -> None:
    server = planted()
    with server as tools:
        add = named(tools)["add"]
    with pytest.raises(ToolServerError, match="has ended"):
        add(first=1, second=2)
    with pytest.raises(MisuseError, match="once"), server:
        raise AssertionError("it began")


def test_leaving_the_block_ends_the_calls_that_run_with_a_typed_error() -> None:
    async def main() -> None:
        async with planted() as tools:
            waiting = asyncio.create_task(named(tools)["wait"](seconds=30))
            await asyncio.sleep(0.3)
        with pytest.raises(ToolServerError, match="has ended"):
            await asyncio.wait_for(waiting, 10)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("words", "said"), [("early", "no key was given"), ("mute", "did not list its tools within 1 s")]
)
def test_a_server_that_does_not_begin_is_a_typed_error_and_leaves_no_process(words: str, said: str) -> None:
    mark = f"mark-{os.getpid()}-{words}"
    patience = 1 if words == "mute" else 60
    with pytest.raises(ToolServerError, match=said) as caught, planted(words, mark, start_timeout=patience):
        raise AssertionError("it began")
    assert caught.value.hint
    assert soon(lambda: not groups(mark), 2)


@pytest.mark.parametrize(
    ("command", "arguments", "error"),
    [
        ("no-such-program", {}, InvalidParameterError),
        ("sh", {"timeout": 0}, InvalidParameterError),
        ("sh", {"start_timeout": -1.0}, InvalidParameterError),
    ],
)
def test_what_cannot_be_started_is_refused_before(
    command: str, arguments: dict[str, float], error: type[MLXEngineError]
) -> None:
    with pytest.raises(error) as caught:
        mcp_tools(command, **arguments)
    assert caught.value.message


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(ConfigurationError) as caught:
        mcp_tools("sh")
    assert "mlxengine[mcp]" in str(caught.value.hint)


def test_the_server_gets_no_variable_that_was_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with mcp_tools(sys.executable, [PLANTED], env={"PLANTED": "yes"}) as tools:
        variable = named(tools)["variable"]
        found = [variable(name=name) for name in ("HF_TOKEN", "PLANTED", "PATH")]
    assert found == ["not set", "yes", os.environ["PATH"]]


STUBBORN = pytest.param("stubborn", marks=pytest.mark.slow)  # it is given seconds to end by itself


@pytest.mark.parametrize("words", ["", STUBBORN])
def test_leaving_the_block_ends_the_server_whatever_it_does(words: str) -> None:
    mark = f"mark-{os.getpid()}-left{words}"
    with planted(words, mark):
        server = groups(mark)
        assert len(members(server)) >= 3, "the server, what feeds it, and what keeps both"
    assert members(server) == []


USER = """
import sys, time
from mlxengine.text.mcp import mcp_tools
try:
    with mcp_tools(sys.executable, sys.argv[1:]) as tools:
        print("begun", flush=True)
        {tool.__name__: tool for tool in tools}["wait"](seconds=20)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (signal.SIGINT, ""),
        (signal.SIGKILL, "stubborn"),
        *(
            pytest.param(sent, words, marks=pytest.mark.slow)
            for sent, words in [
                (signal.SIGINT, "stubborn"),
                (signal.SIGTERM, ""),
                (signal.SIGTERM, "stubborn"),
                (signal.SIGKILL, ""),
            ]
        ),
    ],
)
def test_no_process_is_left_when_its_user_is_interrupted_or_killed(sent: signal.Signals, words: str) -> None:
    mark = f"mark-{os.getpid()}-{sent.name}{words}"
    command = [sys.executable, "-c", USER, PLANTED, words, mark]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == "begun\n"
        server = groups(mark)
        assert members(server)
        user.send_signal(sent)
        user.wait(timeout=10)
        assert user.stdout.read() == ("interrupted\n" if sent == signal.SIGINT else "")
    assert soon(lambda: not members(server), 12)


def test_a_call_that_is_given_up_is_cancelled_at_the_server() -> None:
    async def main() -> str:
        server = planted()
        async with server as tools:
            task = asyncio.create_task(named(tools)["wait"](seconds=30))
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await named(tools)["add"](first=1, second=2) == "3"
            with pytest.raises(ToolServerError) as caught:
                await named(tools)["die"](code=0)
            return str(caught.value)

    assert "the call was cancelled" in asyncio.run(main())
