"""Every verb as a person drives it, in a real terminal, and as a script does, through pipes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from tests.hub import weights
from tests.starts import processor_seconds

from .conftest import COMMAND, Ran

Run = Callable[..., Ran]
Terminal = Callable[..., pexpect.spawn]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
VERBS = [
    ("--help",),
    ("models",),
    ("models", "smollm2", "--max-size", "1B"),
    ("plugins",),
    ("features",),
    ("features", "core.mock"),
    ("doctor",),
    ("run", "hello"),
    ("bench", "-m", "x/y", "--repeats", "2"),
    ("setup", "--yes"),
    ("setup", "-m", "x/y", "--no-answer"),
    ("ps",),
    ("recommend", "--memory-budget", "8GB"),
    ("recommend", "embed", "--task", "rerank", "--memory-budget", "8GB"),
    ("ls",),
    ("du",),
    ("models", "--help"),
    ("run", "--help"),
]


@pytest.fixture(scope="session")
def model() -> Path:
    return weights.folder_of(weights.SMOLLM2)


def finish(child: pexpect.spawn) -> tuple[int | None, str]:
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus, child.before


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_a_verb_in_a_terminal_stays_within_80_columns(terminal: Terminal, words: tuple[str, ...]) -> None:
    code, shown = finish(terminal(*words))
    assert code == 0, shown
    assert "Traceback" not in shown
    lines = [line.split("\r")[-1] for line in ESCAPES.sub("", shown).split("\r\n")]
    assert max(map(len, lines)) <= 80, max(lines, key=len)


@pytest.mark.parametrize("words", [*VERBS[:-2], ("--version",)], ids=" ".join)
def test_json_is_one_valid_value_on_stdout(call: Run, words: tuple[str, ...]) -> None:
    done = call(*words, "--json")
    assert done.code == 0, done.err
    assert isinstance(done.json, dict)


@pytest.mark.parametrize(
    ("words", "code", "kind"),
    [
        (("nonsense",), 2, "UsageError"),
        (("models", "--nonsense"), 2, "UsageError"),
        (("run", "--max-tokens", "many", "x"), 2, "UsageError"),
        (("run", "--max-tokens", "0", "x"), 2, "InvalidParameterError"),
        (("run", "--feature", "llm.nonsense", "x"), 2, "UnknownFeatureError"),
        (("run", "-m", "not an id", "x"), 2, "InvalidModelRefError"),
        (("models", "--min-size", "big"), 2, "InvalidParameterError"),
        (("features", "llm.nonsense"), 2, "UnknownFeatureError"),
        (("plugins", "nonsense"), 3, "NoPluginForModelError"),
        (("run", "-m", "x/diffusion", "x"), 2, "InvalidParameterError"),
        (("run", "-m", "x/y", "x", "--steps", "4"), 2, "UsageError"),
        (("run", "-m", "x/diffusion", "x", "-o", "/no/such/folder/x.png"), 2, "InvalidParameterError"),
        (("recommend", "nonsense"), 2, "InvalidParameterError"),
        (("recommend", "llm", "--task", "chatt"), 2, "InvalidParameterError"),
        (("recommend", "llm", "--memory-budget", "0"), 2, "InvalidParameterError"),
        (("recommend", "llm", "--memory-budget", "1MB"), 3, "ModelNotFoundError"),
        (("bench", "--repeats", "0"), 2, "UsageError"),
        (("bench", "--compare", "/no/such/file"), 2, "ConfigurationError"),
        (("chat", "-m", "x/embed"), 2, "InvalidParameterError"),
        (("chat", "--load", "/no/such/file"), 2, "ConfigurationError"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_an_error_has_its_exit_code_in_words_and_as_json(
    call: Run, words: tuple[str, ...], code: int, kind: str
) -> None:
    spoken = call(*words, "--quiet")
    assert spoken.code == code
    assert spoken.out == ""
    assert spoken.err.startswith("error: ")
    found = call(*words, "--json", "--quiet")
    assert found.code == code
    error = found.json["error"]
    assert (error["type"], error["exit_code"]) == (kind, code)
    assert error["message"]


@pytest.mark.parametrize(
    ("words", "code", "kind"),
    [
        (("run", "-m", "no/such-model", "x"), 3, "OfflineError"),
        (("run", "-m", "/no/such/folder", "x"), 3, "ModelNotFoundError"),
        (("run", "x"), 3, "ModelNotFoundError"),
        (("run", "-m", "auto:nonsense", "x"), 2, "InvalidParameterError"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_without_the_mock_a_model_that_is_not_there_is_a_resolution_error(
    call: Run, words: tuple[str, ...], code: int, kind: str
) -> None:
    done = call(*words, "--json", "--quiet", MLXENGINE_FEATURES="")
    assert (done.code, done.json["error"]["type"]) == (code, kind)


def test_without_a_model_here_run_says_which_one_to_pull(run: Run) -> None:
    done = run("run", "x", MLXENGINE_FEATURES="")
    assert done.code == 3
    assert "mlxengine pull " in " ".join(done.err.split())


def test_what_the_mock_makes_is_marked(run: Run, tmp_path: Path) -> None:
    assert run("run", "hello").out == "[mock] This is no model. You said: hello\n"
    assert run("run", "hello", "--json").json["mock"] is True
    assert run("run", "-m", "x/embed", "hello", "--json").json["mock"] is True
    picture = tmp_path / "x.png"
    assert run("run", "-m", "x/diffusion", "x", "-o", str(picture), "--json").json["recipe"]["mock"] is True
    assert picture.stat().st_size > 0


def test_run_tells_what_a_prompt_is_instead_of_answering_it(run: Run) -> None:
    asked = ("run", "one two three", "--prepare")
    assert run(*asked, "count").out == "3\n"
    assert run(*asked, "text").out == "one two three\n"
    assert run(*asked, "tokens").out == "0 1 2\n"
    told = run(*asked, "count", "--json").json
    assert (told["prompt_tokens"], told["text"], told["mock"]) == (3, "one two three", True)
    done = run(*asked, "words")
    assert done.code == 2
    assert "'words' is not count, text or tokens" in done.err


def test_bench_gives_mean_and_deviation_and_compares_two_results(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "before.json"
    first = run("bench", "-m", "x/y", "--repeats", "3", "--json", "-o", str(file)).json
    figure = first["figures"]["batch of 4, tokens/s"]
    assert figure["mean"] > 0
    assert figure["deviation"] > 0
    assert (first["repeats"], first["mock"], first["before"]) == (3, True, None)
    assert json.loads(file.read_text())["figures"] == first["figures"]
    second = run("bench", "-m", "x/y", "--repeats", "1", "--compare", str(file))
    assert "change" in second.out
    assert run("bench", "-m", "x/embed", "--json").json["figures"]["texts/s"]["mean"] > 0
    assert run("bench", "-m", "x/diffusion", "--json").json["figures"]["steps/s"]["mean"] > 0


def test_setup_offers_models_and_lets_a_person_choose_or_skip(terminal: Terminal) -> None:
    child = terminal("setup")
    child.expect("This machine")
    child.expect("Models that fit")
    child.expect("Which one")
    child.sendline("nonsense")
    child.expect("Which one")
    child.sendline("")
    child.expect_exact("[mock] This is no model.")
    code, rest = finish(child)
    assert code == 0
    assert "mlxengine chat --model" in rest
    child = terminal("setup")
    child.expect("Which one")
    child.sendline("s")
    assert finish(child)[0] == 0


def test_setup_asks_nobody_where_nobody_is(run: Run) -> None:
    done = run("setup", "--json")
    assert (done.code, done.json["error"]["hint"]) == (2, "Add --yes, or --model.")
    assert run("setup", "--yes", "--json", "-q").json["answer"].startswith("[mock]")


def test_a_prompt_may_come_through_a_pipe(run: Run) -> None:
    assert run("run", input="from a pipe").out.endswith("You said: from a pipe\n")
    assert run("run", "-", input="from a pipe").out.endswith("You said: from a pipe\n")


def test_the_configuration_file_names_the_model(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('model = "my/model"\n')
    assert run("run", "x", "--json", MLXENGINE_CONFIG=str(file)).json["model"] == "my/model"
    file.write_text("modle = 5")
    done = run("models", "--json", MLXENGINE_CONFIG=str(file))
    assert (done.code, done.json["error"]["hint"]) == (2, "Did you mean model?")


def test_progress_goes_to_stderr_and_quiet_turns_it_off(run: Run) -> None:
    assert "load" in run("run", "hello").err
    assert run("run", "hello", "--quiet").err == ""


def test_v_logs_to_stderr_only(run: Run) -> None:
    done = run("plugins", "-vv")
    assert "DEBUG" in run("run", "hello", "-vv").err
    assert "DEBUG" not in done.out


def test_colours_only_in_a_terminal_that_has_them_and_where_they_are_allowed(terminal: Terminal) -> None:
    assert "\x1b[1m" in finish(terminal("plugins"))[1]
    assert "\x1b[" not in finish(terminal("plugins", NO_COLOR="1"))[1]
    assert "\x1b[" not in finish(terminal("plugins", TERM="dumb"))[1]


def test_a_pipe_that_is_closed_early_ends_quietly(env: dict[str, str]) -> None:
    prompt = "word " * 20_000
    with subprocess.Popen(
        [*COMMAND, "run", "--quiet", prompt], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(5)
        process.stdout.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == b""


def test_chat_in_a_terminal_talks_undoes_and_ends(terminal: Terminal, tmp_path: Path) -> None:
    child = terminal("chat")
    child.expect("> ")
    child.sendline("hello")
    child.expect_exact("You said: hello")
    child.expect("> ")
    child.sendline("two\\")
    child.expect("… ")
    child.sendline("lines")
    child.expect_exact("You said: two\r\nlines")
    child.expect("> ")
    child.sendline("/undo")
    child.expect_exact("(forgotten: two")
    child.expect("> ")
    child.sendline("/nonsense")
    child.expect_exact("There is no command /nonsense")
    child.expect("> ")
    child.sendintr()
    child.expect("Ctrl-D or /exit")
    child.expect("> ")
    child.sendline(f"/save {tmp_path / 'talk.json'}")
    child.expect("> ")
    child.sendeof()
    assert finish(child)[0] == 0
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"]
    assert "hello" in (tmp_path / "state/mlxengine/chat_history").read_text()


def test_chat_without_a_terminal_takes_a_turn_from_each_line(run: Run) -> None:
    done = run("chat", "--json", input="one\ntwo\n")
    assert [json.loads(line)["text"][-3:] for line in done.out.splitlines()] == ["one", "two"]
    assert run("chat", input="/nonsense\n").code == 2


def test_an_answer_streams_and_ctrl_c_stops_it_but_not_the_conversation(
    terminal: Terminal, model: Path
) -> None:
    child = terminal("chat", "-m", str(model), "--seed", "0", MLXENGINE_FEATURES="")
    child.expect("> ")
    child.sendline("Count from one to five hundred in words.")
    child.expect_exact("in words.\r\n")
    arrivals: list[float] = []
    while len(arrivals) < 4:
        child.read_nonblocking(4096, timeout=60)
        arrivals.append(time.monotonic())
    child.sendintr()
    child.expect_exact("(stopped; this turn is forgotten)")
    assert arrivals[-1] - arrivals[0] > 0.02
    child.expect("> ")
    child.sendline("/undo")
    child.expect_exact("(there is nothing to forget)")
    child.expect("> ")  # the line editor is reading again; a terminal loses an end of input typed before
    child.sendeof()
    assert finish(child)[0] == 0


def test_ctrl_c_ends_run_with_130_and_no_traceback(env: dict[str, str], model: Path) -> None:
    words = [*COMMAND, "run", "-m", str(model), "Count from one to five hundred in words."]
    with subprocess.Popen(
        words, env=env | {"MLXENGINE_FEATURES": ""}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert b"Traceback" not in process.stderr.read()


def test_ctrl_c_while_a_model_loads_ends_within_a_second(env: dict[str, str], model: Path) -> None:
    words = [*COMMAND, "run", "-m", str(model), "x"]
    with subprocess.Popen(
        words, env=env | {"MLXENGINE_FEATURES": ""}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        while "load" not in process.stderr.readline():
            assert process.poll() is None
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert time.monotonic() - start < 1.0
        assert process.stdout.read().strip() == ""
        assert "Traceback" not in process.stderr.read()


def test_verbose_holds_for_one_command_of_a_program(call: Run) -> None:
    assert "Traceback" not in call("models", "--max-size", "large").err
    with pytest.raises(AssertionError, match="Traceback"):
        call("models", "--max-size", "large", "-vv")
    assert "Traceback" not in call("models", "--max-size", "large").err


def test_a_real_answer_is_the_model_s(run: Run, model: Path) -> None:
    words = ("run", "-m", str(model), "--temperature", "0", "--max-tokens", "8", "--json", "--quiet")
    done = run(*words, "What is the capital of France?", MLXENGINE_FEATURES="")
    assert done.code == 0, done.err
    assert "Paris" in done.json["text"]
    assert done.json["mock"] is False
    assert done.json["usage"]["completion_tokens"] <= 8


def test_help_and_plugins_start_within_three_times_of_what_they_import(tmp_path: Path) -> None:
    contenders = {
        "base": [sys.executable, "-c", "import attrs, pluggy"],
        "help": [*COMMAND, "--help"],
        "plugins": [*COMMAND, "plugins"],
    }
    took = processor_seconds(contenders, tmp_path)
    assert took["help"] <= 3 * took["base"], took
    assert took["plugins"] <= 3 * took["base"], took
