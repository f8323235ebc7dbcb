"""``mlxengine markov train`` and ``mlxengine markov say``."""

from __future__ import annotations

import argparse
from pathlib import Path

from mlxengine import InferenceEngine, TextDelta
from mlxengine.cli.verbs import Output

from .chain import UNITS, Chain
from .types import ContinueRequest


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of the two verbs."""
    verbs = parser.add_subparsers(dest="verb", required=True)
    train = verbs.add_parser("train", help="count what follows what in a text")
    train.add_argument("text", type=Path)
    train.add_argument("folder", type=Path)
    train.add_argument("--order", type=int, default=2)
    train.add_argument("--unit", choices=UNITS, default="word")
    say = verbs.add_parser("say", help="continue a text")
    say.add_argument("folder", type=Path)
    say.add_argument("text", nargs="?", default="")
    say.add_argument("--length", type=int, default=20)
    say.add_argument("--seed", type=int)


def run(options: argparse.Namespace, out: Output) -> int:
    """Run the verb; the exit code."""
    if options.verb == "train":
        chain = Chain.train(options.text.read_text(encoding="utf-8"), order=options.order, unit=options.unit)
        chain.save(options.folder)
        out.emit({"path": options.folder}, lambda: out.line(str(options.folder)))
        return 0
    with InferenceEngine() as engine, engine.load(options.folder) as chain_handle:
        request = ContinueRequest(text=options.text, length=options.length, seed=options.seed)
        said = ""
        for event in chain_handle.stream(request):
            if isinstance(event, TextDelta):
                said += event.text
                if not out.json:
                    out.write(event.text)
    out.emit({"text": said}, out.end_line)
    return 0
