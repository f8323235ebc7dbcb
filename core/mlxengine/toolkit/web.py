"""Pictures from the web, fetched so that a prompt cannot make this machine ask its own network.

Whoever writes a prompt chooses the URL. So a name is resolved once, every address that it stands for must be
a public one, and the connection goes to an address that was checked: a name that answers differently the
second time (DNS rebinding) gains nothing. Each redirect is a URL like the first. Proxies, cookies and
credentials are not used. Time is bounded as a whole, whatever drips.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection
from contextlib import closing
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from ..errors import UnsupportedInputError

SECONDS = 20.0
REDIRECTS = 5
_CHUNK = 64 * 1024
_MOVED = (301, 302, 303, 307, 308)
_TYPES = re.compile(r"(image|audio|video)/.*|(application|binary)/octet-stream|")
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class _Refused(Exception):
    """Why a URL is not fetched, without the URL."""


def _any(_url: SplitResult) -> bool:
    return True


def fetch(
    url: str,
    limit: int,
    hosts: Collection[str] = (),
    *,
    seconds: float = SECONDS,
    permitted: Callable[[SplitResult], bool] = _any,
    resolve: Callable[..., Any] = socket.getaddrinfo,
) -> bytes:
    """The bytes behind an http(s) URL, at most ``limit``; one more says that there are more.

    Args:
        url: where they are.
        limit: most bytes.
        hosts: names and addresses that may be asked although they are not public.
        seconds: for everything together, redirects included.
        permitted: whether a URL may be asked at all, the first one and each that it is redirected to.
        resolve: `socket.getaddrinfo`.

    Raises:
        UnsupportedInputError: it may not be fetched, or could not be.
    """
    deadline = time.monotonic() + seconds
    asked = url
    try:
        for _ in range(REDIRECTS + 1):
            parts = urlsplit(asked)
            if not permitted(parts):
                raise _Refused(f"{_shown(asked)} may not be asked")
            found, moved = _one(parts, limit, hosts, deadline, resolve)
            if moved is None:
                return found
            after = urljoin(asked, moved)
            if parts.scheme == "https" and urlsplit(after).scheme != "https":
                raise _Refused("it is redirected from https to http")
            asked = after
        raise _Refused(f"it is redirected more than {REDIRECTS} times")
    except (_Refused, OSError, ValueError, http.client.HTTPException) as error:
        why = f"it took more than {seconds:g} s" if time.monotonic() >= deadline else str(error)
        raise UnsupportedInputError(
            f"The picture at {_shown(url)} cannot be fetched: {why or type(error).__name__}.",
            hint="Fetch it yourself and pass the bytes.",
        ) from error


def _one(
    url: SplitResult, limit: int, hosts: Collection[str], deadline: float, resolve: Callable[..., Any]
) -> tuple[bytes, str | None]:
    """The content, or where it has moved."""
    if url.scheme not in ("http", "https") or not url.hostname:
        raise _Refused("it is no http(s) URL")
    if url.username is not None or url.password is not None:
        raise _Refused("it holds a user name or password")
    secure = url.scheme == "https"
    port = url.port or (443 if secure else 80)
    address = _checked(url.hostname, port, hosts, resolve)
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    raw = socket.create_connection((address, port), timeout=left)
    # A timeout on the socket is between two bytes; this one ends whatever drips, the handshake included.
    alarm = threading.Timer(deadline - time.monotonic(), _hang_up, (raw,))
    alarm.daemon = True
    alarm.start()
    try:
        with closing(http.client.HTTPConnection(url.hostname, port)) as connection:
            connection.sock = raw
            if secure:
                connection.sock = ssl.create_default_context().wrap_socket(raw, server_hostname=url.hostname)
            path = (url.path or "/") + (f"?{url.query}" if url.query else "")
            headers = {"Host": _host(url), "Accept": "image/*", "Accept-Encoding": "identity"}
            connection.request("GET", path, headers=headers)
            found = _answer(connection.getresponse(), limit)
            if time.monotonic() >= deadline:
                raise TimeoutError  # hung up in the middle, which may look like the end
            return found
    finally:
        alarm.cancel()
        raw.close()


def _answer(answer: http.client.HTTPResponse, limit: int) -> tuple[bytes, str | None]:
    moved = answer.getheader("Location")
    if answer.status in _MOVED and moved:
        return b"", moved
    if answer.status != 200:
        raise _Refused(f"the server answered {answer.status}")
    kind = (answer.getheader("Content-Type") or "").partition(";")[0].strip().lower()
    if not _TYPES.fullmatch(kind):
        raise _Refused(f"it is {kind!r}, not a picture")
    coding = answer.getheader("Content-Encoding") or "identity"
    if coding.lower() != "identity":
        raise _Refused(f"it comes packed as {coding!r}, which was not asked for")
    wanted = answer.length
    if wanted is not None and wanted > limit:
        raise _Refused(f"it has {wanted} bytes, and at most {limit} are read")
    data = bytearray()
    while len(data) <= limit:
        piece = answer.read(min(_CHUNK, limit + 1 - len(data)))
        if not piece:
            break
        data += piece
    if wanted is not None and len(data) < wanted:
        raise _Refused(f"it ended after {len(data)} of {wanted} bytes")
    return bytes(data), None


def _checked(host: str, port: int, hosts: Collection[str], resolve: Callable[..., Any]) -> str:
    """An address of the host that may be asked."""
    named = host in {item.lower().strip("[]") for item in hosts}
    if not named and _odd(host):
        raise _Refused(f"{host!r} is an address in an unusual form")
    found = [item[4][0] for item in resolve(host, port, type=socket.SOCK_STREAM)]
    if not found:
        raise _Refused(f"{host!r} has no address")
    private = [address for address in found if not is_public(address)]
    if private and not named:
        raise _Refused(f"{host!r} is at {private[0]}, which is not a public address")
    return str(found[0])


def _odd(host: str) -> bool:
    """Whether it is an address that only the C library reads as one: decimal, octal, hex, too few parts."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
        return "%" in host
    except ValueError:
        last = host.rstrip(".").rpartition(".")[2]
        return re.fullmatch(r"\d+|0x[0-9a-f]*", last, re.IGNORECASE) is not None


def is_public(text: str) -> bool:
    """Whether an address is somebody's on the internet, whatever it is wrapped in."""
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    found: list[Address] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        low = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address.ipv4_mapped is not None or any(address in net for net in _NAT64):
            found = [low]  # it is that address
        else:
            found += [item for item in (address.sixtofour, *(address.teredo or ())) if item is not None]
    return all(
        item.is_global and not (item.is_multicast or item.is_reserved or item.is_unspecified)
        for item in found
    )


def _hang_up(raw: socket.socket) -> None:
    try:
        raw.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def _host(url: SplitResult) -> str:
    name = url.hostname or ""
    name = f"[{name}]" if ":" in name else name
    return name if url.port is None else f"{name}:{url.port}"


def _shown(url: str) -> str:
    """The URL for people, without what may be a secret in it."""
    try:
        parts = urlsplit(url)
        return repr(f"{parts.scheme}://{_host(parts)}{parts.path}")
    except ValueError:
        return "a URL that cannot be read"


__all__ = ["fetch", "is_public"]
