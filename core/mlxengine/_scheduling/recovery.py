"""Trying again what can succeed the second time, without saying anything twice."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..contract.events import Event, Progress
from ..errors import EngineClosedError, MLXEngineError, WaitTimeoutError, out_of_memory
from .channel import Channel

log = logging.getLogger("mlxengine.scheduler")


class RecoveringSink:
    """A channel whose request is submitted once more if it failed recoverably before it said anything.

    Args:
        channel: where the events go.
        again: submits the request again, with this sink.
        aside: calls a function on another thread (submitting may wait for a step); if the second argument
            is true, after everything that can go has made room.
        relieves: whether a request that memory ran out under is tried again so.
    """

    def __init__(
        self,
        channel: Channel,
        again: Callable[[], None],
        aside: Callable[[Callable[[], None], bool], None],
        *,
        relieves: bool,
    ) -> None:
        self._channel = channel
        self._again = again
        self._aside = aside
        self._relieves = relieves
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
        recoverable = recoverable and not isinstance(error, WaitTimeoutError)  # its time is over
        short = self._relieves and out_of_memory(error)
        if error is None or not (recoverable or short) or self._spoke or not self._attempts:
            self._channel.end(error)
            return
        self._attempts -= 1
        log.info("Trying a request again after: %s", error)
        self._aside(lambda: self._once_more(error), short)

    def _once_more(self, error: BaseException) -> None:
        try:
            self._again()
        except EngineClosedError:
            self._channel.end(error)
