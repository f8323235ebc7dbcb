"""The command ``mlxengine train``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import attrs
from mlxengine import Progress, hub

from .train import TrainParams, train


def main(words: Sequence[str]) -> int:
    """Train, show how far it is, and stop at the first Ctrl-C with a checkpoint."""
    parser = argparse.ArgumentParser(prog="mlxengine train", description="Train a LoRA or DoRA adapter.")
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
    options = parser.parse_args(list(words))
    params = TrainParams(**{item.name: getattr(options, item.name) for item in attrs.fields(TrainParams)})
    card = hub.resolve(options.model)
    source = card.path if card.path is not None else hub.fetch(options.model)
    asked: list[int] = []

    def interrupt(_signal: int, _frame: object) -> None:
        if asked:  # a second time: at once, without a checkpoint
            raise KeyboardInterrupt
        asked.append(1)

    def show(progress: Progress) -> None:
        if sys.stderr.isatty():
            share = progress.done / (progress.total or 1)
            bar = "█" * int(30 * share)
            sys.stderr.write(f"\r{bar:░<30} {progress.done:.0f} of {progress.total:.0f} iterations")
            sys.stderr.flush()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        made = train(
            source,
            options.data,
            options.target,
            params,
            resume=options.resume,
            report=show,
            stopped=lambda: bool(asked),
        )
    finally:
        signal.signal(signal.SIGINT, before)
        sys.stderr.write("\n" if sys.stderr.isatty() else "")
    last = made.losses[-1]
    losses = [
        f"{name} {value:.4f}" for name, value in (("train", last.train), ("valid", last.valid)) if value
    ]
    sys.stdout.write(
        f"{made.path}: {made.iterations} iterations, loss {', '.join(losses) or 'not measured'}\n"
    )
    if not made.complete:
        sys.stdout.write("Stopped; `--resume` goes on from here.\n")
    return 0 if made.complete else 130


__all__ = ["main"]
