"""``POST /v1/engine/TYPE``: any request of a served model's kind, its events by the names of their types."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from attrs import define
from mlxengine import AsyncModelHandle, Event, Request

from ._answers import Asked, answer, bounded
from ._chat_stream import COMMENT
from ._fields import Fields
from ._http import CALLER, Caller, Receive, Scope, Send, read_json, until_gone
from ._refusals import Refusal, encoded, openai_form
from ._server import Server
from ._values import Builder, event_value, subclasses

# What the server says itself, and flags, whose values may be folders.
_NOT_THEIRS = frozenset({"priority", "features", "wait_timeout", "run_timeout"})
# They change a model that others use.
_REFUSED = frozenset({"LoadAdapterRequest", "UnloadAdapterRequest"})


@define(eq=False)
class AnyKind:
    """``{"model": NAME, "request": {…}, "stream": false}``; a request's fields are those of its class."""

    server: Server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["mlxengine_serve.route"] = "/v1/engine"
        caller: Caller = scope[CALLER]
        fields = Fields(await read_json(scope, receive, self.server.options))
        name = scope["path_params"]["type"]
        with self.server.admission.admitted(caller):
            await until_gone(receive, self._serve(name, fields, caller, send))

    async def _serve(self, name: str, fields: Fields, caller: Caller, send: Send) -> None:
        handle = await self.server.models.get(fields.text("model"))
        kind = await asyncio.to_thread(self._class, name, handle)
        async with _scratch() as folder:
            given = fields.data.get("request", {})
            request = await caller.aside(Builder(folder).build, kind, given, "request", _NOT_THEIRS)
            asked = Asked(
                model=fields.text("model"),
                requests=(request,),
                handle=AsyncModelHandle,
                gives="such requests",
                whole=lambda events: {"events": [event_value(event) for event in events]},
                writer=_Stream() if fields.flag("stream") else None,
                unknown=[item for item in fields.data if item not in ("model", "request", "stream")],
                aside=True,
            )
            bounded(asked, self.server.options)
            await answer(self.server, caller, asked, send)

    def _class(self, name: str, handle: AsyncModelHandle) -> type[Request]:
        """The class of requests of this name: core's own, or of the plugin that serves the model.

        Raises:
            Refusal: 404, there is none.
        """
        package = self._package(handle)
        for found in self._candidates(package):
            if found.__name__ == name and name not in _REFUSED:
                return found
        model = self.server.models.name_of(handle.id)
        names = sorted({item.__name__ for item in self._candidates(package)} - _REFUSED)
        raise Refusal(
            404,
            f"The model {model!r} takes no {name!r} here; there are {', '.join(names)}.",
            code="unknown_request",
        )

    def _candidates(self, package: str) -> list[type[Request]]:
        known = (item for item in subclasses(Request) if not item.__name__.startswith("_"))
        return [item for item in known if item.__module__.partition(".")[0] in ("mlxengine", package)]

    def _package(self, handle: AsyncModelHandle) -> str:
        """The package of a model's plugin, all of its modules imported: its requests may stand in any."""
        plugin = next(item.plugin for item in self.server.engine.sync.plugins if item.name == handle.plugin)
        name = plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__module__
        package = name.partition(".")[0]
        for module in pkgutil.iter_modules(getattr(importlib.import_module(package), "__path__", ())):
            if not module.name.startswith("__"):
                importlib.import_module(f"{package}.{module.name}")
        return package


@asynccontextmanager
async def _scratch() -> AsyncGenerator[Any]:
    """Makes a folder when it is first asked for, and removes it in the end."""
    made: list[tempfile.TemporaryDirectory[str]] = []

    def folder() -> Path:
        if not made:
            made.append(tempfile.TemporaryDirectory(prefix="mlxengine-serve-"))
        return Path(made[0].name)

    try:
        yield folder
    finally:
        for item in made:
            item.cleanup()


class _Stream:
    """Events as frames, each named by its type."""

    def open(self) -> bytes:
        """Nothing: the first event says enough."""
        return b""

    def beat(self) -> bytes:
        """A comment."""
        return COMMENT

    def event(self, event: Event) -> bytes:
        """The event itself."""
        return _frame(type(event).__name__, event_value(event))

    def fail(self, refusal: Refusal, request_id: str) -> bytes:
        """What went wrong, as an event of its own."""
        return _frame("error", openai_form(refusal, request_id))


def _frame(name: str, value: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + encoded(value) + b"\n\n"


__all__ = ["AnyKind"]
