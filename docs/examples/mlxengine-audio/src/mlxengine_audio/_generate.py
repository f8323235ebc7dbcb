"""One request: windows of 32 ms go through the network, a few to a step; speech is told as it ends."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import mlx.core as mx
import numpy as np
from mlxengine import Array, Event, Finished
from mlxengine.errors import UnsupportedInputError

from ._load import Detector
from .types import Heard, ListenRequest, Speech, Voice

RATE, WINDOW, CONTEXT = 16_000, 512, 64
WINDOWS_A_STEP = 8
_DROP = 0.15  # speech ends when the probability falls this far below the threshold


def generate(detector: Detector, request: ListenRequest) -> Iterator[Event]:
    """Read the recording now, so that a bad one is refused before the first step."""
    return _steps(detector, request, _read(request.path))


def _read(path: str | bytes) -> Any:
    """The recording as float32 in -1 to 1, shape (samples,)."""
    hint = "Give a WAV file with 16,000 samples a second, one channel and 16 bits."
    name = path if isinstance(path, str) else "The recording"
    try:
        with wave.open(BytesIO(path) if isinstance(path, bytes) else path, "rb") as file:
            if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
                raise UnsupportedInputError(
                    f"{name} has {file.getframerate()} samples a second and {file.getnchannels()} channels.",
                    hint=hint,
                )
            frames = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise UnsupportedInputError(f"{name} cannot be read: {error}.", hint=hint) from error
    return np.frombuffer(frames, dtype="<i2").astype(np.float32) / 32768


def _steps(detector: Detector, request: ListenRequest, samples: Any) -> Iterator[Event]:
    count = -(-len(samples) // WINDOW)
    padded: Any = np.zeros(CONTEXT + count * WINDOW, dtype=np.float32)
    padded[CONTEXT : CONTEXT + len(samples)] = samples
    state, cutter = None, _Cutter(request)
    for first in range(0, count, WINDOWS_A_STEP):
        found = []
        for number in range(first, min(first + WINDOWS_A_STEP, count)):
            begin = number * WINDOW
            window = mx.array(padded[None, begin : begin + CONTEXT + WINDOW])
            probability, state = detector.network(window, state)
            found.append(probability[0])
        batch = np.array(mx.concatenate(found), dtype=np.float32)
        yield Voice(probabilities=Array(data=batch.tobytes(), shape=batch.shape, dtype="float32"))
        for speech in cutter.feed(batch.tolist()):
            yield speech
    for speech in cutter.end(len(samples) / RATE):
        yield speech
    yield Finished(usage=Heard(seconds=len(samples) / RATE))


class _Cutter:
    """From probabilities to stretches of speech, with hysteresis."""

    def __init__(self, request: ListenRequest) -> None:
        self._request = request
        self._now = 0.0
        self._start: float | None = None
        self._pause: float | None = None

    def feed(self, probabilities: list[float]) -> Iterator[Speech]:
        """The stretches that end within these windows."""
        for probability in probabilities:
            if probability >= self._request.threshold:
                self._start = self._now if self._start is None else self._start
                self._pause = None
            elif self._start is not None and probability < self._request.threshold - _DROP:
                self._pause = self._now if self._pause is None else self._pause
                if self._now - self._pause >= self._request.min_silence:
                    yield from self._cut(self._pause)
            self._now += WINDOW / RATE

    def end(self, length: float) -> Iterator[Speech]:
        """The stretch that goes on to the end of the recording."""
        yield from self._cut(length if self._pause is None else self._pause)

    def _cut(self, end: float) -> Iterator[Speech]:
        start, self._start, self._pause = self._start, None, None
        if start is not None and end - start >= self._request.min_speech:
            yield Speech(start=round(start, 3), end=round(end, 3))
