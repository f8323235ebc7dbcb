"""Talk with a model. Ctrl-C stops an answer, Ctrl-D ends the conversation, /help lists the commands.

A line that ends with a backslash goes on; three double quotes begin and end a text of several lines.
Without a terminal each line of stdin is one turn; with --json each answer is one JSON value on a line.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import InvalidParameterError, MLXEngineError
from ..text import verbs
from ..text.handle import TextHandle
from ..text.messages import ImagePart, Message, Part, TextPart
from ..text.outputs import TextDelta
from ..text.replies import TextReply
from ..text.session import Session
from . import _engine, _kinds
from ._frame import exit_code
from ._output import Output, tell

HELP = """\
/help            this list
/clear           forget the conversation
/undo            forget the last turn
/system [TEXT]   show or change the instructions
/image FILE      put a picture into the next turn
/save FILE       write the conversation to a file
/load FILE       go on with a conversation from a file
/stats           tokens and speed of the last answer
/exit            end (or Ctrl-D)"""


def configure(parser: argparse.ArgumentParser) -> None:
    _engine.add_model(parser)
    _kinds.add(parser, verbs.OPTIONS, "text")
    parser.add_argument("--load", type=Path, metavar="FILE", help="go on with a saved conversation")


def run(arguments: argparse.Namespace, out: Output) -> int:
    options = _kinds.values(arguments, verbs.OPTIONS, "text")
    chosen = verbs.params(options)
    with _engine.engine(arguments, out) as engine:
        model = _engine.choose(engine, arguments, out)
        kind = _engine.kind_of(engine, engine.resolve(model), arguments)
        if not issubclass(kind.find("handle"), TextHandle):
            asks = "Use `mlxengine run`." if kind.run else "`mlxengine --help` lists the plugins' own verbs."
            raise InvalidParameterError(
                f"{model} is a model of kind {kind.name!r}: one cannot talk with it.", hint=asks
            )
        handle = _engine.load_named(model, engine, arguments, out, TextHandle)
        if arguments.load:
            session = Session.restore(handle, arguments.load)
        else:
            session = handle.session(instructions=options["system"], params=chosen)
        return Chat(session, out).loop()


class Chat:
    """The loop of reading and answering; what is typed goes to the session or is a command."""

    def __init__(self, session: Session, out: Output) -> None:
        self._session = session
        self._out = out
        self._person = sys.stdin.isatty() and not out.json
        self._images: list[ImagePart] = []
        self._last: TextReply | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "help": lambda _rest: out.line(HELP),
            "clear": lambda _rest: self._session.clear(),
            "undo": lambda _rest: self._undo(),
            "system": self._system,
            "image": self._image,
            "save": lambda rest: self._session.save(_needed(rest)),
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
                except (MLXEngineError, OSError) as error:
                    code = self._out.fail(error, exit_code(error) if isinstance(error, MLXEngineError) else 2)
        return 0 if self._person else code

    def _answer(self, text: str) -> None:
        events = []
        content: list[str | Part | Message] = [*self._images, TextPart(text)]
        try:
            with self._session.stream(content) as stream:
                for event in stream:
                    events.append(event)
                    if isinstance(event, TextDelta) and not self._out.json:
                        self._out.write(event.text)
        except KeyboardInterrupt:
            if not self._person:
                raise
            self._out.end_line()
            self._out.note("(stopped; this turn is forgotten)")
            return
        finally:
            self._out.end_line()
        self._images.clear()
        self._last = reply = TextReply.of(events)
        if self._out.json:
            value = {"text": reply.text, "finish_reason": reply.finish_reason, "usage": reply.usage}
            self._out.value({**value, "mock": reply.mock})

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
            raise InvalidParameterError(f"There is no command /{name}.", hint="/help lists them.")
        command(rest.strip())

    def _undo(self) -> None:
        taken = self._session.undo()
        self._out.note(f"(forgotten: {taken[0].text})" if taken else "(there is nothing to forget)")

    def _system(self, rest: str) -> None:
        if rest:
            self._session.instructions = rest
        self._out.note(f"(instructions: {self._session.instructions or 'none'})")

    def _image(self, rest: str) -> None:
        path = Path(_needed(rest)).expanduser()
        if not path.is_file():
            raise InvalidParameterError(f"There is no file {path}.")
        self._images.append(ImagePart(path))
        self._out.note(f"({len(self._images)} pictures in the next turn)")

    def _load(self, rest: str) -> None:
        self._session = Session.restore(self._session.model, _needed(rest))
        self._out.note(f"({len(self._session.messages)} messages)")

    def _stats(self) -> None:
        last = self._last
        self._out.note(verbs.stats(last.usage, last.metrics) if last else "(there is no answer yet)")


def _needed(rest: str) -> str:
    if not rest:
        raise InvalidParameterError("This command needs a file name.", hint="/help lists the commands.")
    return rest


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
