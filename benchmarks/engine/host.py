"""What the engine itself costs for each event: processor time on a model that does nothing.

    python -m benchmarks.engine.host [--events 2000] [--rounds 9] [--output FILE.json]

Each step of the null model is one event, so the figure is that of a step and of an event; its readers are a
thread each, or the tasks of one event loop. The least of the rounds is the one that nothing else disturbed;
the median is printed beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from mlxengine import (
    AsyncInferenceEngine,
    Claim,
    Event,
    Finished,
    Fit,
    InferenceEngine,
    Loaded,
    ModelCard,
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


def threads(folder: Path, plugins: list[tuple[str, object]], streams: int, rounds: int) -> list[float]:
    """Processor time in µs for each event that reaches its reader, in each round."""
    found = []
    with InferenceEngine(plugins=plugins) as engine:
        handle = engine.load(folder)

        def read(counts: list[int]) -> None:
            counts.append(sum(1 for _ in handle.stream(Request())))

        for _ in range(rounds):
            counts: list[int] = []
            readers = [threading.Thread(target=read, args=(counts,)) for _ in range(streams)]
            began = time.process_time()
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join()
            found.append((time.process_time() - began) / sum(counts) * 1e6)
    return found


async def tasks(folder: Path, plugins: list[tuple[str, object]], streams: int, rounds: int) -> list[float]:
    """The same on an event loop."""
    found = []
    async with AsyncInferenceEngine(plugins=plugins) as engine:
        handle = await engine.load(folder)

        async def read() -> int:
            return len([event async for event in handle.stream(Request())])

        for _ in range(rounds):
            began = time.process_time()
            counts = await asyncio.gather(*(read() for _ in range(streams)))
            found.append((time.process_time() - began) / sum(counts) * 1e6)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder, plugins = Path(place), [("null", Null())]
        (folder / "config.json").write_text(json.dumps({"null": options.events}))
        for streams in (1, 8, 32):
            ways = {
                "threads": threads(folder, plugins, streams, options.rounds),
                "asyncio": asyncio.run(tasks(folder, plugins, streams, options.rounds)),
            }
            for readers, found in ways.items():
                least, median = min(found), statistics.median(found)
                rows.append({"streams": streams, "readers": readers, "least": least, "median": median})
    for row in rows:
        print(
            f"{row['streams']} streams, {row['readers']}: {row['least']:.1f} µs an event at least, "
            f"{row['median']:.1f} median"
        )
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
