"""``mlxengine markov train`` and ``mlxengine markov say``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mlxengine import InferenceEngine, TextDelta

from .chain import UNITS, Chain
from .types import ContinueRequest


def main(arguments: list[str]) -> int:
    """Run the verb; the exit code."""
    parser = argparse.ArgumentParser(
        prog="mlxengine markov", description="Train a Markov chain, or let one speak."
    )
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
    options = parser.parse_args(arguments)
    if options.verb == "train":
        chain = Chain.train(options.text.read_text(encoding="utf-8"), order=options.order, unit=options.unit)
        chain.save(options.folder)
        return 0
    with InferenceEngine() as engine, engine.load(options.folder) as chain_handle:
        request = ContinueRequest(text=options.text, length=options.length, seed=options.seed)
        for event in chain_handle.stream(request):
            if isinstance(event, TextDelta):
                sys.stdout.write(event.text)
                sys.stdout.flush()
    sys.stdout.write("\n")
    return 0
