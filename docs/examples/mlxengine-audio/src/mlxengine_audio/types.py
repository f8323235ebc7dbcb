"""What can be asked of a voice activity detector, and what it says."""

from __future__ import annotations

from attrs import field, frozen
from mlxengine import Array, Event, Request, Usage
from mlxengine.errors import InvalidParameterError


def _shown(path: str | bytes) -> str:
    return path if isinstance(path, str) else f"<{len(path)} bytes>"


@frozen(kw_only=True)
class ListenRequest(Request):
    """Find speech in a recording.

    Args:
        path: a WAV file, or what is in one: 16,000 samples a second, one channel, 16 bits.
        threshold: a window counts as speech from this probability on.
        min_speech: shorter speech is dropped, in seconds.
        min_silence: a shorter pause does not end speech, in seconds.
    """

    path: str | bytes = field(repr=_shown)
    threshold: float = 0.5
    min_speech: float = 0.25
    min_silence: float = 0.1

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.threshold, int | float) or not 0 < self.threshold < 1:
            raise InvalidParameterError(
                f"threshold={self.threshold!r} must be a number between 0 and 1.",
                hint="0.5 suits most recordings.",
            )


@frozen(kw_only=True)
class Voice(Event):
    """Probabilities of speech in consecutive windows of 32 ms, shape (windows,), float32."""

    probabilities: Array


@frozen(kw_only=True)
class Speech(Event):
    """One stretch of speech, in seconds from the start."""

    start: float
    end: float


@frozen(kw_only=True)
class Heard(Usage):
    """What a recording counts: seconds of sound."""

    seconds: float = 0.0
