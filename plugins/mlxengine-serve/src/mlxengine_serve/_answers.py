"""From a request that was read to an answer that was sent: waiting, streaming, errors, in any dialect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, Protocol

from attrs import define, evolve, frozen
from mlxengine import (
    AsyncEventStream,
    AsyncModelHandle,
    ChoiceFinished,
    Event,
    Finished,
    ImageRequest,
    Request,
    TokenUsage,
)
from mlxengine.errors import ModelClosedError

from ._admission import retry_after
from ._fields import Table
from ._forms import read_form
from ._http import (
    CALLER,
    Caller,
    EventWriter,
    Headers,
    Receive,
    Scope,
    Send,
    ignored,
    read_json,
    send_bytes,
    until_gone,
)
from ._pictures import size_of
from ._refusals import ENDING, Refusal, encoded, encoded_apart, log_failure, refusal_of
from ._server import Server
from .options import ServerOptions

_FAREWELL_SECONDS = 1.0


class Writer(Protocol):
    """A dialect's stream: events in, frames out."""

    def open(self) -> bytes:
        """What the stream begins with; asked for once, before any event."""
        ...

    def beat(self) -> bytes:
        """What shows that it lives while there is nothing to say."""
        ...

    def event(self, event: Event) -> bytes:
        """The frames of an event; none for one that the dialect has no word for."""
        ...

    def fail(self, refusal: Refusal, request_id: str) -> bytes:
        """What an answer that has begun ends with when it fails."""
        ...


@frozen
class Content:
    """An answer that is no JSON: its bytes, and their type as HTTP has it."""

    data: bytes
    type: str


@frozen(kw_only=True)
class Asked:
    """A request as a dialect has read it.

    Args:
        model: the name that the client gave.
        requests: what the engine is asked; several are answered as the choices of one.
        handle: the handle that the model must have, and what that gives, for the message where it has not.
        whole: makes the answer of all events: a value for JSON, or a `Content`.
        writer: streams it instead.
        unknown: names of fields that nobody here knows.
        aside: whether making the answer takes long, and is done beside the event loop.
        priority: beside the key's own: it lowers, or raises no higher than that.
    """

    model: str | None
    requests: tuple[Request, ...]
    handle: type[AsyncModelHandle]
    gives: str
    whole: Callable[[list[Event]], Any]
    writer: Writer | None = None
    unknown: Sequence[str] = ()
    aside: bool = False
    priority: int = 0


Read = Callable[[dict[str, Any], str], Asked]


@frozen
class Dialect:
    """How the bodies of a path are read: by which table, by what, and the kinds of a form's fields."""

    table: Table
    read: Read
    form: Mapping[str, type] | None = None


@define(eq=False)
class Endpoint:
    """A path whose body a dialect reads: ``read(fields, request id)``.

    ``form``: the body may be a form, whose fields are of these kinds. ``told``: says the engine's errors in
    the dialect's words (`Table.told`).
    """

    server: Server
    path: str
    read: Read
    form: Mapping[str, type] | None = None
    told: Callable[[Mapping[str, Any], str], tuple[str | None, str]] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["mlxengine_serve.route"] = self.path
        caller: Caller = scope[CALLER]
        options = self.server.options
        if self.form is None:
            body = await read_json(scope, receive, options)
        else:
            body = await read_form(scope, receive, options, self.form)
        caller.told = None if self.told is None else partial(self.told, body)
        with self.server.admission.admitted(caller):
            await until_gone(receive, self._answer(body, caller, send))

    async def _answer(self, body: dict[str, Any], caller: Caller, send: Send) -> None:
        await self.server.remote.bring(body)
        if self.form is not None or self.server.options.remote_images:
            caller.large = True  # pictures are opened, or have come since
        asked = await caller.aside(self._asked, body, caller)
        await answer(self.server, caller, asked, send)

    def _asked(self, body: dict[str, Any], caller: Caller) -> Asked:
        asked = self.read(body, caller.id)
        bounded(asked, self.server.options)
        return asked


@define(eq=False)
class Refused:
    """A path that clients know, and nothing here serves."""

    message: str

    async def __call__(self, _scope: Scope, _receive: Receive, _send: Send) -> None:
        raise Refusal(400, self.message, code="unsupported_url")


def bounded(asked: Asked, options: ServerOptions) -> None:
    """Whether a request asks for no more than it may: answers, and pixels and steps of pictures.

    Raises:
        Refusal: 400, it does.
    """
    counts = [getattr(getattr(item, "params", item), "n", 1) for item in asked.requests]
    if sum(counts) > options.max_choices:
        raise _beyond("n", f"A request may have {options.max_choices} answers.")
    for item in asked.requests:
        if isinstance(item, ImageRequest):
            if (item.steps or 0) > options.max_steps:
                raise _beyond("steps", f"A picture may have {options.max_steps} steps.")
            width, height = item.size or _own_size(item)
            if width * height > options.max_pixels:
                raise _beyond("size", f"A picture may have {options.max_pixels} pixels.")


def _own_size(request: ImageRequest) -> tuple[int, int]:
    """What a picture has whose size was not said: that of the one that it starts from, or looks at first."""
    start = next(iter(request.references), None) if request.init_image is None else request.init_image
    return size_of(start, "image") if isinstance(start, bytes) else (0, 0)


def _beyond(param: str, message: str) -> Refusal:
    return Refusal(400, message, param=param, code="invalid_value")


async def answer(server: Server, caller: Caller, asked: Asked, send: Send) -> None:
    """Run what was asked and send what comes of it; cancelling ends it wherever it is.

    Raises:
        Refusal: it failed before the answer began.
    """
    headers = ignored(list(asked.unknown))
    if asked.writer is None:
        try:
            async with server.watch.over(), aclosing(await events_of(server, caller, asked)) as arriving:
                events = [event async for several in arriving for event in several]
        except Exception as error:
            raise _refused(server, caller, error) from error
        if asked.aside:
            found = await asyncio.to_thread(_whole, asked, events, encoded_apart)
        else:
            found = _whole(asked, events, encoded)
        await send_bytes(send, 200, found.data, found.type, headers)
        return
    writer = asked.writer
    if server.relays is None:
        await _stream(server, caller, asked, writer, send, headers)
    else:
        await server.relays.serve(
            lambda out: _stream(server, caller, asked, writer, out, headers), caller, send
        )


def _whole(asked: Asked, events: list[Event], write: Callable[[Any], bytes]) -> Content:
    made = asked.whole(events)
    return made if isinstance(made, Content) else Content(write(made), "application/json")


async def _stream(
    server: Server, caller: Caller, asked: Asked, writer: Writer, send: Send, headers: Headers
) -> None:
    out = EventWriter(
        send,
        headers=headers,
        first_seconds=server.options.first_byte_seconds,
        beat_seconds=server.options.heartbeat_seconds,
        opening=writer.open(),
        beat=writer.beat,
    )
    async with out:
        try:
            async with server.watch.over(), aclosing(await events_of(server, caller, asked)) as events:
                async for several in events:
                    if asked.aside:
                        data = await asyncio.to_thread(_frames, writer, several)
                    else:
                        data = _frames(writer, several)
                    if data:
                        await out.write(data)
        except asyncio.CancelledError:
            # The client left, and hears no more; or the server ends, and says so.
            with suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL_SECONDS):
                    if out.started:
                        await out.write(writer.fail(ENDING, caller.id))
                        await out.end()
            raise
        except Exception as error:
            refusal = _refused(server, caller, error)
            if not out.started:
                raise refusal from error
            log_failure(caller.id, refusal, error)
            await out.write(writer.fail(refusal, caller.id))
    await out.end()


def _frames(writer: Writer, events: Sequence[Event]) -> bytes:
    return b"".join(map(writer.event, events))


def _refused(server: Server, caller: Caller, error: Exception) -> Refusal:
    refusal = refusal_of(error, retry_after(server.engine.sync, caller.model), caller.told)
    if caller.model is not None and refusal is not error:
        refusal.message = server.models.renamed(refusal.message, caller.model)
    return refusal


async def events_of(server: Server, caller: Caller, asked: Asked) -> AsyncGenerator[Sequence[Event]]:
    """The events of what was asked, the model loaded first where it has to be; closing it ends it.

    Those that have come meanwhile come together, so that they can be sent at once.

    Raises:
        Refusal, MLXEngineError: it cannot be served.
    """
    options, ceiling = server.options, caller.key.priority if caller.key else None
    priority = asked.priority if ceiling is None else min(ceiling, ceiling + asked.priority)

    def timed() -> list[Request]:
        return [
            evolve(
                item, priority=priority, wait_timeout=options.wait_seconds, run_timeout=options.run_seconds
            )
            for item in asked.requests
        ]

    requests = await caller.aside(timed)
    try:
        async with asyncio.timeout(options.wait_seconds):
            handle = await server.models.get_as(asked.handle, asked.model, asked.gives)
    except TimeoutError:
        raise Refusal(504, "The model was not loaded in time.", code="timeout") from None
    caller.model = handle.id
    try:
        return _run(handle, requests)
    except ModelClosedError:  # it was unloaded in this moment; whoever asks now loads it again
        handle = await server.models.get_as(asked.handle, asked.model, asked.gives)
        return _run(handle, requests)


def _run(handle: AsyncModelHandle, requests: list[Request]) -> AsyncGenerator[Sequence[Event]]:
    """The requests' events; they are submitted at once, or `ModelClosedError` is raised."""
    streams = [handle.stream(request) for request in requests]
    return _alone(streams[0]) if len(streams) == 1 else _together(streams, requests[0])


async def _alone(stream: AsyncEventStream) -> AsyncGenerator[Sequence[Event]]:
    async with stream:
        async for event in stream:
            yield event, *stream.arrived()


async def _together(streams: list[AsyncEventStream], first: Request) -> AsyncGenerator[Sequence[Event]]:
    """Several requests as one with as many choices; ``index`` counts through, usage is summed."""
    found: asyncio.Queue[tuple[int, Event | BaseException]] = asyncio.Queue(maxsize=64)

    async def read(number: int, stream: AsyncEventStream) -> None:
        try:
            async with stream:
                async for event in stream:
                    await found.put((number, event))
        except Exception as error:
            await found.put((number, error))

    tasks = [asyncio.ensure_future(read(*item)) for item in enumerate(streams)]
    each = getattr(getattr(first, "params", None), "n", 1)
    usage, last, left = TokenUsage(), Finished(), len(tasks)
    try:
        while left:
            number, event = await found.get()
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, Finished):
                left, last, usage = left - 1, event, usage + TokenUsage.of(event.usage)
                if each == 1:
                    yield (ChoiceFinished(index=number, reason=event.reason, stop=event.stop),)
                continue
            yield (evolve(event, index=number * each + event.index),)
        yield (evolve(last, usage=usage),)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


__all__ = [
    "Asked",
    "Content",
    "Dialect",
    "Endpoint",
    "Read",
    "Refused",
    "Writer",
    "answer",
    "bounded",
    "events_of",
]
