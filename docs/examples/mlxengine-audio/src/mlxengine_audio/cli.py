"""``mlxengine listen FOLDER FILE.wav``: when somebody speaks."""

from __future__ import annotations

import argparse
import sys

from mlxengine import InferenceEngine

from .handle import SpeechHandle


def main(arguments: list[str]) -> int:
    """Run the verb; the exit code."""
    parser = argparse.ArgumentParser(prog="mlxengine listen", description="Find speech in a WAV file.")
    parser.add_argument("model", help="a folder or repository of Silero VAD")
    parser.add_argument("file", help="16,000 samples a second, one channel, 16 bits")
    options = parser.parse_args(arguments)
    with InferenceEngine() as engine, engine.load_as(SpeechHandle, options.model) as vad:
        for speech in vad.listen(options.file):
            sys.stdout.write(f"{speech.start:8.2f} s {speech.end:8.2f} s\n")
    return 0
