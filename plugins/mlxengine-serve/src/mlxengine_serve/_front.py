"""What stands before several servers of the same models: it shares requests out, and knows who is gone."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress

import httpx2
from attrs import define, field
from mlxengine import TextRequest
from starlette.routing import Router

from ._admission import Admission
from ._answers import Asked
from ._behind import PASSED_ID
from ._counts import Counts
from ._guard import Guard
from ._http import (
    CALLER,
    LARGE,
    ASGIApp,
    Caller,
    Receive,
    Scope,
    Send,
    header,
    parsed,
    read_body,
    send_bytes,
    send_json,
    until_gone,
)
from ._members import Gone, Member, merged
from ._observe import OPENMETRICS
from ._passed import OWN, Passed, lost
from ._prefixes import Prefixes, keys_of
from ._refusals import Refusal
from .app import DIALECTS, dialect
from .options import ServerOptions

_MOST_STREAMS = 10_000


def create_front(
    members: Sequence[Member],
    options: ServerOptions,
    tended: Callable[[], AbstractAsyncContextManager[None]],
) -> ASGIApp:
    """An ASGI application that shares requests out among servers.

    Args:
        members: the servers.
        options: theirs; hosts, origins, keys and bounds are checked here too.
        tended: what keeps the members up to date while the application runs.
    """
    counts = Counts()
    front = Front(members, options, counts)
    return Guard(Router(default=front, lifespan=lambda _app: tended()), options, counts)


@define(eq=False)
class Front:
    """Requests go to the member that `Prefixes` chooses; what is asked of all is answered here.

    The process of a member may end at any time. What it had is then ended in the words of its interface and
    not asked again, as it may be what ended the process; a request that had not reached it goes elsewhere.
    """

    members: Sequence[Member]
    options: ServerOptions
    counts: Counts
    _admission: Admission = field(factory=Admission, init=False)
    _prefixes: Prefixes = field(factory=Prefixes, init=False)
    _seen: dict[int, int] = field(factory=dict, init=False)
    _streams: OrderedDict[str, Member] = field(factory=OrderedDict, init=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        own = {
            "/health": self._health,
            "/ready": self._ready,
            "/metrics": self._metrics,
            "/replicas": self._list,
        }
        path, caller = scope["path"], scope[CALLER]
        if scope["method"] == "GET" and path in own:
            scope["mlxengine_serve.route"] = path
            await own[path](scope, send)
            return
        scope["mlxengine_serve.route"] = path if path in DIALECTS else "other"
        body = await read_body(scope, receive, self.options)
        with self._admission.admitted(caller) if scope["method"] == "POST" else nullcontext():
            await until_gone(receive, self._pass(scope, body, caller, send))

    # -- what is asked of all ----------------------------------------------------------------------------

    async def _health(self, _scope: Scope, send: Send) -> None:
        await send_json(send, {"status": "ok"})

    async def _ready(self, _scope: Scope, send: Send) -> None:
        replicas = {str(item.number): item.trouble or "ready" for item in self.members}
        if "ready" in replicas.values():
            await send_json(send, {"status": "ready", "replicas": replicas})
        else:
            reason = "no replica is ready"
            value = {"status": "not ready", "reason": reason, "replicas": replicas}
            await send_json(send, value, 503, {"retry-after": "1"})

    async def _list(self, _scope: Scope, send: Send) -> None:
        await send_json(send, {"replicas": [item.row for item in self.members]})

    async def _metrics(self, scope: Scope, send: Send) -> None:
        headers = [item for item in scope["headers"] if item[0] not in OWN]  # the key among them

        async def figures_of(member: Member) -> bytes:
            with suppress(Gone, httpx2.TransportError, TimeoutError):
                async with asyncio.timeout(self.options.ready_seconds):
                    status, text = await member.get(b"/metrics", headers)
                    return text if status == 200 else b""
            return b""

        texts = await asyncio.gather(*map(figures_of, self.members))
        text = await asyncio.to_thread(merged, texts, self.members, self.counts)
        await send_bytes(send, 200, text, OPENMETRICS)

    # -- what one of them does ---------------------------------------------------------------------------

    async def _pass(self, scope: Scope, body: bytes, caller: Caller, send: Send) -> None:
        asked = await self._read(scope, body, caller)
        keys: tuple[bytes, ...] = ()
        if asked is not None and isinstance(request := asked.requests[0], TextRequest):
            keys = await caller.aside(keys_of, asked.model, request)
        headers = [item for item in scope["headers"] if item[0] not in OWN]
        headers.append((PASSED_ID, caller.id.encode()))
        query = scope["query_string"]
        target = scope["raw_path"] + (b"?" + query if query else b"")
        out = Passed(send, scope["path"], caller, asked.writer if asked else None)
        while True:
            member = self._chosen(scope, keys)
            member.open += 1
            try:
                async with member.asked(scope["method"], target, headers, body) as answer:
                    if self.options.resume_seconds is not None:
                        self._streams[caller.id] = member
                        while len(self._streams) > _MOST_STREAMS:
                            self._streams.popitem(last=False)
                    await out.all_of(member, answer)
                return
            except Gone:
                member.left("its process is gone")
            except httpx2.TransportError:
                raise lost() from None
            finally:
                member.open -= 1

    async def _read(self, scope: Scope, body: bytes, caller: Caller) -> Asked | None:
        """A request as its dialect reads it; ``None`` where it has none, or cannot be read: that is answered
        by whoever gets it."""
        if scope["method"] != "POST" or scope["path"] not in DIALECTS:
            return None
        caller.large = len(body) > LARGE

        def read() -> Asked:
            return dialect(scope["path"]).read(parsed(body), caller.id)

        try:
            return await caller.aside(read)
        except Exception:  # whatever it is, the same code says it there
            return None

    def _chosen(self, scope: Scope, keys: Sequence[bytes]) -> Member:
        last = (header(scope, b"last-event-id") or "").rpartition(":")[0]
        if (member := self._streams.get(last)) is not None and member.figures is not None:
            return member
        for member in self.members:
            if self._seen.get(member.number) != member.starts:
                self._seen[member.number] = member.starts
                self._prefixes.forget(member.number)
        there = [item for item in self.members if item.figures is not None]
        free = [item for item in there if item.trouble is None] or there
        if not free:
            raise Refusal(503, "No replica runs; they are being started.", code="no_replica", retry_after=5)
        loads = {item.number: item.open for item in free}
        number = self._prefixes.choose(keys, loads)
        return next(item for item in free if item.number == number)


__all__ = ["Front", "create_front"]
