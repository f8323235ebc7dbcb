"""Every verb, of core and of every installed plugin, takes the options that `mlxengine --help` promises."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from mlxengine import Command, InferenceEngine, hookimpl
from mlxengine._engine.host import Host
from mlxengine.cli import _frame, main
from mlxengine.errors import NoPluginForModelError

VERBS = [*_frame.VERBS, *(command.name for _, command in _frame.plugin_commands())]


def test_the_plugins_of_the_house_bring_their_verbs() -> None:
    assert {"convert", "train", "fuse", "embed", "similarity", "image"} <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_the_shared_options_and_says_a_wrong_one_as_json(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "--json", "--quiet", "--verbose", "--no-such-option", "word", "word", "word"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["exit_code"] == 2
    for option in ("--json", "--quiet", "--verbose"):
        assert option not in error["message"]


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_lists_the_shared_options(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: mlxengine {verb} ")
    for option in ("--help", "--json", "--quiet", "--verbose"):
        assert option in shown


def configure(parser: argparse.ArgumentParser) -> None:
    seconds = parser.add_subparsers(dest="second", required=True)
    seconds.add_parser("say").add_argument("text")


def run(options: argparse.Namespace, out: _frame.Output) -> int:
    out.note("a remark")
    out.emit({"said": options.text, "level": options.verbose}, lambda: out.line(options.text))
    return 0


def again(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    """Make `mlxengine` see these verbs of plugins, by provider."""

    def install(**commands: list[Command]) -> None:
        monkeypatch.setattr(Host, "commands", lambda _self: commands)

    return install


def echo(name: str = "echo", parser: str = "configure") -> Command:
    return Command(name=name, summary="Say it.", parser=f"{__name__}:{parser}", target=f"{__name__}:run")


class OnlyVerbs:
    @hookimpl
    def list_commands(self) -> list[Command]:
        return [echo()]


class ClaimsToo(OnlyVerbs):
    @hookimpl
    def claim_model(self, card: object) -> None:
        return None


def test_a_plugin_of_verbs_alone_is_whole_and_claims_no_model(tmp_path: Path) -> None:
    host = Host([("talk", OnlyVerbs()), ("half", ClaimsToo())])
    assert [record.name for record in host.active()] == ["talk"]
    assert "half" in str(host.records[1].error)
    assert [item.name for item in host.commands()["talk"]] == ["echo"]
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    with InferenceEngine(plugins=[("talk", OnlyVerbs())]) as engine, pytest.raises(NoPluginForModelError):
        engine.load(tmp_path)


@pytest.mark.parametrize(
    "words", [["--json", "echo", "say", "a"], ["echo", "--json", "say", "a"], ["echo", "say", "a", "--json"]]
)
def test_a_shared_option_may_stand_anywhere(installed, words, capsys) -> None:
    installed(one=[echo()])
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out) == {"said": "a", "level": 0}


def test_quiet_silences_remarks_and_verbose_is_counted(installed, capsys) -> None:
    installed(one=[echo()])
    assert main(["echo", "say", "a"]) == 0
    assert capsys.readouterr() == ("a\n", "a remark\n")
    assert main(["echo", "say", "a", "-q"]) == 0
    assert capsys.readouterr() == ("a\n", "")
    assert main(["echo", "-vv", "say", "a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["level"] == 2


def test_a_verb_that_two_plugins_list_is_refused_and_both_are_named(installed, capsys) -> None:
    installed(one=[echo()], two=[echo()])
    assert main(["echo", "say", "a"]) == 5
    assert "'one' and 'two'" in " ".join(capsys.readouterr().err.split())


def test_a_verb_with_a_built_in_name_is_left_out_and_said(installed, capsys) -> None:
    installed(one=[echo("ls")])
    assert main(["--help"]) == 0
    shown = capsys.readouterr()
    assert "Say it." not in shown.out
    assert "'ls' of the plugin 'one' is left out" in shown.err


def test_an_option_that_every_verb_has_is_not_added_again(installed, capsys) -> None:
    installed(one=[echo(parser="again")])
    assert main(["echo", "--json"]) == 5
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "PluginContractError"
    assert "'one'" in error["message"]


def test_help_imports_no_verb_of_a_plugin(installed, monkeypatch, capsys) -> None:
    installed(one=[Command(name="echo", summary="Say it.", parser="nowhere:c", target="nowhere:f")])
    assert main(["--help"]) == 0
    assert "echo" in capsys.readouterr().out
    assert main(["echo"]) == 5
    assert "cannot be imported" in capsys.readouterr().err


def test_what_the_configuration_file_says_of_plugins_holds_for_verbs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    real = Host.__init__

    def spy(self: Host, *arguments: object, **options: object) -> None:
        seen.append(options["distributions"])
        real(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Host, "__init__", spy)
    file = tmp_path / "mlxengine.toml"
    file.write_text('[plugins]\nllm = "mlxengine-llm"\nembed = false\n')
    monkeypatch.setenv("MLXENGINE_CONFIG", str(file))
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "convert" in text
    assert "similarity" not in text, "a verb of a plugin that is turned off"
    assert main(["similarity", "--help"]) == 2
    assert set(map(str, seen)) == {"{'llm': 'mlxengine-llm'}"}


def test_a_flag_that_the_models_plugin_would_ignore_is_refused_by_verbs_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = str(Path(__file__).parents[1] / "models" / "tiny-shapes-vlm")
    assert main(["run", "-m", model, "--feature", "llm.stall_factor=4", "What is it?"]) == 2
    assert "llm.stall_factor cannot be set for this model" in capsys.readouterr().err
