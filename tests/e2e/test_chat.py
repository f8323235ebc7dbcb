"""`mlxengine chat` with tools, MCP servers, another model and pictures, in a terminal and through pipes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest
from mlxengine import InferenceEngine
from mlxengine.errors import InvalidParameterError
from mlxengine.text.tool_files import tools_of
from mlxengine_echo import write_model
from PIL import Image, ImageDraw

from tests.hub import weights
from tests.unit.planted import mcp_server

from .conftest import Ran

Run = Callable[..., Ran]
Terminal = Callable[..., pexpect.spawn]
REAL = {"MLXENGINE_FEATURES": ""}
PLANTED = f"{sys.executable} {mcp_server.__file__}"
TOOLS = '''
import asyncio, time
from mlxengine import ImagePart


def weather(city: str) -> str:
    """The weather in a city.

    city: its name
    """
    return f"sunny in {city}\\nand dry"


async def soon(seconds: float) -> str:
    """Wait a little."""
    await asyncio.sleep(seconds)
    return "waited"


def slow(seconds: float) -> str:
    """Wait."""
    time.sleep(seconds)
    return "waited"


def broken() -> str:
    """Break."""
    raise LookupError("no\\x1b[31m luck")


def see() -> list:
    """See."""
    return ["a cat", ImagePart("cat.png")]


def _hidden() -> str:
    return "no"
'''


@pytest.fixture
def echo(tmp_path: Path) -> str:
    folder = tmp_path / "echo"
    folder.mkdir()
    return str(write_model(folder))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_tools.py"
    path.write_text(TOOLS)
    return path


def lines(done: Ran) -> list[dict[str, object]]:
    return [json.loads(line) for line in done.out.splitlines()]


def finish(child: pexpect.spawn) -> int | None:
    child.expect("> ")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus


def test_a_person_sees_each_call_and_allows_or_refuses_it(
    terminal: Terminal, echo: str, file: Path, tmp_path: Path
) -> None:
    child = terminal("chat", "-m", echo, "--tools", str(file), **REAL)
    child.expect("> ")
    child.sendline('weather {"city": "Graz"}')
    child.expect_exact('  weather {"city": "Graz"}')
    child.expect_exact("run it? [y]es, [N]o, [a]lways this tool: ")
    child.sendline("")
    child.expect_exact("→ error: The user refused this call.")
    child.expect_exact("The user refused this call.\r\n")
    child.expect("> ")
    child.sendline('weather {"city": "Wien"}')
    child.expect_exact("this tool: ")
    child.sendline("a")
    child.expect_exact("→ sunny in Wien and dry")
    child.expect_exact("sunny in Wien\r\nand dry")
    child.expect("> ")
    child.sendline('weather {"city": "Linz"}')
    child.expect_exact("→ sunny in Linz and dry")  # it was allowed for good
    child.expect("> ")
    child.sendline("broken {}")
    child.expect_exact("this tool: ")
    child.sendline("yes")
    child.expect_exact("→ error: LookupError: no\\x1b[31m luck")
    child.expect("> ")
    child.sendline("weather {oops}")
    child.expect_exact("→ error: The call could not be read")
    child.expect("> ")
    child.sendline(f"/save {tmp_path / 'talk.json'}")
    assert finish(child) == 0
    saved = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [message["role"] for message in saved[:4]] == ["user", "assistant", "tool", "assistant"]
    assert saved[2]["parts"][0]["content"] == "The user refused this call."
    history = (tmp_path / "state/mlxengine/chat_history").read_text().splitlines()
    assert "a" not in history
    assert "yes" not in history


@pytest.mark.parametrize("when", ["asked", "runs", "runs at a server"])
def test_ctrl_c_about_a_tool_drops_the_turn_and_keeps_the_conversation(
    terminal: Terminal, echo: str, file: Path, when: str
) -> None:
    allowed = [] if when == "asked" else ["--yes"]
    child = terminal("chat", "-m", echo, "--tools", str(file), "--mcp", PLANTED, *allowed, **REAL)
    child.expect("> ")
    child.sendline("hello")
    child.expect_exact("hello\r\nhello\r\n")
    child.expect("> ")
    name = "wait" if when == "runs at a server" else "slow"
    child.sendline(f'{name} {{"seconds": 60}}')
    child.expect_exact("this tool: " if when == "asked" else f'  {name} {{"seconds": 60}}')
    time.sleep(0.2)
    child.sendintr()
    child.expect_exact("(stopped; this turn is forgotten)")
    child.expect("> ")
    child.sendline("/undo")
    child.expect_exact("(forgotten: hello)")
    child.expect("> ")
    child.sendline("/undo")
    child.expect_exact("(there is nothing to forget)")
    if when == "runs at a server":
        child.expect("> ")
        child.sendline('die {"code": 0}')
        child.expect_exact("the call was cancelled")
    assert finish(child) == 0


def test_without_a_terminal_calls_are_run_with_yes_and_each_answer_tells_them(
    run: Run, echo: str, file: Path
) -> None:
    words = ("chat", "-m", echo, "--tools", str(file), "--json")
    said = 'weather {"city": "Graz"}\nsoon {"seconds": 0}\nsee {}\nhello\n/tools\n'
    done = run(*words, "--yes", input=said, **REAL)
    first, second, third, fourth, tools = lines(done)
    made = {"name": "weather", "arguments": {"city": "Graz"}, "result": "sunny in Graz\nand dry"}
    assert first["tool_calls"] == [{**made, "error": False}]
    assert first["text"] == "sunny in Graz\nand dry"
    assert second["text"] == "waited"
    assert third["text"] == "a cat\n(a picture, which this model cannot see)"
    assert (fourth["text"], fourth["tool_calls"]) == ("hello", [])
    names = [tool["name"] for tool in tools["tools"]]
    assert names == ["weather", "soon", "slow", "broken", "see"]
    piped = run("chat", "-m", echo, "--tools", str(file), "--yes", input='weather {"city": "Graz"}', **REAL)
    assert piped.out == "sunny in Graz\nand dry\n"
    assert '  weather {"city": "Graz"}\n  → sunny in Graz and dry\n' in piped.err


def test_one_question_may_come_with_tools_whose_calls_are_told_and_not_run(
    run: Run, echo: str, file: Path, tmp_path: Path
) -> None:
    file.write_text(f"{TOOLS}\ndef touch(name: str) -> None:\n    open(name, 'w').close()\n")
    words = ("run", "-m", echo, "--tools", str(file))
    mark = tmp_path / "touched"
    question = f"touch {json.dumps({'name': str(mark)})}"
    assert run(*words, question, **REAL).out == f"{question}\n"
    done = run(*words, "--json", question, **REAL)
    (call,) = done.json["tool_calls"]
    assert (call["name"], call["arguments"]) == ("touch", {"name": str(mark)})
    assert (done.json["text"], done.json["finish_reason"]) == ("", "tool_calls")
    assert not mark.exists()
    assert run(*words, "--json", "hello", **REAL).json["tool_calls"] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tool-choice", "weather"), "needs tools"),
        (("--tools", "nowhere.py"), "There is no file nowhere.py"),
        (("--tool-choice", "required"), "needs tools"),
    ],
)
def test_a_question_that_names_tools_which_are_not_there_is_refused(
    run: Run, echo: str, words: tuple[str, ...], said: str
) -> None:
    done = run("run", "-m", echo, *words, "--json", "hello", **REAL)
    assert done.code == 2
    assert said in done.json["error"]["message"]


@pytest.mark.parametrize("tool", [("--tools", "x.py"), ("--mcp", "x")])
def test_without_a_terminal_and_yes_tools_are_refused(call: Run, tool: tuple[str, str]) -> None:
    done = call("chat", *tool, "--json")
    assert (done.code, done.json["error"]["type"]) == (2, "UsageError")
    assert "--yes" in done.json["error"]["hint"]


def test_a_turn_in_which_the_model_never_stops_calling_ends(run: Run, echo: str, tmp_path: Path) -> None:
    again = tmp_path / "again.py"
    again.write_text("def again() -> str:\n    return 'x'\n")
    plugin = tmp_path / "site"
    info = plugin / "mlxengine_caller-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mlxengine-caller\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mlxengine]\ncaller = mlxengine_caller\n")
    (plugin / "mlxengine_caller.py").write_text(CALLER)
    folder = tmp_path / "caller"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "caller"}')
    words = ("chat", "-m", str(folder), "--tools", str(again), "--yes", "--json", "-q")
    done = run(*words, input="go\n", PYTHONPATH=str(plugin), **REAL)
    assert (done.code, done.json["error"]["type"]) == (6, "GenerationError")
    assert "25 times" in done.json["error"]["message"]


CALLER = """
from mlxengine import Claim, Finished, FinishReason, Fit, Loaded, ToolCall, hookimpl


@hookimpl
def claim_model(card):
    if card.architecture == "caller":
        return Claim(kind="llm", fit=Fit.NATIVE, files=("config.json",), uses_mlx=False)


@hookimpl
def load_model(card):
    return Loaded(model="caller")


@hookimpl
def generate(model, request):
    return answer() if model == "caller" else None


def answer():
    yield ToolCall(id="1", name="again", arguments={})
    yield Finished(reason=FinishReason.TOOL_CALLS)
"""


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        (None, "There is no file", "--tools"),
        ("def f(:\n", "line 1: SyntaxError: ", "Mend"),
        ("x = 1\n\nx = 1 / 0\n", "line 3: ZeroDivisionError: division by zero", "Mend"),
        ("import no_such_module\n", "line 1: ModuleNotFoundError: No module named", "Mend"),
        ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3", "Mend"),
        ("x = 1\n\ndef f(*words):\n    pass\n", "line 3: The parameter words of f cannot be given", "named"),
        ("class A: pass\n\ndef f(a: A):\n    pass\n", "line 3: The type of f(a) cannot be described", "str"),
        ("def _f(): pass\n", "has no tools", "annotations"),
        ("TOOLS = []\n", "has no tools", "annotations"),
        ("TOOLS = 5\n", "TOOLS is a list of functions, found int", "leave it out"),
        ("TOOLS = [5]\n", "TOOLS holds 5, which is no function", "annotations"),
        ("def f(): pass\nTOOLS = [f, f]\n", "Two tools are called 'f'", "rename"),
    ],
)
def test_what_is_wrong_with_a_file_of_tools_is_said_with_its_line(
    call: Run, tmp_path: Path, text: str | None, said: str, hint: str
) -> None:
    path = tmp_path / "my_tools.py"
    if text is not None:
        path.write_text(text)
    done = call("chat", "--tools", str(path), "--yes", "--json", "-q")
    assert (done.code, done.json["error"]["type"]) == (2, "InvalidParameterError")
    assert said in done.json["error"]["message"]
    assert str(path) in done.json["error"]["message"]
    assert hint in done.json["error"]["hint"]


@pytest.mark.parametrize("text", ["x = 1\n\nx = 1 / 0\n", "x = 1\n\ndef f(:\n"])
def test_the_line_is_said_of_a_file_that_is_named_from_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_tools.py").write_text(text)
    with pytest.raises(InvalidParameterError, match=r"^my_tools\.py, line 3: "):
        tools_of(Path("my_tools.py"))


def test_a_file_of_tools_may_import_what_lies_beside_it(run: Run, echo: str, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("SAID = 'from beside'\n")
    path = tmp_path / "my_tools.py"
    path.write_text(
        "from textwrap import dedent\nfrom beside import SAID\n\ndef tell() -> str:\n    return SAID\n"
    )
    done = run("chat", "-m", echo, "--tools", str(path), "--yes", "--json", input="tell {}\n/tools\n", **REAL)
    answer, tools = lines(done)
    assert answer["text"] == "from beside"
    assert [tool["name"] for tool in tools["tools"]] == ["tell"], "what is imported is no tool"


def test_mcp_servers_give_tools_by_command_and_by_their_name_in_the_configuration_file(
    run: Run, echo: str, tmp_path: Path
) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(
        f'[mcp.time]\ncommand = "{sys.executable}"\nargs = ["-m", "mcp_server_time"]\ntimeout = 30\n'
    )
    said = 'add {"first": 2, "second": 3}\nget_current_time {"timezone": "Etc/UTC"}\ndie {"code": 1}\nhello\n'
    words = ("chat", "-m", echo, "--mcp", PLANTED, "--mcp", "time", "--yes", "--json", "-q")
    done = run(*words, input=said, MLXENGINE_CONFIG=str(config), **REAL)
    first, second, third, fourth = lines(done)
    assert first["text"] == "5"
    assert '"timezone": "Etc/UTC"' in str(second["text"])
    assert "has ended. It wrote: " in str(third["text"])
    assert "this is the end" in str(third["text"])
    assert fourth["text"] == "hello"
    assert done.err == ""


@pytest.mark.parametrize(
    ("words", "code", "kind", "said"),
    [
        ("no-such-program x", 2, "InvalidParameterError", "no program 'no-such-program'"),
        ("'", 2, "UsageError", "no command line"),
        ("", 2, "InvalidParameterError", "no program ''"),
        (f"{PLANTED} early", 6, "ToolServerError", "no key was given"),
    ],
)
def test_a_server_that_cannot_be_used_is_an_error_before_the_model_is_loaded(
    call: Run, words: str, code: int, kind: str, said: str
) -> None:
    done = call("chat", "-m", "/no/such/model", "--mcp", words, "--yes", "--json", "-q")
    assert (done.code, done.json["error"]["type"]) == (code, kind)
    assert said in done.json["error"]["message"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[mcp.time]\n", "mcp.time has no command"),
        ('[mcp.time]\ncomand = "x"\n', "mcp.time.comand is not a known key"),
        ('[mcp.time]\ncommand = "x"\nargs = [1]\n', "mcp.time.args must hold texts only"),
        ('[mcp.time]\ncommand = "x"\nenv = {A = 1}\n', "mcp.time.env must hold texts only"),
        ('[mcp.time]\ncommand = "x"\ntimeout = "long"\n', "mcp.time.timeout must be a number"),
        ("[mcp]\ntime = 1\n", "mcp.time must be a table"),
    ],
)
def test_a_wrong_table_of_a_server_is_said_with_its_place(
    call: Run, tmp_path: Path, text: str, said: str
) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(text)
    done = call("chat", "--json", MLXENGINE_CONFIG=str(config))
    assert done.code == 2
    assert said in done.json["error"]["message"]


def test_the_history_goes_on_with_another_model(run: Run, echo: str, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_model(other)
    talk = tmp_path / "talk.json"
    words = ("chat", "-m", echo, "--tools", str(file), "--yes", "--json", "-q", "--system", "Be brief.")
    said = [
        "one",
        f"/model {other}",
        'weather {"city": "Graz"}',
        "/model /no/such/model",
        "/model x/embed",
        f"/model {other}",
        "/image cat.png",
        "/modle",
        f"/save {talk}",
        "/clear",
        f"/load {talk}",
        'weather {"city": "Wien"}',
        f"/save {talk}",
    ]
    done = run(*words, input="\n".join(said) + "\n", **REAL)
    found = [item.get("text") or item["error"]["type"] for item in lines(done)]
    assert found == [
        "one",
        "sunny in Graz\nand dry",
        "ModelNotFoundError",
        "OfflineError",
        "UnsupportedInputError",
        "InvalidParameterError",
        "sunny in Wien\nand dry",
    ]
    assert lines(done)[5]["error"]["hint"] == "Did you mean /model?"
    saved = json.loads(talk.read_text())
    assert saved["instructions"] == "Be brief."
    assert [item["role"] for item in saved["messages"]] == [
        "user",
        "assistant",
        *["user", "assistant", "tool", "assistant"] * 2,
    ]


def test_what_a_file_says_to_the_template_is_said_to_another_model_too(
    run: Run, echo: str, tmp_path: Path
) -> None:
    talk = tmp_path / "talk.json"
    with InferenceEngine() as engine, engine.load_text(echo) as model:
        model.session(chat_template_kwargs={"enable_thinking": False}).save(talk)
    said = [f"/load {talk}", f"/model {echo}", f"/save {talk}"]
    assert run("chat", "-m", echo, "--json", "-q", input="\n".join(said) + "\n", **REAL).code == 0
    assert json.loads(talk.read_text())["chat_template_kwargs"] == {"enable_thinking": False}


def test_ctrl_c_while_another_model_loads_keeps_the_one_that_is_there(terminal: Terminal, echo: str) -> None:
    child = terminal("chat", "-m", echo, **REAL)
    child.expect("> ")
    child.sendline("hello")
    child.expect("> ")
    child.sendline(f"/model {weights.folder_of(weights.SMOLLM2)}")
    child.expect_exact("load")
    child.sendintr()
    child.expect_exact("(stopped)")
    child.expect("> ")
    child.sendline("/model")
    child.expect_exact("echo)")
    child.expect("> ")
    child.sendline("still here")
    child.expect_exact("still here\r\nstill here")
    assert finish(child) == 0


@pytest.mark.parametrize("typed", [False, True], ids=["--load", "/load"])
def test_what_the_command_line_says_goes_before_what_was_saved(
    run: Run, tmp_path: Path, *, typed: bool
) -> None:
    talk = tmp_path / "talk.json"
    words = ("chat", "--json", "-q")
    run(*words, "--system", "Be brief.", "--seed", "3", "--temperature", "0.5", input=f"one\n/save {talk}\n")
    option, line = ((), f"/load {talk}\n") if typed else (("--load", str(talk)), "")
    run(*words, *option, "--system", "Be long.", "--seed", "4", input=f"{line}two\n/save {talk}\n")
    saved = json.loads(talk.read_text())
    assert (saved["instructions"], saved["params"]) == ("Be long.", {"seed": 4, "temperature": 0.5})
    assert len(saved["messages"]) == 4


def test_a_home_folder_in_the_name_of_a_file_is_understood(run: Run, tmp_path: Path) -> None:
    done = run(
        "chat", "--json", "-q", input="one\n/save ~/talk.json\n/load ~/talk.json\n", HOME=str(tmp_path)
    )
    assert done.code == 0, done.out
    assert (tmp_path / "talk.json").exists()


def test_a_real_conversation_goes_on_with_another_model_and_from_a_file(
    run: Run, echo: str, tmp_path: Path
) -> None:
    talk, question = tmp_path / "talk.json", "What is the capital of France?"
    said = [
        "Good morning.",
        f"/model {weights.folder_of(weights.SMOLLM2)}",
        question,
        f"/save {talk}",
        "/clear",
        question,
        f"/load {talk}",
        "And of Italy?",
    ]
    words = ("chat", "-m", echo, "--max-tokens", "8", "--temperature", "0", "--json", "-q")
    echoed, after, alone, loaded = lines(run(*words, input="\n".join(said) + "\n", **REAL))
    assert echoed["text"] == "Good morning."
    assert "Paris" in str(alone["text"])
    read = [item["usage"]["prompt_tokens"] for item in (alone, after, loaded)]
    assert read[0] < read[1] < read[2] - 8, "each was shown all that was said before"


def test_a_picture_is_seen_in_its_turn_and_stays_in_the_conversation(run: Run, tmp_path: Path) -> None:
    model = weights.folder_of(weights.TINY_VLM)
    picture = Image.new("RGB", (64, 64), (128, 128, 128))
    ImageDraw.Draw(picture).polygon([(32, 23), (23, 39), (41, 39)], (220, 30, 30))
    picture.save(tmp_path / "red.png")
    said = [
        f"/image {tmp_path / 'absent.png'}",
        f"/image {tmp_path / 'red.png'}",
        "What shape is this?",
        f"/save {tmp_path / 'talk.json'}",
    ]
    words = ("chat", "-m", str(model), "--temperature", "0", "--max-tokens", "8", "--json", "-q")
    absent, answer = lines(run(*words, input="\n".join(said) + "\n", **REAL))
    assert absent["error"]["type"] == "InvalidParameterError"
    assert answer["text"].strip() == "triangle"
    saved = json.loads((tmp_path / "talk.json").read_text())["messages"][0]["parts"]
    assert saved[0] == {"type": "image", "source": {"path": str(tmp_path / "red.png")}}


def test_a_picture_that_cannot_be_read_fails_its_own_turn_only(run: Run, tmp_path: Path) -> None:
    model = weights.folder_of(weights.TINY_VLM)
    (tmp_path / "no.png").write_text("no picture")
    words = ("chat", "-m", str(model), "--temperature", "0", "--max-tokens", "4", "--json", "-q")
    said = [f"/image {tmp_path / 'no.png'}", "What is this?", "Two and two?", f"/image {tmp_path / 'no.png'}"]
    refused, answer, after = lines(run(*words, input="\n".join([*said, "/clear", "One?"]) + "\n", **REAL))
    assert refused["error"]["type"] == "UnsupportedInputError"
    assert answer["finish_reason"] in ("stop", "length")
    assert after["finish_reason"] in ("stop", "length")
