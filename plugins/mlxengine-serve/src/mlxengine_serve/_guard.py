"""What stands before every route: Host, Origin, keys; and what every answer has, errors included."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
import uuid
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from attrs import define
from starlette.exceptions import HTTPException

from ._counts import Counts
from ._http import CALLER, ASGIApp, Caller, ClientGone, Receive, Scope, Send, header, raw, send_bytes
from ._refusals import ENDING, Refusal, encoded, form_of, log_failure, refusal_of
from .options import LOOPBACK, Key, ServerOptions

OPEN = frozenset({"/", "/health", "/ready"})
ID = "mlxengine_serve.id"  # of a scope: what a request is called by the front that passed it on
_GONE = 499
log = logging.getLogger("mlxengine.serve")


@define(eq=False)
class Guard:
    """Lets a request through to the routes, or refuses it in the words of the interface that it is for."""

    app: ASGIApp
    options: ServerOptions
    counts: Counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        caller = Caller(id=scope.get(ID) or f"req_{uuid.uuid4().hex}")
        scope[CALLER] = caller
        began = time.perf_counter()
        out = _Sending(send, caller, self._common(scope, caller))
        self.counts.open += 1
        try:
            await self._through(scope, receive, out)
        except ClientGone:
            caller.status = caller.status or _GONE
        finally:
            self.counts.open -= 1
            took = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", None) or scope.get("mlxengine_serve.route", "other")
            self.counts.done(route, caller.status, took)
            log.info(
                "%s %s %d %.3f s %s%s",
                scope["method"], route, caller.status, took, caller.id,
                f" {caller.key.name}" if caller.key else "",
            )  # fmt: skip

    async def _through(self, scope: Scope, receive: Receive, out: _Sending) -> None:
        try:
            self._check_host(scope)
            origin = self._check_origin(scope)
            if origin and scope["method"] == "OPTIONS":
                await _preflight(scope, out)
                return
            out.caller.key = self._check_key(scope)
            await self.app(scope, receive, out)
        except ClientGone:
            raise
        except asyncio.CancelledError:
            if not out.caller.status:
                await out.refuse(scope, ENDING)
            raise
        except HTTPException as error:  # the router's own: no such path, or not by this method
            text = f"There is no {scope['method']} {scope['path'][:200]} here."
            await out.refuse(scope, Refusal(error.status_code, text, code="unknown_url"))
        except Exception as error:
            refusal = refusal_of(error, told=out.caller.told)
            log_failure(out.caller.id, refusal, error)
            await out.refuse(scope, refusal)

    # -- who may come ----------------------------------------------------------------------------------

    def _check_host(self, scope: Scope) -> None:
        name = host_of(header(scope, b"host") or "")
        allowed = self.options.hosts
        if "*" in allowed or name in LOOPBACK or name in allowed or _is_address(name):
            return
        raise Refusal(
            403, "This Host is not served here; --allow-host names further ones.", code="host_not_allowed"
        )

    def _check_origin(self, scope: Scope) -> str | None:
        """The web origin that may read the answer; ``None`` where no page of another site asks."""
        origin = header(scope, b"origin")
        if origin is None:
            return None
        if origin in self.options.origins or "*" in self.options.origins:
            return origin
        if urlsplit(origin).netloc == header(scope, b"host"):
            return None
        raise Refusal(
            403,
            "Pages of this origin may not call; --allow-origin names those that may.",
            code="origin_not_allowed",
        )

    def _check_key(self, scope: Scope) -> Key | None:
        if not self.options.keys or scope["path"] in OPEN or scope["path"].startswith("/page/"):
            return None
        bearer = header(scope, b"authorization") or ""
        kind, _, secret = bearer.partition(" ")
        given = secret.strip() if kind.lower() == "bearer" else header(scope, b"x-api-key") or ""
        key = self.options.key(given)
        if key is None:
            raise Refusal(
                401,
                "A key is needed: Authorization: Bearer KEY, or x-api-key: KEY.",
                code="invalid_api_key",
            )
        return key

    def _common(self, scope: Scope, caller: Caller) -> list[tuple[bytes, bytes]]:
        found = {"x-request-id": caller.id, "request-id": caller.id, "x-content-type-options": "nosniff"}
        origin = header(scope, b"origin")
        if origin is not None and (origin in self.options.origins or "*" in self.options.origins):
            found |= {
                "access-control-allow-origin": origin,
                "access-control-expose-headers": "x-request-id, x-mlxengine-ignored, retry-after",
                "vary": "origin",
            }
        return raw(found)


@define(eq=False)
class _Sending:
    """``send`` with the headers of every answer; knows whether an answer has begun."""

    send: Send
    caller: Caller
    common: list[tuple[bytes, bytes]]

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.caller.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self.common]
        await self.send(message)

    async def refuse(self, scope: Scope, refusal: Refusal) -> None:
        """Answer with what went wrong, unless an answer has begun: then it ends unfinished."""
        if self.caller.status:
            raise refusal
        said = encoded(form_of(scope["path"])(refusal, self.caller.id))
        await send_bytes(self, refusal.status, said, "application/json", refusal.headers)


async def _preflight(scope: Scope, out: _Sending) -> None:
    # An origin that was named may send what it likes: clients have headers of their own, and more each year.
    wanted = header(scope, b"access-control-request-headers")
    headers = {
        "access-control-allow-methods": "GET, POST, DELETE",
        "access-control-allow-headers": wanted or "authorization, content-type, x-api-key",
        "access-control-max-age": "600",
        "vary": "access-control-request-headers",
    }
    await send_bytes(out, 204, b"", "text/plain", headers)


def host_of(text: str) -> str:
    """The name in a Host header, without its port, in lower case."""
    if text.startswith("["):
        return text[1:].partition("]")[0].lower()
    return text.partition(":")[0].lower().rstrip(".")


def _is_address(name: str) -> bool:
    """Whether it is an IP address: no DNS answer can make one lead elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


__all__ = ["ID", "Guard", "host_of"]
