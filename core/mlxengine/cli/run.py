"""Ask a model once: answer one prompt, make one picture, vectors, or what its kind makes.

The prompt is the rest of the command line, or comes through a pipe. What else can be said depends on the
kind of the model.
"""

from __future__ import annotations

import argparse

from ..contract.events import Event, Progress
from ..contract.kinds import Asking
from ..handle import ModelHandle
from . import _engine, _kinds
from ._output import Output
from ._progress import ProgressLine


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="*", help='what to ask; "-" reads it from stdin')
    _engine.add_model(parser)
    parser.add_argument("--stats", action="store_true", help="say how long it took, on stderr")
    _kinds.add_options(parser, "run")


def run(arguments: argparse.Namespace, out: Output) -> int:
    with _engine.engine(arguments, out) as engine:
        model = _engine.choose(engine, arguments, out)
        card = engine.resolve(model)
        kind = _engine.kind_of(engine, card, arguments)
        asking: Asking = _kinds.asked(kind, "run")
        options = _kinds.values(arguments, asking.options, kind.name)
        words = _engine.prompt_words(arguments.prompt, card.configuration.default_prompt)
        request = asking.request(words, options)
        handle = _engine.load_named(model, engine, arguments, out, ModelHandle)
        events: list[Event] = []
        # The bare stream of events: a kind's own handle may take something else than requests.
        with ProgressLine(out) as progress, ModelHandle.stream(handle, request) as stream:
            for event in stream:
                if isinstance(event, Progress):
                    progress(event)
                    continue
                events.append(event)
                if not out.json:
                    out.write(asking.show(event))
        answer = asking.answer(events, options)
        out.end_line()
        out.emit({"model": handle.id, **answer.value}, lambda: out.line(answer.text) if answer.text else None)
        if arguments.stats:
            out.note(answer.stats)
    return 0
