"""``mlxengine listen FILE.wav -m FOLDER``: when somebody speaks."""

from __future__ import annotations

import argparse

from mlxengine.cli.verbs import Output, add_model, engine, load_named
from mlxengine.errors import InvalidParameterError

from .handle import SpeechHandle


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    add_model(parser)
    parser.add_argument("file", help="16,000 samples a second, one channel, 16 bits")


def run(options: argparse.Namespace, out: Output) -> int:
    """Run the verb; the exit code."""
    if options.model is None:
        raise InvalidParameterError("There is no model.", hint="Name a folder or repository with --model.")
    with (
        engine(options, out) as made,
        load_named(options.model, made, options, out, SpeechHandle) as vad,
    ):
        found = vad.listen(options.file)

    def text() -> None:
        for speech in found:
            out.line(f"{speech.start:8.2f} s {speech.end:8.2f} s")

    out.emit({"speech": found}, text)
    return 0
