"""The servers behind a front: where each is, how to ask it, and the figures of all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from attrs import define, field

from ._behind import Figures
from ._counts import Counts
from ._http import parsed

_CONNECT_SECONDS = 5.0
# A process that ends takes a while for it, and connections are made meanwhile that nobody accepts. Linux
# resets them, and those of which it had not read all; where all was read, there is an end and no reset.
_UNREAD = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ReadError, httpx2.WriteError)


class Gone(Exception):
    """Nobody listens at a member's socket any more, or a request was not read to its end."""


@define(eq=False)
class Member:
    """One of the servers: where it is, and what is known of it.

    ``trouble`` says why it should get no requests, ``open`` how many it has of this front, ``starts``
    how many processes it has had.
    """

    number: int
    figures: Figures | None = None
    trouble: str | None = "it is being started"
    open: int = 0
    starts: int = 0
    _path: str | None = field(default=None, init=False)
    _transport: httpx2.AsyncHTTPTransport | None = field(default=None, init=False)

    def arrived(self, figures: Figures) -> None:
        """It has told how it is."""
        if figures.path != self._path:
            self._path, self._transport = figures.path, None
            self.starts += 1
        if self._transport is None:
            # a connection for each request: one that was kept could be to a process that is gone
            limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
            self._transport = httpx2.AsyncHTTPTransport(uds=figures.path, limits=limits)
        self.figures = figures

    @property
    def row(self) -> dict[str, Any]:
        """What is known of it, for a listing."""
        now = self.figures
        return {
            "replica": self.number,
            "ready": self.trouble is None,
            "trouble": self.trouble,
            "process": now and now.pid,
            "running": now and now.running,
            "waiting": now and now.waiting,
            "open": self.open,
            "starts": self.starts,
        }

    def left(self, why: str) -> None:
        """Its process is gone."""
        self.figures, self.trouble, self._transport = None, why, None

    @asynccontextmanager
    async def asked(
        self, method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b""
    ) -> AsyncIterator[httpx2.Response]:
        """Ask it; the answer's head is there, its body comes by ``stream``.

        Raises:
            Gone: the request has not reached it as a whole.
            httpx2.TransportError: it went away before its answer began.
        """
        if self._transport is None:
            raise Gone
        request = httpx2.Request(
            method,
            httpx2.URL("http://replica", raw_path=target),
            headers=list(headers),
            content=body,
            extensions={"timeout": {"connect": _CONNECT_SECONDS}},
        )
        try:
            answer = await self._transport.handle_async_request(request)
        except _UNREAD as error:
            raise Gone from error
        try:
            yield answer
        finally:
            await answer.aclose()

    async def get(
        self, path: bytes, headers: Sequence[tuple[bytes, bytes]] = ((b"host", b"localhost"),)
    ) -> tuple[int, bytes]:
        """The status and the body of a path of its own."""
        async with self.asked("GET", path, headers) as answer:
            return answer.status_code, await answer.aread()

    async def ready(self) -> str | None:
        """Why it does not serve; ``None`` where it does."""
        status, body = await self.get(b"/ready")
        return None if status == 200 else str(parsed(body)["reason"])


def merged(texts: Sequence[bytes], members: Sequence[Member], counts: Counts) -> bytes:
    """The figures of all as one OpenMetrics text: those of a member with its number in the label ``replica``.

    What members count of HTTP is left out, as it is counted here.
    """
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.openmetrics.exposition import generate_latest
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    found: dict[str, Metric] = {}
    for member, text in zip(members, texts, strict=True):
        for family in text_string_to_metric_families(text.decode()) if text else ():
            if family.name.startswith("mlxengine_http_"):
                continue
            for sample in family.samples:
                sample.labels["replica"] = str(member.number)
            found.setdefault(family.name, Metric(family.name, family.documentation, family.type, family.unit))
            found[family.name].samples += family.samples
    own = [
        GaugeMetricFamily("mlxengine_replica_ready", "Whether it gets requests.", labels=["replica"]),
        GaugeMetricFamily("mlxengine_replica_open", "HTTP requests that it has now.", labels=["replica"]),
        CounterMetricFamily("mlxengine_replica_starts", "Processes it has had.", labels=["replica"]),
    ]
    for member in members:
        for metric, value in zip(own, (member.trouble is None, member.open, member.starts), strict=True):
            metric.add_metric([str(member.number)], value)

    class Everything:
        def collect(self) -> list[Metric]:
            return [*found.values(), *own]

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Everything())
    registry.register(counts)
    made: bytes = generate_latest(registry)
    return made


__all__ = ["Gone", "Member", "merged"]
