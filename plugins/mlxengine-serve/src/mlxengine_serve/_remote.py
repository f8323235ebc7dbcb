"""Pictures that a request names by a URL, fetched before it is read, where that is allowed.

Nothing is fetched by default. `mlxengine.toolkit.web` keeps a client from reaching this machine's own
network: public addresses alone, resolved once, each redirect like the first URL. What comes takes the URL's
place as a ``data:`` URL, so that no dialect knows of it.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import SplitResult

from mlxengine.errors import UnsupportedInputError

from ._refusals import Refusal
from .options import ServerOptions

_PLACES = ("messages", "input", "system", "image", "images", "mask")  # fields of bodies that hold pictures
_URL = re.compile(r"https?://", re.IGNORECASE)
_MOST = 16
_THREADS = 8
_DEEPEST = 12  # pictures of a tool's result stand eight deep
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"), (b"BM", "image/bmp"), (b"II*\0", "image/tiff"), (b"MM\0*", "image/tiff"),
)  # fmt: skip
log = logging.getLogger("mlxengine.serve")
Place = tuple[
    str, str, Callable[[str, str], None]
]  # its URL, where it stands, and what puts (type, base64) there


class Remote:
    """Fetches the pictures of requests.

    Args:
        options: which hosts, and how much.
    """

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        # Of its own: a host that drips must hold up nothing but other pictures.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="mlxengine-serve-fetch")

    async def bring(self, body: dict[str, Any]) -> None:
        """Put what the URLs of a body lead to into their places.

        Raises:
            Refusal: 400, one cannot be fetched, or there are too many.
        """
        if not self._options.remote_images:
            return  # the dialect refuses them in its own words
        places = [place for name in _PLACES if name in body for place in _found(body, name, name)]
        if not places:
            return
        if len(places) > _MOST:
            raise _refused(places[_MOST][1], f"A request may name {_MOST} pictures by URLs.")
        await asyncio.get_running_loop().run_in_executor(self._threads, self._fetch, places)

    def close(self) -> None:
        """Begin no fetch any more; those that run end by their deadline."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _fetch(self, places: list[Place]) -> None:
        """All of them within the bounds of one body, in bytes and in seconds."""
        from mlxengine.toolkit.web import fetch

        left, deadline = self._options.max_body, time.monotonic() + self._options.fetch_seconds
        for url, where, put in places:
            seconds = max(0.001, deadline - time.monotonic())
            try:
                data = fetch(url, left, seconds=seconds, permitted=self._permitted)
                kind = next((kind for start, kind in _SIGNATURES if data.startswith(start)), None)
                if len(data) > left or kind is None:
                    raise UnsupportedInputError("it is too large" if kind else "it is no picture")
            except UnsupportedInputError as error:
                log.info("a picture was not fetched: %s", error)
                # Why is not said: a client could learn of this network's names and addresses by it.
                raise _refused(
                    where,
                    f"{where} cannot be fetched from here. It must be a picture behind an https URL of a "
                    "public host that this server allows, and come within "
                    f"{self._options.fetch_seconds:g} s.",
                ) from None
            left -= len(data)
            put(kind, base64.b64encode(data).decode())

    def _permitted(self, url: SplitResult) -> bool:
        allowed = {item.lower() for item in self._options.remote_images}
        host = (url.hostname or "").rstrip(".")
        unencrypted = f"http://{host}" in allowed
        return unencrypted or (url.scheme == "https" and ("*" in allowed or host in allowed))


def _found(holder: Any, key: Any, where: str, depth: int = 0) -> Iterator[Place]:
    """The places below ``holder[key]`` where a picture's URL stands."""
    value = holder[key]
    if depth > _DEEPEST:
        return
    if isinstance(value, list):
        for number in range(len(value)):
            yield from _found(value, number, f"{where}[{number}]", depth + 1)
    elif isinstance(value, dict):
        if value.get("type") == "tool_use":
            return  # what a tool was called with is the conversation's, whatever it looks like
        if value.get("type") == "url" and _is_url(value.get("url")):
            yield value["url"], f"{where}.url", lambda kind, data: _as_source(value, kind, data)
            return
        for name in value:
            yield from _found(value, name, f"{where}.{name}", depth + 1)
    elif _is_url(value) and _holds_picture(where):

        def put(kind: str, data: str) -> None:
            holder[key] = f"data:{kind};base64,{data}"

        yield value, where, put


def _is_url(value: Any) -> bool:
    return isinstance(value, str) and _URL.match(value) is not None


def _holds_picture(where: str) -> bool:
    """Whether a text in this place is a picture's: a URL in what somebody says is none."""
    whole = r"^((image|images|mask)(\[\d+\])?|input\[\d+\]\.image)$"
    return re.search(rf"(^|\.)image_url(\.url)?$|{whole}", where) is not None


def _as_source(value: dict[str, Any], kind: str, data: str) -> None:
    """Anthropic's form of bytes."""
    value.clear()
    value.update(type="base64", media_type=kind, data=data)


def _refused(where: str, message: str) -> Refusal:
    return Refusal(400, message, param=where, code="unsupported_url")


__all__ = ["Remote"]
