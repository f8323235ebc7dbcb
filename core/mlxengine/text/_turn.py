"""One turn of a session: what was said in it, and what is still to be said."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import attrs

from .._scheduling.channel import Channel
from ..contract.events import Event, Finished
from ..contract.tokens import TokenUsage
from ..errors import CancelledError, InvalidParameterError
from .messages import Message, ToolResultPart, reply_message
from .outputs import ToolCall, ToolResult
from .replies import TextReply
from .requests import TextRequest, ToolChoice
from .tools import can_run

Send = Callable[[TextRequest], tuple[Channel, Callable[[], None]]]


class Turn:
    """A turn that is running. It becomes part of the history when it is complete, or not at all.

    Args:
        end: told the turn's messages at its end; none if it was dropped.
        new: the messages that began it.
        request: the first request.
        rounds: how many times over tools may be run.
        then: the choice of tools behind their results.
    """

    def __init__(
        self,
        end: Callable[[Turn, Sequence[Message]], None],
        new: Sequence[Message],
        request: TextRequest,
        rounds: int,
        then: ToolChoice | str = "auto",
    ) -> None:
        if rounds and request.tools and request.params.n != 1:
            raise InvalidParameterError("Tools are run for one answer: leave params.n at 1.")
        self.request = request
        self.ready: deque[Event] = deque()  # events for the reader
        self.calls: tuple[ToolCall, ...] = ()  # to be run before anything else comes
        self.channel: Channel
        self._send: Send
        self._cancel: Callable[[], None] = lambda: None
        self._end = end
        self._messages = list(new)
        self._rounds = rounds
        self._then = then
        self._events: list[Event] = []
        self._usage = TokenUsage()
        self._over = False

    def send(self, send: Send) -> None:
        """Send the turn's request; ``send`` is used again when tools have run."""
        self._send = send
        self.channel, self._cancel = send(self.request)

    def saw(self, event: Event) -> None:
        """Take note of an event. The last one completes the turn, or leaves ``calls`` to run."""
        self._events.append(event)
        if not isinstance(event, Finished):
            self.ready.append(event)
            return
        reply = TextReply.of(self._events)
        self._messages.append(reply_message(reply.text, reply.tool_calls, reply.reasoning))
        self._usage += reply.usage
        if reply.tool_calls and self._rounds > 0 and can_run(self.request.tools, reply.tool_calls):
            self._rounds -= 1
            self.calls = reply.tool_calls
            return
        self.ready.append(attrs.evolve(event, usage=self._usage))
        self._over = True
        self._end(self, self._messages)

    def go_on(self, results: Sequence[ToolResultPart]) -> None:
        """Show the model what its tools answered.

        Raises:
            CancelledError: the turn was dropped meanwhile.
        """
        if self._over:
            raise CancelledError("The turn was cancelled while its tools ran.")
        before = len(self._messages)
        self._messages += [Message.tool(result) for result in results]
        said = self._messages[before - 1 :]
        self.request = attrs.evolve(
            self.request,
            messages=(*self.request.messages, *said),
            tool_choice=self._then,
        )
        self.ready.extend(
            ToolResult(id=part.id, name=part.name, content=part.content, error=part.error) for part in results
        )
        self.calls, self._events = (), []
        self.send(self._send)

    def cancel(self) -> None:
        """Stop the request that runs."""
        self._cancel()

    def drop(self) -> None:
        """Forget the turn, unless it is complete."""
        self._over = True
        self._end(self, ())


__all__ = ["Turn"]
