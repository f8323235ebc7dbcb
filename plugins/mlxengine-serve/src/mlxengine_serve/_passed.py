"""The answer of a server behind a front on its way to the client, and its end where that server ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from contextlib import suppress
from typing import cast

import httpx2
from attrs import define, field

from ._answers import Writer
from ._behind import PASSED_ID
from ._http import Caller, Send
from ._members import Member
from ._refusals import ENDING, Refusal, encoded, form_of
from ._response_stream import ResponseStream

_FAREWELL_SECONDS = 1.0
_END = b"\n\n"
# What holds for one connection only, and what every answer of this server's has anyway.
OWN = frozenset(
    b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade expect content-length date "
    b"x-request-id request-id x-content-type-options vary access-control-allow-origin "
    b"access-control-expose-headers".split()
) | {PASSED_ID}


@define(eq=False)
class Passed:
    """One answer. Of a stream whole frames are sent only, so that an error can be the next one."""

    send: Send
    path: str
    caller: Caller
    writer: Writer | None
    _first: bytes | None = field(default=None, init=False)
    _items: list[bytes] = field(factory=list, init=False)
    _last: bytes = field(default=b"", init=False)

    async def all_of(self, member: Member, answer: httpx2.Response) -> None:
        """Send it.

        Raises:
            httpx2.TransportError: the member went away before anything was sent.
            Refusal: it went away in the middle of an answer that has no words for it.
        """
        headers = [item for item in answer.headers.raw if item[0].lower() not in OWN]
        headers.append((b"x-mlxengine-replica", str(member.number).encode()))
        start = {"type": "http.response.start", "status": answer.status_code, "headers": headers}
        stream = cast(AsyncIterable[bytes], answer.stream)
        if "content-length" in answer.headers:
            body = b"".join([chunk async for chunk in stream])
            headers.append((b"content-length", answer.headers["content-length"].encode()))
            await self.send(start)
        elif answer.headers.get("content-type", "").startswith("text/event-stream"):
            await self.send(start)
            body = await self._frames(stream)
        else:
            await self.send(start)
            try:
                async for chunk in stream:
                    await self._write(chunk)
            except httpx2.TransportError as error:
                raise lost() from error
            body = b""
        await self.send({"type": "http.response.body", "body": body})

    async def _write(self, data: bytes) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": True})

    async def _frames(self, stream: AsyncIterable[bytes]) -> bytes:
        """Send all frames but the last words, which are returned."""
        rest = b""
        try:
            async for chunk in stream:
                frames, end, rest = (rest + chunk).rpartition(_END)
                if end:
                    self._remember(frames)
                    await self._write(frames + end)
        except httpx2.TransportError:
            return self._failure(lost())
        except asyncio.CancelledError:
            with suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL_SECONDS):
                    await self.send({"type": "http.response.body", "body": self._failure(ENDING)})
            raise
        return rest

    def _remember(self, frames: bytes) -> None:
        if isinstance(self.writer, ResponseStream):  # its end tells what there was
            several = frames.split(_END)
            self._first = self._first or several[0]
            self._items += [item for item in several if b"event: response.output_item.done\n" in item]
            self._last = several[-1]

    def _failure(self, refusal: Refusal) -> bytes:
        if self.writer is None:
            said = encoded(form_of(self.path)(refusal, self.caller.id))
            return b"event: error\ndata: " + said + _END
        if isinstance(self.writer, ResponseStream):
            if self._first is None:
                return self.writer.open() + self.writer.fail(refusal, self.caller.id)
            self.writer.take_over(self._first, self._items, self._last)
        return self.writer.fail(refusal, self.caller.id)


def lost() -> Refusal:
    """What a request is told whose member has ended."""
    return Refusal(503, "The replica that had this request has ended.", code="replica_lost", retry_after=1)


__all__ = ["OWN", "Passed", "lost"]
