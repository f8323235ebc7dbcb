"""What `load` returns for a voice activity detector."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict, Unpack

from mlxengine import AsyncModelHandle, Event, ModelHandle

from .types import ListenRequest, Speech


class ListenOptions(TypedDict, total=False):
    """What a call may say about listening; `ListenRequest` says what each means."""

    threshold: float
    min_speech: float
    min_silence: float


class SpeechHandle(ModelHandle):
    """A loaded detector. `stream` a `ListenRequest` to see the probability of each window too."""

    def listen(self, path: str | Path, **options: Unpack[ListenOptions]) -> tuple[Speech, ...]:
        """The stretches of speech in a WAV file, in order.

        Raises:
            UnsupportedInputError: the file cannot be read, or is not 16 kHz, one channel, 16 bits.
        """
        return _speech(self.run(ListenRequest(path=str(path), **options)).events)


class AsyncSpeechHandle(AsyncModelHandle):
    """The same for asyncio."""

    async def listen(self, path: str | Path, **options: Unpack[ListenOptions]) -> tuple[Speech, ...]:
        """See `SpeechHandle.listen`."""
        return _speech((await self.run(ListenRequest(path=str(path), **options))).events)


def _speech(events: Iterable[Event]) -> tuple[Speech, ...]:
    return tuple(event for event in events if isinstance(event, Speech))
