"""A hub on loopback that the real ``huggingface_hub`` client works with.

::

    with HubServer(root) as hub:
        hub.repos.add("org/name", {"config.json": b"{}"})
        snapshot_download("org/name", endpoint=hub.endpoint)
        hub.log.bytes()

Repositories are folders ``root/org/name`` and whatever a test adds. ``hub.faults`` makes things go wrong,
``hub.log`` tells what was sent. The same two are reachable as ``POST /_faults`` and ``GET /_log``.
"""

from __future__ import annotations

import itertools
import secrets
import socket
import socketserver
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, urlsplit

from .faults import Faults, RequestLog
from .repos import HubFile, RepoStore
from .transport import Handler

if TYPE_CHECKING:
    from .xet import XetStore

HOST = "127.0.0.1"
SEND_BUFFER = 65536


@dataclass
class User:
    """Whom a token stands for, and which gated or private repositories it opens (``None``: all)."""

    name: str
    repos: frozenset[str] | None = None

    def may_read(self, repo_id: str) -> bool:
        return self.repos is None or repo_id in self.repos


class _Listener(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, port: int, hub: HubServer, role: str) -> None:
        self.hub, self.role = hub, role
        self._open: set[socket.socket] = set()
        super().__init__((HOST, port), Handler)

    def server_bind(self) -> None:
        # accepted connections inherit it: little is counted as sent that the client never saw
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        super().server_bind()

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        pass

    def drop_connections(self) -> None:
        for request in list(self._open):
            try:
                request.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


class HubServer:
    """The server, in this process.

    Args:
        root: a folder of repositories, ``root/org/name``.
        cdn: large files are redirected to a second origin with signed addresses.
        port: 0 picks a free one.
        page_size: entries on one page of a list or tree.
    """

    def __init__(
        self, root: Path | None = None, *, cdn: bool = False, port: int = 0, page_size: int = 1000
    ) -> None:
        self.repos = RepoStore(root)
        self.faults = Faults()
        self.log = RequestLog()
        self.users: dict[str, User] = {}
        self.cdn_mode = cdn
        self.relative_redirects = False
        self.xet: XetStore | None = None
        self.page_size = page_size
        self._ports = {"hub": port, "cdn": 0}
        self._listeners: dict[str, _Listener] = {}
        self._stop = threading.Event()
        self._signatures: dict[str, HubFile] = {}
        self._counter = itertools.count()

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self._ports['hub']}"

    @property
    def cdn_origin(self) -> str:
        return f"http://{HOST}:{self._ports['cdn']}"

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def start(self) -> HubServer:
        """Listen (again on the same ports after ``stop``)."""
        self._stop.clear()
        for role in ("hub", "cdn"):
            listener = _Listener(self._ports[role], self, role)
            self._ports[role] = listener.server_address[1]
            self._listeners[role] = listener
            threading.Thread(
                target=listener.serve_forever, args=(0.05,), name=f"test-{role}", daemon=True
            ).start()
        return self

    def stop(self) -> None:
        """Close every connection; from now on they are refused."""
        self._stop.set()
        for listener in self._listeners.values():
            listener.shutdown()
            listener.server_close()
            listener.drop_connections()
        self._listeners.clear()

    def __enter__(self) -> HubServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait(self, seconds: float | None) -> None:
        """Sleep, but not longer than the server runs."""
        self._stop.wait(seconds)

    def sign(self, repo_id: str, file: HubFile) -> str:
        """An address on the CDN's origin that is valid until ``expire``."""
        signature = f"{next(self._counter)}-{secrets.token_hex(8)}"
        self._signatures[signature] = file
        place = f"{self.cdn_origin}/cdn/{quote(repo_id)}/{file.sha256}"
        return f"{place}?name={quote(file.path)}&Signature={signature}"

    def signed(self, target: str) -> HubFile | None:
        """The file that an address on the CDN stands for, while its signature is valid."""
        return self._signatures.get(parse_qs(urlsplit(target).query).get("Signature", [""])[0])

    def expire(self) -> None:
        """From now on the CDN answers 403 to every address that was given out so far."""
        self._signatures.clear()
