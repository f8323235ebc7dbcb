"""``mlxengine listen FOLDER FILE.wav``: when somebody speaks."""

from __future__ import annotations

import argparse
import sys

from mlxengine import InferenceEngine

from .types import ListenRequest, Speech


def main(arguments: list[str]) -> int:
    """Run the verb; the exit code."""
    parser = argparse.ArgumentParser(prog="mlxengine listen", description="Find speech in a WAV file.")
    parser.add_argument("model", help="a folder or repository of Silero VAD")
    parser.add_argument("file", help="16,000 samples a second, one channel, 16 bits")
    options = parser.parse_args(arguments)
    with InferenceEngine() as engine, engine.load(options.model) as vad:
        for event in vad.stream(ListenRequest(path=options.file)):
            if isinstance(event, Speech):
                sys.stdout.write(f"{event.start:8.2f} s {event.end:8.2f} s\n")
    return 0
