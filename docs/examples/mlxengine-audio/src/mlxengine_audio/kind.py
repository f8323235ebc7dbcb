"""How the command line asks a voice activity detector, measures it, and what stands in for one."""

from __future__ import annotations

import time
import wave
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlxengine import Answer, Asking, Event, Finished, Measuring, Mock, Option, Request
from mlxengine.errors import InvalidParameterError

from .handle import SpeechHandle
from .types import Heard, ListenRequest, Speech

RATE = 16_000


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise ValueError(f"{text!r} is not a number between 0 and 1")
    return value


class _Asking(Asking):
    options = (Option(flag="--threshold", type=_share, default=0.5, help="speech from this probability on"),)

    def request(self, words: Sequence[str], options: Mapping[str, Any]) -> Request:
        if len(words) != 1:
            raise InvalidParameterError(
                "A detector listens to one file.", hint="Give the path of a WAV file."
            )
        return ListenRequest(path=words[0], threshold=options["threshold"])

    def show(self, event: Event) -> str:
        return f"{event.start:8.2f} s {event.end:8.2f} s\n" if isinstance(event, Speech) else ""

    def answer(self, events: Sequence[Event], _options: Mapping[str, Any]) -> Answer:
        last = events[-1]
        assert isinstance(last, Finished)
        speech = [(event.start, event.end) for event in events if isinstance(event, Speech)]
        heard = f"{last.usage.counts.get('seconds', 0):.1f} s heard in {last.metrics.total_seconds:.2f} s"
        return Answer(value={"speech": speech, "mock": last.mock}, stats=heard)


class _Measuring(Measuring):
    options = (Option(flag="--seconds", type=float, default=10.0, help="of silence to listen to"),)

    def measure(self, handle: SpeechHandle, options: Mapping[str, Any]) -> Mapping[str, float]:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "silence.wav"
            with wave.open(str(path), "wb") as file:
                file.setparams((1, 2, RATE, 0, "NONE", ""))
                file.writeframes(bytes(2 * int(RATE * options["seconds"])))
            start = time.perf_counter()
            handle.listen(path)
        return {"seconds of sound/s": options["seconds"] / (time.perf_counter() - start)}


class SpeechMock(Mock):
    """Hears a second of speech in everything."""

    def generate(self, request: Request) -> Iterator[Event | None] | None:
        if not isinstance(request, ListenRequest):
            return None
        heard = Heard(seconds=1.0)
        return iter([Speech(start=0.0, end=1.0, mock=True), Finished(usage=heard, mock=True)])


RUN = _Asking()
BENCH = _Measuring()
