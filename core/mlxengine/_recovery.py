"""Trying again what can succeed the second time, without saying anything twice."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ._channel import Channel
from .errors import EngineClosedError, MLXEngineError
from .events import Event, Progress

log = logging.getLogger("mlxengine.scheduler")


class RecoveringSink:
    """A channel whose request is submitted once more if it failed recoverably before it said anything.

    Args:
        channel: where the events go.
        again: submits the request again, with this sink.
    """

    def __init__(self, channel: Channel, again: Callable[[], None]) -> None:
        self._channel = channel
        self._again = again
        self._attempts = 1
        self._spoke = False

    @property
    def full(self) -> bool:
        return self._channel.full

    def put(self, event: Event) -> None:
        self._spoke = self._spoke or not isinstance(event, Progress)
        self._channel.put(event)

    def end(self, error: BaseException | None = None) -> None:
        recoverable = isinstance(error, MLXEngineError) and error.recoverable
        if recoverable and not self._spoke and self._attempts:
            self._attempts -= 1
            log.info("Trying a request again after: %s", error)
            try:
                self._again()
            except EngineClosedError:
                pass
            else:
                return
        self._channel.end(error)
