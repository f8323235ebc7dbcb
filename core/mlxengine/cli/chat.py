"""Talk with a model. Ctrl-C stops an answer, Ctrl-D ends the conversation, /help lists the commands.

A line that ends with a backslash goes on; three double quotes begin and end a text of several lines.
Without a terminal each line of stdin is one turn; with --json each answer is one JSON value on a line.

With --tools and --mcp the model may call functions; each call is shown, and run if you allow it.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve

from ..contract.tokens import TokenUsage
from ..engine import InferenceEngine
from ..errors import GenerationError, InvalidParameterError, MLXEngineError, UnsupportedInputError
from ..text import verbs
from ..text.handle import TextHandle
from ..text.messages import ImagePart, Message, Part, TextPart, ToolResultPart
from ..text.outputs import TextDelta, ToolCall
from ..text.replies import TextReply
from ..text.session import Session
from ..text.tool_files import together, tools_of
from . import _engine, _kinds
from ._frame import UsageError, exit_code
from ._output import Output, tell
from ._tool_servers import server_of
from ._toolbox import Toolbox

HELP = """\
/help            this list
/clear           forget the conversation
/undo            forget the last turn
/system [TEXT]   show or change the instructions
/model [NAME]    show the model, or go on with another one
/tools           list the tools that the model may call
/image FILE      put a picture into the next turn
/save FILE       write the conversation to a file
/load FILE       go on with a conversation from a file
/stats           tokens and speed of the last answer
/exit            end (or Ctrl-D)"""
_ROUNDS = 25  # how many times over the model may call tools in one turn


def configure(parser: argparse.ArgumentParser) -> None:
    _engine.add_model(parser)
    _kinds.add(parser, verbs.OPTIONS, "text")
    parser.add_argument("--load", type=Path, metavar="FILE", help="go on with a saved conversation")
    tools = parser.add_argument_group("tools", "--yes runs every call without asking")
    tools.add_argument(
        "--tools",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a Python file whose functions (or those in its list TOOLS) the model may call; repeatable",
    )
    tools.add_argument(
        "--mcp",
        action="append",
        default=[],
        metavar="COMMAND",
        help="an MCP server: its command line, or its name in the configuration file; repeatable",
    )


def run(arguments: argparse.Namespace, out: Output) -> int:
    options = _kinds.values(arguments, verbs.OPTIONS, "text")
    chosen = verbs.params(options)
    ask = not arguments.yes
    if ask and (arguments.tools or arguments.mcp) and not _person(out):
        raise UsageError(
            "Nobody is there to allow the calls of tools.",
            hint="Add --yes to run all of them, or talk in a terminal, without --json.",
        )
    files = [(str(path), tools_of(path)) for path in arguments.tools]

    with _engine.engine(arguments, out) as engine, contextlib.ExitStack() as stack:

        def load(model: str, arguments: argparse.Namespace = arguments) -> TextHandle:
            return _load(model, engine, arguments, out)

        servers = [(words, stack.enter_context(server_of(words))) for words in arguments.mcp]
        toolbox = Toolbox(together([*files, *servers]), out, ask=ask)
        handle = load(_engine.choose(engine, arguments, out))

        def restore(handle: TextHandle, path: Path) -> Session:
            session = Session.restore(handle, path, tools=toolbox.tools)
            if options["system"] is not None:
                session.instructions = options["system"]
            session.params = evolve(session.params, **{name: getattr(chosen, name) for name in chosen.given})
            return session

        if arguments.load:
            session = restore(handle, arguments.load)
        else:
            session = handle.session(instructions=options["system"], params=chosen, tools=toolbox.tools)
        # The plugin was chosen for the first model; another one finds its own.
        other = argparse.Namespace(**{**vars(arguments), "plugin": None})
        return Chat(session, out, toolbox, lambda model: load(model, other), restore).loop()


def _load(model: str, engine: InferenceEngine, arguments: argparse.Namespace, out: Output) -> TextHandle:
    kind = _engine.kind_of(engine, engine.resolve(model), arguments)
    if not issubclass(kind.find("handle"), TextHandle):
        asks = "Use `mlxengine run`." if kind.run else "`mlxengine --help` lists the plugins' own verbs."
        raise InvalidParameterError(
            f"{model} is a model of kind {kind.name!r}: one cannot talk with it.", hint=asks
        )
    return _engine.load_named(model, engine, arguments, out, TextHandle)


def _person(out: Output) -> bool:
    return sys.stdin.isatty() and not out.json


class Chat:
    """The loop of reading and answering; what is typed goes to the session or is a command.

    ``load`` loads the model of a name; ``restore`` makes a session of a file, as the command line says.
    """

    def __init__(
        self,
        session: Session,
        out: Output,
        toolbox: Toolbox,
        load: Callable[[str], TextHandle],
        restore: Callable[[TextHandle, Path], Session],
    ) -> None:
        self._session = session
        self._out = out
        self._toolbox = toolbox
        self._load_model = load
        self._restore = restore
        self._person = _person(out)
        self._images: list[ImagePart] = []
        self._last: TextReply | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "help": lambda _rest: out.emit({"help": HELP}, lambda: out.line(HELP)),
            "clear": lambda _rest: self._clear(),
            "undo": lambda _rest: self._undo(),
            "system": self._system,
            "model": self._model,
            "tools": lambda _rest: self._toolbox.show(),
            "image": self._image,
            "save": lambda rest: self._session.save(_file(rest)),
            "load": self._load,
            "stats": lambda _rest: self._stats(),
        }

    def loop(self) -> int:
        """Read and answer until the input ends; the code of the last turn where no person reads."""
        code = 0
        if self._person:
            self._out.note(f"{self._session.model.id}: /help lists the commands, Ctrl-D ends.")
        with _history(self._person):
            for text in self._turns():
                if text in ("/exit", "/quit"):
                    break
                try:
                    if text.startswith("/"):
                        self._command(text)
                    elif text:
                        self._answer(text)
                        code = 0
                except KeyboardInterrupt:
                    if not self._person:
                        raise
                    self._out.end_line()
                    self._out.note(f"(stopped{'' if text.startswith('/') else '; this turn is forgotten'})")
                except (MLXEngineError, OSError) as error:
                    code = self._out.fail(error, exit_code(error) if isinstance(error, MLXEngineError) else 2)
        return 0 if self._person else code

    def _answer(self, text: str) -> None:
        """One turn: what the person said, and the calls and results until the model has answered."""
        before = len(self._session.messages)
        calls: list[Mapping[str, Any]] = []
        usage = TokenUsage()
        content: Sequence[str | Part | Message] = [*self._images, TextPart(text)]
        self._images.clear()  # also where the turn fails: one that cannot be read would fail all others
        try:
            for _ in range(_ROUNDS):
                reply = self._ask(content)
                usage += reply.usage
                if not reply.tool_calls:
                    break
                sees = "vision" in self._session.model.capabilities
                results = self._toolbox.run(reply.tool_calls, sees=sees)
                calls += map(_made, reply.tool_calls, results)
                content = [Message.tool(result) for result in results]
            else:
                raise GenerationError(
                    f"The model called tools {_ROUNDS} times over in one turn; the turn is forgotten.",
                    hint="Ask for less at once.",
                )
        except BaseException:
            if len(self._session.messages) > before:
                self._session.undo()
            raise
        self._last = reply = evolve(reply, usage=usage)
        if self._out.json:
            value = {"text": reply.text, "finish_reason": reply.finish_reason, "usage": usage}
            self._out.value({**value, "tool_calls": calls, "mock": reply.mock})

    def _ask(self, content: Sequence[str | Part | Message]) -> TextReply:
        events = []
        try:
            with self._session.stream(content) as stream:
                for event in stream:
                    events.append(event)
                    if isinstance(event, TextDelta) and not self._out.json:
                        self._out.write(event.text)
        finally:
            self._out.end_line()
        return TextReply.of(events)

    def _turns(self) -> Iterator[str]:
        while True:
            try:
                line = self._read("> ")
                while line.endswith("\\"):
                    line = f"{line[:-1]}\n{self._read('… ')}"
                if line.startswith('"""'):
                    lines = [line[3:]]
                    while not lines[-1].rstrip().endswith('"""'):
                        lines.append(self._read("… "))
                    line = "\n".join(lines).rstrip()[:-3]
            except EOFError:
                self._out.end_line()
                return
            except KeyboardInterrupt:
                if not self._person:
                    raise
                tell("\n(Ctrl-D or /exit ends the conversation)")
                continue
            yield line.strip()

    def _read(self, prompt: str) -> str:
        if self._person:
            return input(prompt)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    def _command(self, text: str) -> None:
        name, _, rest = text[1:].partition(" ")
        command = self._commands.get(name)
        if command is None:
            near = difflib.get_close_matches(name, [*self._commands, "exit", "quit"], 1)
            hint = f"Did you mean /{near[0]}?" if near else "/help lists them."
            raise InvalidParameterError(f"There is no command /{name}.", hint=hint)
        command(rest.strip())

    def _clear(self) -> None:
        self._images.clear()
        self._session.clear()

    def _undo(self) -> None:
        taken = self._session.undo()
        self._out.note(f"(forgotten: {taken[0].text})" if taken else "(there is nothing to forget)")

    def _system(self, rest: str) -> None:
        if rest:
            self._session.instructions = rest
        self._out.note(f"(instructions: {self._session.instructions or 'none'})")

    def _model(self, rest: str) -> None:
        old = self._session
        if rest:
            self._session = self._load_model(rest).session(
                instructions=old.instructions,
                params=old.params,
                tools=old.tools,
                chat_template_kwargs=old.chat_template_kwargs,
                history=old.messages,
            )
            old.model.close()
        self._out.note(f"({self._session.model.id})")

    def _image(self, rest: str) -> None:
        path = _file(rest)
        if not self._session.model.capabilities & {"vision", "mock"}:
            raise UnsupportedInputError(
                f"{self._session.model.id} does not see.", hint="/model NAME goes on with one that does."
            )
        if not path.is_file():
            raise InvalidParameterError(f"There is no file {path}.")
        self._images.append(ImagePart(path))
        many = len(self._images)
        self._out.note(f"({many} picture{'s' if many > 1 else ''} in the next turn)")

    def _load(self, rest: str) -> None:
        self._session = self._restore(self._session.model, _file(rest))
        self._out.note(f"({len(self._session.messages)} messages)")

    def _stats(self) -> None:
        last = self._last
        self._out.note(verbs.stats(last.usage, last.metrics) if last else "(there is no answer yet)")


def _file(rest: str) -> Path:
    if not rest:
        raise InvalidParameterError("This command needs a file name.", hint="/help lists the commands.")
    return Path(rest).expanduser()


def _made(call: ToolCall, result: ToolResultPart) -> Mapping[str, Any]:
    value = {"name": call.name, "arguments": call.arguments, "result": result.content}
    return {**value, "error": result.error}


@contextlib.contextmanager
def _history(person: bool) -> Iterator[None]:
    """Line editing, and the lines of earlier conversations, where a person types."""
    if not person:
        yield
        return
    try:
        import readline
    except ImportError:
        yield
        return
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()) / "mlxengine"
    file = folder / "chat_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)
            file.chmod(0o600)
