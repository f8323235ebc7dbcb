"""What the engine itself costs for each event: processor time on a model that does nothing.

    python benchmarks/host.py [--events 2000] [--rounds 9] [--output FILE.json]

Each step of the null model is one event, so the figure is that of a step and of an event. The least of the
rounds is the one that nothing else disturbed; the median is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from mlxengine import (
    Claim,
    Event,
    Finished,
    Fit,
    InferenceEngine,
    Loaded,
    ModelCard,
    ModelHandle,
    Request,
    TextDelta,
    hookimpl,
)


class Null:
    """A plugin whose model says the same word again and again."""

    @hookimpl
    def claim_model(self, card: ModelCard) -> Claim | None:
        if "null" not in card.config:
            return None
        return Claim(kind="null", fit=Fit.NATIVE, uses_mlx=False)

    @hookimpl
    def load_model(self, card: ModelCard) -> Loaded:
        return Loaded(model=int(card.config["null"]))

    @hookimpl
    def generate(self, model: int, request: Request) -> Iterator[Event] | None:
        return self._speak(model) if type(request) is Request else None

    def _speak(self, count: int) -> Iterator[Event]:
        for _ in range(count):
            yield TextDelta(text="a")
        yield Finished()


def _read(handle: ModelHandle, counts: list[int]) -> None:
    counts.append(sum(1 for _ in handle.stream(Request())))


def measure(engine: InferenceEngine, folder: Path, streams: int, rounds: int) -> dict[str, float]:
    """Processor time in µs for each event that reaches its reader."""
    handle = engine.load(folder)
    found = []
    for _ in range(rounds):
        counts: list[int] = []
        began = time.process_time()
        readers = [threading.Thread(target=_read, args=(handle, counts)) for _ in range(streams)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        found.append((time.process_time() - began) / sum(counts) * 1e6)
    return {"streams": streams, "least": min(found), "median": statistics.median(found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        InferenceEngine(plugins=[("null", Null())]) as engine,
    ):
        (Path(folder) / "config.json").write_text(json.dumps({"null": options.events}))
        rows = [measure(engine, Path(folder), streams, options.rounds) for streams in (1, 8)]
    for row in rows:
        print(
            f"{row['streams']} streams: {row['least']:.0f} µs an event at least, {row['median']:.0f} median"
        )
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
