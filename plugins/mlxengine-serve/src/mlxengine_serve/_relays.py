"""Streams that outlive a lost connection: numbered frames, kept for a while for whoever comes back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from attrs import define, field

from ._counts import Counts
from ._http import CALLER, LEFT, Caller, Receive, Scope, Send, until_gone
from ._refusals import Refusal

MOST_BYTES = 1 << 20
_FAREWELL_SECONDS = 1.0
_END = b"\n\n"


@define(eq=False)
class Relay:
    """One stream between the task that writes it and the connection that reads it.

    Its last `MOST_BYTES` are kept. While nobody reads nothing is dropped: the writer waits once so much is
    kept, as it does for a slow reader.
    """

    caller: Caller
    task: asyncio.Task[None] | None = None
    start: MutableMapping[str, Any] | None = None
    readers: int = 0  # how many there were; only the last one reads
    over: bool = False
    _reading: bool = False
    _frames: deque[tuple[int, bytes]] = field(factory=deque, init=False)
    _size: int = field(default=0, init=False)
    _last: int = field(default=0, init=False)
    _sent: int = field(default=0, init=False)
    _changed: asyncio.Condition = field(factory=asyncio.Condition, init=False)

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """What the writer sends, as to a connection."""
        async with self._changed:
            if message["type"] == "http.response.start":
                self.start = message
            else:
                for frame in message.get("body", b"").split(_END)[:-1]:
                    await self._changed.wait_for(lambda: self._size < MOST_BYTES or self._droppable)
                    self._keep(frame + _END)
                self.over = not message.get("more_body", False)
            self._changed.notify_all()

    @property
    def _droppable(self) -> bool:
        return self._reading and self._frames[0][0] <= self._sent

    def _keep(self, frame: bytes) -> None:
        self._last += 1
        if not frame.startswith(b":"):  # a comment is no event
            frame = f"id: {self.caller.id}:{self._last}\n".encode() + frame
        self._frames.append((self._last, frame))
        self._size += len(frame)
        while self._size > MOST_BYTES and self._droppable:
            self._size -= len(self._frames.popleft()[1])

    async def ended(self) -> None:
        """The writer writes no more, whether it came to its end or not."""
        async with self._changed:
            self.over = True
            self._changed.notify_all()

    def taken(self, after: int) -> int:
        """Let another one read, from behind a frame; the reader's number.

        Raises:
            Refusal: 410, it is not kept any more.
        """
        first = self._frames[0][0] if self._frames else self._last + 1
        if not first - 1 <= after <= self._last:
            raise Refusal(410, "What came behind this event is not kept any more.", code="stream_gone")
        self.readers += 1
        self._reading, self._sent = True, after
        return self.readers

    async def read(self, send: Send, me: int) -> None:
        """Send what a reader lacks, and what still comes, until the end or until another one reads.

        Raises:
            BaseException: what the writer failed with before the stream began.
        """
        try:
            await self._wait(lambda: self.over or self.start is not None)
            if self.start is None:
                assert self.task is not None
                await self.task
                raise AssertionError("it ended and never began")
            await send({**self.start, "headers": list(self.start["headers"])})
            await self.rest(send, me)
        finally:
            self._reading = self._reading and self.readers != me

    async def rest(self, send: Send, me: int) -> None:
        """As `read`, of a stream whose beginning the reader has."""
        while self.readers == me and not (self.over and self._sent == self._last):
            await self._wait(lambda: self.over or self._last > self._sent or self.readers != me)
            body = b"".join(frame for number, frame in self._frames if number > self._sent)
            last = self._last
            if body and self.readers == me:
                await send({"type": "http.response.body", "body": body, "more_body": True})
                if self.readers == me:  # else it is another one's by now
                    self._sent = last
        await send({"type": "http.response.body", "body": b""})

    async def _wait(self, true: Callable[[], bool]) -> None:
        async with self._changed:
            self._changed.notify_all()  # the writer may go on
            await self._changed.wait_for(true)


@define(eq=False)
class Relays:
    """The streams that may be taken up again.

    Args:
        seconds: how long one goes on that nobody reads.
        counts: told how many there are.
    """

    seconds: float
    counts: Counts
    _open: dict[str, Relay] = field(factory=dict, init=False)

    async def serve(self, write: Callable[[Send], Awaitable[None]], caller: Caller, send: Send) -> None:
        """Stream what ``write`` writes; who leaves once it has begun may come back for the rest.

        Raises:
            Exception: what it failed with before the stream began.
        """
        relay = self._open[caller.id] = Relay(caller)
        self.counts.resumable = len(self._open)

        async def run() -> None:
            try:
                await write(relay.send)
            finally:
                await relay.ended()

        relay.task = caller.beyond = asyncio.ensure_future(run())
        await self._read(relay, send, 0)

    async def resume(self, scope: Scope, receive: Receive, send: Send, last: str) -> None:
        """Answer a request that names the last event that it saw.

        Raises:
            Refusal: 410, there is no such stream, not any more, or it is another key's.
        """
        scope["mlxengine_serve.route"] = "resumed"
        name, _, number = last.rpartition(":")
        relay, caller = self._open.get(name), scope[CALLER]
        if relay is None or relay.caller.key != caller.key or not (number.isascii() and number.isdecimal()):
            raise Refusal(410, "There is no such stream to go on with.", code="stream_gone")
        await until_gone(receive, self._read(relay, send, int(number[:20])))

    async def _read(self, relay: Relay, send: Send, after: int) -> None:
        reader = relay.taken(after)
        try:
            await relay.read(send, reader)
        except asyncio.CancelledError as error:
            if LEFT not in error.args and relay.start is not None and relay.task is not None:
                # The server ends, and who still reads hears of it.
                relay.task.cancel()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_FAREWELL_SECONDS):
                        await relay.rest(send, reader)
            raise
        finally:
            if relay.start is None:
                self._end(relay)  # who has seen nothing cannot say where to go on
            else:
                asyncio.get_running_loop().call_later(self.seconds, self._end, relay, reader)

    def _end(self, relay: Relay, reader: int | None = None) -> None:
        """Nobody reads any more, unless somebody has come since that reader."""
        if reader in (None, relay.readers) and relay.caller.id in self._open:
            del self._open[relay.caller.id]
            self.counts.resumable = len(self._open)
            if relay.task is not None:
                relay.task.cancel()

    async def close(self) -> None:
        """End them all."""
        tasks = [relay.task for relay in self._open.values() if relay.task is not None]
        for task in tasks:
            if not task.cancelling():  # else it says its last word now
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


__all__ = ["Relays"]
