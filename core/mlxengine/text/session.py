"""Conversations: a session keeps the history and sends all of it with each turn.

What a model computed for the turns before is reused by the plugin (longest common prefix); a session only
has to send the same messages again. A turn becomes part of the history when it is complete: one that is
cancelled or fails leaves no trace.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Self, TypedDict, TypeVar, Unpack

from .._scheduling.channel import Channel
from ..contract._convert import anything, converted, json_object, only
from ..contract.events import Event
from ..errors import InvalidParameterError, MisuseError
from ..readonly import thaw
from ..streams import AsyncEventStream, EventStream, Reader
from ._turn import Turn
from .handle import AsyncTextHandle, TextHandle
from .messages import Message, Part, Role, ToolResultPart, as_messages
from .outputs import ToolResult
from .params import GenerateParams
from .replies import TextReply
from .requests import TextRequest, ToolChoice
from .tools import run_calls, run_calls_async
from .transcript import Transcript, read_transcript, write_transcript

Content = str | Part | Message | Iterable[str | Part | Message]
Handle = TypeVar("Handle", TextHandle, AsyncTextHandle)


class ToolOptions(TypedDict, total=False):
    """What a session may be told of its tools; `Session` says what each means."""

    tools: Sequence[Any]
    tool_rounds: int
    tool_choice: ToolChoice | str
    parallel_tool_calls: bool | None


class SessionOptions(ToolOptions, total=False):
    """What a session may begin with; `Session` says what each means."""

    instructions: str | None
    params: GenerateParams | None
    chat_template_kwargs: Mapping[str, Any]
    history: Iterable[Message]


class _Session(Generic[Handle]):
    """What the sync and the async session share: the history and who may add to it."""

    def __init__(self, model: Handle, **options: Unpack[SessionOptions]) -> None:
        only(options, SessionOptions)
        self.tool_rounds = options.get("tool_rounds", 0)
        if not isinstance(self.tool_rounds, int) or self.tool_rounds < 0:
            raise InvalidParameterError(f"tool_rounds={self.tool_rounds!r} must be an integer from 0.")
        self._model: Handle = model
        self.instructions = options.get("instructions")
        self.params = options.get("params") or GenerateParams()
        self.tools = converted("tools", anything, options.get("tools", ()))
        self.tool_choice = options.get("tool_choice", "auto")
        self.parallel_tool_calls = options.get("parallel_tool_calls")
        variables = options.get("chat_template_kwargs", {})
        self.chat_template_kwargs: dict[str, Any] = thaw(
            converted("chat_template_kwargs", json_object, variables)
        )
        self._messages = converted("history", as_messages, options.get("history", ()))
        self._lock = threading.Lock()
        self._turn: Turn | None = None

    @property
    def model(self) -> Handle:
        """The model that answers."""
        return self._model

    @property
    def messages(self) -> tuple[Message, ...]:
        """The complete turns so far, without the instructions."""
        return self._messages

    @property
    def transcript(self) -> Transcript:
        """Everything that `save` writes, as a value."""
        return Transcript(
            model=self._model.id,
            instructions=self.instructions,
            params=self.params,
            chat_template_kwargs=self.chat_template_kwargs,
            messages=self._messages,
        )

    def undo(self) -> tuple[Message, ...]:
        """Take back the last turn (from the user's message on) and return it; empty if there is none.

        Raises:
            MisuseError: a turn is running.
        """
        with self._lock:
            self._idle()
            starts = [i for i, message in enumerate(self._messages) if message.role is Role.USER]
            start = starts[-1] if starts else 0
            taken, self._messages = self._messages[start:], self._messages[:start]
        return taken

    def clear(self) -> None:
        """Forget every turn; the instructions stay.

        Raises:
            MisuseError: a turn is running.
        """
        with self._lock:
            self._idle()
            self._messages = ()

    def save(self, path: str | Path) -> None:
        """Write the transcript as JSON, atomically.

        Raises:
            InvalidParameterError: a message holds a picture or sound that is neither a path nor bytes.
            OSError: the file cannot be written.
        """
        write_transcript(Path(path), self.transcript)

    @classmethod
    def restore(cls, model: Handle, path: str | Path, **options: Unpack[ToolOptions]) -> Self:
        """The session that was saved, with this model (it may be another one), and tools for what comes.

        Raises:
            ConfigurationError: the file is not a transcript.
        """
        only(options, ToolOptions)
        found = read_transcript(Path(path))
        return cls(
            model,
            instructions=found.instructions,
            params=found.params,
            chat_template_kwargs=found.chat_template_kwargs,
            history=found.messages,
            **options,
        )

    def _begin(self, content: Content, params: GenerateParams | None) -> Turn:
        """Begin a turn and send its first request."""
        new: tuple[Message, ...] = _turn_messages(content)
        then = self._choice_then()
        with self._lock:
            self._idle()
            request = TextRequest(
                messages=(*self._messages, *new),
                params=params or self.params,
                instructions=self.instructions,
                tools=self.tools,
                tool_choice=then if _answers_a_call(new) else self.tool_choice,
                parallel_tool_calls=self.parallel_tool_calls,
                chat_template_kwargs=self.chat_template_kwargs,
            )
            self._turn = turn = Turn(self._end, new, request, self.tool_rounds, then)
        try:
            turn.send(self._send)
        except BaseException:
            turn.drop()
            raise
        return turn

    def _choice_then(self) -> ToolChoice | str:
        """The choice behind a tool's result, where a forced call would follow itself for ever."""
        if self.tool_choice in ("auto", "none"):
            return self.tool_choice
        return "auto" if "tools" in self._model.capabilities else "none"  # by itself such a model cannot call

    def _send(self, request: TextRequest) -> tuple[Channel, Callable[[], None]]:
        model = self._model
        return model._engine._open(model._live, request, model.closed)

    def _idle(self) -> None:
        if self._turn is not None:
            raise MisuseError(
                "This session is answering already: finish or close its stream first, or use a session each."
            )

    def _end(self, turn: Turn, messages: Sequence[Message]) -> None:
        with self._lock:
            if self._turn is turn:
                self._turn = None
                self._messages = (*self._messages, *messages)


class _TurnReader(Reader):
    """The events of one turn. Leaving it before its end forgets the turn."""

    def __init__(self, turn: Turn) -> None:
        super().__init__(turn.channel, turn.cancel)
        self._turn = turn

    def _go_on(self, results: Sequence[ToolResultPart]) -> None:
        """Show the model what its tools answered, and read what it says to that."""
        self._turn.go_on(results)
        self._channel, self.finished = self._turn.channel, None

    def arrived(self, most: int = 16) -> list[Event]:
        """The events that are ready, at most so many; a step of the loop makes others ready."""
        ready = self._turn.ready
        return [ready.popleft() for _ in range(min(most, len(ready)))]

    def cancel(self) -> None:
        """Stop the answer and forget the turn. Harmless when it is over."""
        super().cancel()
        self._turn.drop()

    def __del__(self) -> None:
        self._turn.drop()
        super().__del__()


class SessionStream(_TurnReader, EventStream):
    """The events of one turn. Leaving it before its end forgets the turn.

    Where the session runs its tools, they run on the reader's thread (several at once in threads), and each
    result is a `ToolResult` event.
    """

    def __next__(self) -> Event:
        turn = self._turn
        try:
            while not turn.ready:
                turn.saw(super().__next__())
                if turn.calls:
                    self._go_on(run_calls(turn.request.tools, turn.calls))
            return turn.ready.popleft()
        except StopIteration:
            raise
        except BaseException:
            self.cancel()
            raise


class AsyncSessionStream(_TurnReader, AsyncEventStream):
    """The events of one turn, for asyncio. Leaving it before its end forgets the turn.

    Where the session runs its tools, coroutine functions run on the loop and the others in threads, those of
    one answer side by side, and each result is a `ToolResult` event.
    """

    async def __anext__(self) -> Event:
        turn = self._turn
        try:
            while not turn.ready:
                turn.saw(await super().__anext__())
                if turn.calls:
                    self._go_on(await run_calls_async(turn.request.tools, turn.calls))
            return turn.ready.popleft()
        except StopAsyncIteration:
            raise
        except BaseException:
            self.cancel()
            raise


class Session(_Session[TextHandle]):
    """A conversation with a language or vision-language model.

    Args:
        model: the model that answers.
        instructions: a system message before everything.
        params: how answers are generated where a turn says nothing else.
        tools: tools that the model may call.
        tool_rounds: how many times over, in one turn, calls are run and their results shown to the model;
            0, as where it is left out, leaves the calls to the caller. Calls that are left when the rounds
            are used up, and those of tools that are only described, are left to the caller too
            (``finish_reason`` is ``tool_calls``).
        tool_choice: see `TextRequest`. A call that it forces is the first thing that a user's message is
            answered with; what comes behind a tool's result is the model's choice, or no call where it has
            no format of calls of its own.
        parallel_tool_calls, chat_template_kwargs: see `TextRequest`.
        history: turns that came before.
    """

    def stream(self, content: Content, params: GenerateParams | None = None) -> SessionStream:
        """Start the answer to a text, parts, a message or several (tool results, for example).

        Raises:
            MisuseError: a turn of this session is running.
            InvalidParameterError: the content is nothing that a message holds.
        """
        return SessionStream(self._begin(content, params))

    def respond(self, content: Content, params: GenerateParams | None = None) -> TextReply:
        """The whole answer; of a turn in which tools ran, what the model said last.

        Raises:
            MLXEngineError: what the request ended with; the turn is then forgotten.
            MisuseError: a turn of this session is running.
        """
        with self.stream(content, params) as stream:
            return _last(stream)


class AsyncSession(_Session[AsyncTextHandle]):
    """A conversation with a language or vision-language model, for asyncio.

    The arguments are those of `Session`.
    """

    def stream(self, content: Content, params: GenerateParams | None = None) -> AsyncSessionStream:
        """Start the answer to a text, parts, a message or several; its events come to an ``async for``.

        Raises:
            MisuseError: a turn of this session is running.
            InvalidParameterError: the content is nothing that a message holds.
        """
        return AsyncSessionStream(self._begin(content, params))

    async def respond(self, content: Content, params: GenerateParams | None = None) -> TextReply:
        """The whole answer; of a turn in which tools ran, what the model said last.

        A task that is cancelled meanwhile forgets the turn.

        Raises:
            MLXEngineError: what the request ended with; the turn is then forgotten.
            MisuseError: a turn of this session is running.
        """
        async with self.stream(content, params) as stream:
            return _last([event async for event in stream])


def _last(stream: Iterable[Event]) -> TextReply:
    """The reply after the last tool's result."""
    events = list(stream)
    results = [at for at, event in enumerate(events) if isinstance(event, ToolResult)]
    return TextReply.of(events[results[-1] + 1 :] if results else events)


def _answers_a_call(messages: Sequence[Message]) -> bool:
    return all(message.role is Role.TOOL for message in messages)


def _turn_messages(content: Content) -> tuple[Message, ...]:
    if isinstance(content, Message):
        return (content,)
    if isinstance(content, str | Part):
        return (Message.user(content),)
    items = tuple(content) if isinstance(content, Iterable) else (content,)
    if not items:
        raise InvalidParameterError("A turn needs a text, a part or a message.")
    messages = tuple(item for item in items if isinstance(item, Message))
    if not messages:
        return (Message.user(items),)  # type: ignore[arg-type]  # checked there
    if len(messages) != len(items):
        raise InvalidParameterError("A turn holds either messages, or texts and parts of one message.")
    return messages


__all__ = [
    "AsyncSession",
    "AsyncSessionStream",
    "Content",
    "Session",
    "SessionOptions",
    "SessionStream",
    "ToolOptions",
]
