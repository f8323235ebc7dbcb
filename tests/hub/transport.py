"""Sending an answer over a real socket: ranges, byte counts, and every fault on the way."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from .faults import Fault, LogEntry
from .repos import HubFile
from .routes import Answer, Ask, respond, respond_cdn

if TYPE_CHECKING:
    from .server import HubServer

CHUNK = 1 << 16
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte (inclusive) that a Range header asks of ``size`` bytes; ``None`` for all.

    Raises:
        ValueError: the range cannot be satisfied.
    """
    match = _RANGE.fullmatch(header or "")
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        first, last = max(0, size - int(match[2])), size - 1
    else:
        first, last = int(match[1]), min(int(match[2] or size), size - 1)
    if first > last:
        raise ValueError(header)
    return first, last


class Handler(BaseHTTPRequestHandler):
    """One connection. ``server.hub`` and ``server.role`` ("hub" or "cdn") say on whose behalf."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each small answer waits 40 ms for a delayed ACK
    server: Any

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        hub: HubServer = self.server.hub
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        ask = Ask(self.command, self.path, headers, body)
        if ask.path in ("/_log", "/_faults"):
            self._control(hub, ask)
            return
        ranged = headers.get("range")
        faults = hub.faults.of(ask.method, ask.target, ranged is not None, self.server.role)
        entry = LogEntry(
            ask.method,
            ask.target,
            self.server.role,
            range=ranged,
            authorization=headers.get("authorization"),
            user_agent=headers.get("user-agent", ""),
            faults=tuple(faults),
        )
        hub.log.add(entry)
        try:
            self._answer(hub, ask, entry, faults)
        except OSError:
            entry.end = "client left"
            self.close_connection = True
        finally:
            entry.seconds = time.monotonic() - entry.started

    def _control(self, hub: HubServer, ask: Ask) -> None:
        if ask.path == "/_faults" and ask.method == "POST":
            hub.faults.replace(json.loads(ask.body))
            answer = Answer.of_json({"ok": True})
        else:
            answer = Answer.of_json(hub.log.as_json())
            if "clear" in ask.query:
                hub.log.clear()
        entry = LogEntry(ask.method, ask.target, "control")
        self._send(ask, answer, entry, {})

    def _answer(self, hub: HubServer, ask: Ask, entry: LogEntry, faults: dict[str, Fault]) -> None:
        if delay := faults.get("delay"):
            hub.wait(delay.seconds)
        if "reset_early" in faults:
            self._reset(entry)
            return
        if fault := faults.get("status"):
            answer = Answer.error(fault.status, None, "This failure was ordered.", **fault.headers)
            self.close_connection = fault.status >= 500
        else:
            answer = (respond if self.server.role == "hub" else respond_cdn)(hub, ask)
        if replace := faults.get("replace"):
            answer = Answer(answer.status, answer.headers, replace.body)
        self._send(ask, answer, entry, faults)

    def _send(self, ask: Ask, answer: Answer, entry: LogEntry, faults: dict[str, Fault]) -> None:
        size = answer.body.size if isinstance(answer.body, HubFile) else len(answer.body)
        status, first, last = answer.status, 0, size - 1
        headers = dict(answer.headers)
        if isinstance(answer.body, HubFile) and "ignore_range" not in faults:
            wanted = ask.headers.get("range")
            if ask.headers.get("if-range", headers.get("ETag")) != headers.get("ETag"):
                wanted = None
            try:
                span = byte_range(wanted, size)
            except ValueError:
                status, headers["Content-Range"], answer = 416, f"bytes */{size}", Answer(416)
                first, last = 0, -1
            else:
                if span is not None:
                    status, (first, last) = 206, span
                    if shift := faults.get("wrong_range"):
                        first = min(first + shift.shift, last)
                    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        extra = 0
        if cut := faults.get("short_length"):
            last -= cut.cut
        if over := faults.get("oversize"):
            extra = over.extra
        headers["Content-Length"] = str(max(0, last - first + 1) + extra)
        if drop := faults.get("drop_header"):
            headers = {name: value for name, value in headers.items() if name.lower() != drop.header.lower()}
        if change := faults.get("set_header"):
            headers = {
                name: value for name, value in headers.items() if name.lower() != change.header.lower()
            }
            headers[change.header] = change.value
        if "Content-Length" not in headers:
            self.close_connection = True
        entry.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self._end_headers(faults.get("drip"))
        if ask.method != "HEAD":
            self._send_body(answer, first, last, extra, entry, faults)
        if entry.end == "open":
            entry.end = "complete"

    def _end_headers(self, drip: Fault | None) -> None:
        if drip is not None and drip.part == "headers":
            head = b"".join(self._headers_buffer)  # type: ignore[attr-defined]
            self._headers_buffer = []
            self._drip(head + b"X-Filler: " + b"x" * 10_000 + b"\r\n", drip)
        self.end_headers()

    def _drip(self, data: bytes, drip: Fault, entry: LogEntry | None = None) -> None:
        for at in range(len(data)):
            if self.server.hub.stopping:
                break
            self.connection.send(data[at : at + 1])
            if entry is not None:
                entry.bytes += 1
            self.server.hub.wait(drip.seconds)

    def _send_body(
        self, answer: Answer, first: int, last: int, extra: int, entry: LogEntry, faults: dict[str, Fault]
    ) -> None:
        stops = [faults[kind] for kind in ("reset", "truncate", "stall") if kind in faults]
        stop = min(stops, key=lambda fault: fault.after, default=None)
        slow, corrupt, drip = faults.get("slow"), faults.get("corrupt"), faults.get("drip")
        size = answer.body.size if isinstance(answer.body, HubFile) else len(answer.body)
        position = first
        for block in _blocks(answer.body, first, last, extra):
            if corrupt is not None:
                at = (corrupt.offset if corrupt.offset >= 0 else size + corrupt.offset) - position
                if 0 <= at < len(block):
                    block = block[:at] + bytes([block[at] ^ corrupt.mask]) + block[at + 1 :]
            position += len(block)
            if stop is not None and entry.bytes + len(block) > stop.after:
                block = block[: stop.after - entry.bytes]
            if drip is not None and drip.part == "body":
                ahead = max(0, drip.after - entry.bytes)
                self._write(block[:ahead], entry)
                self._drip(block[ahead:], drip, entry)
            else:
                self._write(block, entry)
            if stop is not None and entry.bytes >= stop.after:
                self._end(stop, entry)
                return
            if slow is not None:
                self.server.hub.wait(len(block) / slow.rate)

    def _write(self, block: bytes, entry: LogEntry) -> None:
        view = memoryview(block)
        while view:
            sent = self.connection.send(view)
            entry.bytes += sent
            view = view[sent:]

    def _end(self, stop: Fault, entry: LogEntry) -> None:
        self.close_connection = True
        if stop.kind == "reset":
            # let the client read what was counted: an RST throws away what is still in the buffers
            self._drain()
            self._reset(entry)
        elif stop.kind == "stall":
            entry.end = "stalled"
            self._wait_for_client(stop.seconds)
        else:
            entry.end = "truncated"

    def _drain(self) -> None:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and _unsent(self.connection) > 0:
            time.sleep(0.001)

    def _wait_for_client(self, seconds: float | None) -> None:
        deadline = None if seconds is None else time.monotonic() + seconds
        self.connection.settimeout(0.1)
        while not self.server.hub.stopping and (deadline is None or time.monotonic() < deadline):
            try:
                if self.connection.recv(1) == b"":
                    return
            except TimeoutError:
                continue
            except OSError:
                return

    def _reset(self, entry: LogEntry) -> None:
        entry.end = "reset"
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())


def _unsent(connection: socket.socket) -> int:
    """Bytes that the peer's kernel has not acknowledged (Linux); 0 where the system does not tell."""
    try:
        import fcntl
        import termios

        return int.from_bytes(fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0" * 4), "little")
    except (ImportError, OSError):
        return 0


def _blocks(body: bytes | HubFile, first: int, last: int, extra: int) -> Iterator[bytes]:
    if isinstance(body, bytes):
        yield from (body[at : min(at + CHUNK, last + 1)] for at in range(first, last + 1, CHUNK))
    else:
        with body.open() as stream:
            stream.seek(first)
            left = last - first + 1
            while left > 0 and (block := stream.read(min(CHUNK, left))):
                left -= len(block)
                yield block
    for at in range(0, extra, CHUNK):
        yield b"\xa5" * min(CHUNK, extra - at)
