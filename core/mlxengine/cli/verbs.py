"""What a plugin's verb is made of: its output, the progress line, and the options that choose a model.

A verb of a plugin is two functions that its `Command` names, and the same as one of core's::

    def configure(parser: argparse.ArgumentParser) -> None:
        add_model(parser, "org/a-speech-model")
        parser.add_argument("file")

    def run(arguments: argparse.Namespace, out: Output) -> int:
        with engine(arguments, out) as made:
            model = load_named(arguments.model, made, arguments, out, SpeechHandle)
            found = model.listen(arguments.file)
        out.emit({"speech": found}, lambda: out.table(["start", "end"], [(s.start, s.end) for s in found]))
        return 0

`Output.emit` prints the one JSON value or calls the function that prints for people; `Output.note` is a
remark on stderr that ``--quiet`` silences; `ProgressLine` shows `Progress` events on stderr. Raise errors of
`mlxengine.errors`: they are shown, and choose the exit code.
"""

from __future__ import annotations

from ._engine import add_model, engine, load_named, positive
from ._output import Output
from ._progress import ProgressLine

__all__ = ["Output", "ProgressLine", "add_model", "engine", "load_named", "positive"]
