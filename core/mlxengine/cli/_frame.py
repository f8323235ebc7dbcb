"""What all verbs share: finding the verb, its options, errors, exit codes, signals and closed pipes.

A verb is a module ``mlxengine.cli.<name>`` with two functions, imported only when the verb is used (a plugin
names two such functions in its `Command`)::

    def configure(parser: argparse.ArgumentParser) -> None: ...
    def run(arguments: argparse.Namespace, out: Output) -> int: ...

``--json``, ``--quiet`` and ``--verbose`` are added to every verb. Results go to stdout through ``out``,
progress and errors to stderr. With ``--json`` the result, and an error too, is one JSON value on stdout.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from .._shown import shown
from ..errors import (
    ConfigurationError,
    DownloadError,
    GenerationError,
    InsufficientMemoryError,
    LoadError,
    MisuseError,
    MLXEngineError,
    PluginContractError,
    PluginError,
    ResolutionError,
)
from ._output import Output, tell

if TYPE_CHECKING:
    from ..contract.hookspecs import Command

VERBS = {
    "setup": "first steps: this machine, models that fit, a first answer",
    "run": "answer one prompt, or make one picture or vectors",
    "chat": "talk with a model",
    "search": "search the hub, and see what fits on this machine",
    "pull": "fetch a model, resumed and verified",
    "ls": "list the models on this machine",
    "verify": "check that models are as they were when they were fetched",
    "repair": "fetch again what is damaged or missing",
    "rm": "remove a model from this machine",
    "du": "say how much disk space the models take",
    "fit": "say whether a model fits this machine, before it is fetched",
    "recommend": "say which model suits this machine best, and why",
    "ps": "list the engines that hold models in memory now",
    "bench": "measure a model on this machine",
    "models": "search the registry of models",
    "plugins": "list the plugins and those set aside; write one, try one",
    "doctor": "check this installation, and say how to repair it",
    "features": "list the feature flags, and who set them",
}
Configure: TypeAlias = Callable[[argparse.ArgumentParser], None]
Function: TypeAlias = Callable[[argparse.Namespace, Output], int]
INTERRUPTED = 130
PIPE_CLOSED = 141
_CODES: tuple[tuple[type[Exception], int], ...] = (
    (ConfigurationError, 2),
    (MisuseError, 2),
    (ResolutionError, 3),
    (DownloadError, 4),
    (LoadError, 5),
    (GenerationError, 6),
)


class UsageError(ConfigurationError):
    """The command line cannot be read."""


class Parser(argparse.ArgumentParser):
    """argparse, but what is wrong is raised instead of printed, so that ``--json`` holds for it too."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}.", hint=f"`{self.prog} --help` shows the usage.")

    def add_subparsers(self, **options: Any) -> Any:
        """As argparse's own; the shared options may stand after a verb's second word too."""
        return super().add_subparsers(parser_class=_SubParser, **options)


class _SubParser(Parser):
    """The parser of a verb's second word; a shared option not said here stays as it was said before."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)
        _add_common(self, unset=True)


def run(argv: Sequence[str] | None = None) -> int:
    """See `mlxengine.cli.main`."""
    logger = logging.getLogger("mlxengine")
    handlers, level = logger.handlers, logger.level
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    finally:  # --verbose holds for this command, not for what the program does next
        logger.handlers = handlers
        logger.setLevel(level)


def _run(words: list[str]) -> int:
    out = Output(json="--json" in words)
    try:
        code = _dispatch(words, out)
        out.flush()
    except SystemExit as end:  # argparse, after --help
        if isinstance(end.code, int | None):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")  # what a plugin's verb left with, as Python itself would say it
        return 1
    except KeyboardInterrupt:
        out.end_line()
        return INTERRUPTED
    except BrokenPipeError:
        # Nobody reads any more; without this the interpreter complains when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except (MLXEngineError, MisuseError) as error:
        return out.fail(error, exit_code(error))
    except MemoryError:
        code = exit_code(InsufficientMemoryError(""))
        return out.fail(InsufficientMemoryError("The system gives this process no more memory."), code)
    except Exception as error:
        logging.getLogger("mlxengine.cli").debug("unexpected", exc_info=True)
        return out.fail(error, 1)
    return code


def exit_code(error: BaseException) -> int:
    """2 usage and configuration, 3 resolution, 4 download, 5 load, 6 generation, 1 anything else."""
    if isinstance(error, PluginError):
        return 6 if error.hook == "generate" else 5
    return next((code for kind, code in _CODES if isinstance(error, kind)), 1)


def _dispatch(words: list[str], out: Output) -> int:
    front = Parser(prog="mlxengine", add_help=False, allow_abbrev=False)
    front.add_argument("-h", "--help", action="store_true")
    front.add_argument("-V", "--version", action="store_true")
    _add_common(front)
    position = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
    options = front.parse_args(words[:position])
    if options.version:
        from .._version import __version__

        out.emit({"version": __version__}, lambda: out.line(f"mlxengine {__version__}"))
        return 0
    if options.help or position == len(words):
        _help(out)
        return 0 if options.help else 2
    verb, rest = words[position], [*words[:position], *words[position + 1 :]]
    if verb in VERBS:
        return _run_verb(verb, rest, out)
    return _run_plugin_verb(verb, rest, out)


def _run_verb(verb: str, words: list[str], out: Output) -> int:
    module = importlib.import_module(f"{__package__}.{verb}")
    return _run_parsed(verb_parser(verb, module.__doc__ or "", module.configure, out), module.run, words, out)


def verb_parser(verb: str, description: str, configure: Configure | None, out: Output) -> Parser:
    """The parser of a verb: the shared options, and those that ``configure`` adds."""
    parser = Parser(
        prog=f"mlxengine {verb}",
        description="\n\n".join(out.wrapped(part) for part in description.strip().split("\n\n")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_common(parser)
    if configure is not None:
        configure(parser)
    return parser


def _run_parsed(parser: Parser, function: Function, words: list[str], out: Output) -> int:
    arguments = parser.parse_args(words)
    out.configure(json=arguments.json, quiet=arguments.quiet)
    _log_to_stderr(arguments.verbose)
    return function(arguments, out)


def _run_plugin_verb(verb: str, words: list[str], out: Output) -> int:
    import difflib

    commands = plugin_commands()
    found = [(provider, command) for provider, command in commands if command.name == verb]
    if len(found) > 1:
        names = " and ".join(repr(provider) for provider, _ in found)
        raise PluginContractError(
            f"The verb {verb!r} is listed by the plugins {names}.",
            plugin=found[0][0],
            hook="list_commands",
            hint="Uninstall all but one of them.",
        )
    if found:
        provider, command = found[0]
        configure = None if command.parser is None else _named(command.parser, verb, provider)
        function = _named(command.target, verb, provider)
        try:
            parser = verb_parser(verb, command.summary, configure, out)
        except Exception as error:
            raise PluginContractError(
                f"The parser of the verb {verb!r} of the plugin {provider!r} cannot be made: {error}.",
                plugin=provider,
                hook="list_commands",
                hint="Options that every verb has (--json, --quiet, --verbose) are not added again.",
            ) from error
        return _run_parsed(parser, function, words, out)
    known = [*VERBS, *(command.name for _, command in commands)]
    near = difflib.get_close_matches(verb, known, 1)
    raise UsageError(
        f"mlxengine has no verb {verb!r}.",
        hint=f"Did you mean {near[0]!r}?" if near else "`mlxengine --help` lists the verbs.",
    )


def _named(target: str, verb: str, provider: str) -> Callable[..., Any]:
    """The function ``"module:function"`` of a plugin's verb."""
    module, _, name = target.partition(":")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise PluginError(
            f"The verb {verb!r} of the plugin {provider!r} cannot be imported: {error}.",
            plugin=provider,
            hook="list_commands",
        ) from error
    return function


def plugin_commands() -> list[tuple[str, Command]]:
    """The verbs of the installed plugins with their providers; one with a built-in name is refused."""
    from .._config import Settings, load_settings
    from .._engine.host import Host

    try:
        settings = load_settings()
    except MLXEngineError:  # `mlxengine doctor` says what is wrong with the file
        settings = Settings()
    host = Host.installed(settings)
    allowed = []
    for provider, items in host.commands().items():
        for item in items:
            if item.name in VERBS:
                tell(f"The verb {item.name!r} of the plugin {provider!r} is left out: that name is built in.")
            else:
                allowed.append((provider, item))
    return allowed


def _help(out: Output) -> None:
    commands = plugin_commands()
    rows = [*VERBS.items(), *((command.name, f"{command.summary} ({name})") for name, command in commands)]
    verbs = [{"name": name, "summary": summary} for name, summary in rows]

    def text() -> None:
        out.line("usage: mlxengine [-h] [-V] VERB …\n\nRun models of every kind on MLX.\n")
        width = max(len(name) for name, _ in rows)
        for name, summary in rows:
            out.paragraph(f"  {name:<{width}}  {summary}", hang=" " * (width + 4))
        out.line()
        out.paragraph("`mlxengine VERB --help` says more. Every verb takes --json, --quiet and --verbose.")

    out.emit({"verbs": verbs}, text)


def _add_common(parser: argparse.ArgumentParser, *, unset: bool = False) -> None:
    no, none = (argparse.SUPPRESS, argparse.SUPPRESS) if unset else (False, 0)
    group = parser.add_argument_group("on every verb")
    group.add_argument(
        "--json", action="store_true", default=no, help="print one JSON value, for an error too"
    )
    group.add_argument("-q", "--quiet", action="store_true", default=no, help="show no progress")
    group.add_argument("-v", "--verbose", action="count", default=none, help="log to stderr; twice for more")


class _Formatter(logging.Formatter):
    """A line of the log in which no name can move the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


def _log_to_stderr(verbosity: int) -> None:
    if not verbosity:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("mlxengine")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if verbosity == 1 else logging.DEBUG)
