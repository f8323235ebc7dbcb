"""The command ``mlxengine train``."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

import attrs
from mlxengine.cli.verbs import Output, ProgressLine

from .convert import fetched
from .train import TrainParams, train


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of ``mlxengine train``."""
    parser.add_argument("model", help="org/name or a folder")
    parser.add_argument("data", type=Path, help="a folder with train.jsonl and perhaps valid.jsonl")
    parser.add_argument("target", type=Path, help="a new folder")
    parser.add_argument("--resume", action="store_true", help="go on from the target's checkpoint")
    for item in attrs.fields(TrainParams):
        flag = f"--{item.name.replace('_', '-')}"
        if isinstance(item.default, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=type(item.default), default=item.default, help=f"{item.default}")


def run(options: argparse.Namespace, out: Output) -> int:
    """Train, show how far it is, and stop at the first Ctrl-C with a checkpoint."""
    params = TrainParams(**{item.name: getattr(options, item.name) for item in attrs.fields(TrainParams)})
    _, source = fetched(options.model, out)
    asked: list[int] = []

    def interrupt(_signal: int, _frame: object) -> None:
        if asked:  # a second time: at once, without a checkpoint
            raise KeyboardInterrupt
        asked.append(1)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with ProgressLine(out) as progress:
            made = train(
                source,
                options.data,
                options.target,
                params,
                resume=options.resume,
                report=progress,
                stopped=lambda: bool(asked),
            )
    finally:
        signal.signal(signal.SIGINT, before)
    last = made.losses[-1]
    losses = [
        f"{name} {value:.4f}" for name, value in (("train", last.train), ("valid", last.valid)) if value
    ]

    def text() -> None:
        out.line(f"{made.path}: {made.iterations} iterations, loss {', '.join(losses) or 'not measured'}")
        if not made.complete:
            out.line("Stopped; `--resume` goes on from here.")

    out.emit(made, text)
    return 0 if made.complete else 130


__all__ = ["configure", "run"]
