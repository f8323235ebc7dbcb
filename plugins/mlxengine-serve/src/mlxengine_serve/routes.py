"""Paths that plugins add to the server by the hook ``list_routes``."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import define, field, frozen
from mlxengine import AsyncModelHandle, Route
from mlxengine.errors import PluginContractError, PluginError

from ._answers import Endpoint, Read
from ._http import ASGIApp, Receive, Scope, Send
from ._server import Server

if TYPE_CHECKING:
    from mlxengine import AsyncInferenceEngine, PluginRecord

log = logging.getLogger("mlxengine.serve")


@frozen(kw_only=True)
class Door:
    """What a plugin's route is given.

    Args:
        engine: runs the models.
    """

    engine: AsyncInferenceEngine
    _server: Server = field(repr=False)

    async def model(self, name: str | None) -> AsyncModelHandle:
        """The handle of a served model by its name for clients, loaded where it has to be; it stays open.

        Raises:
            MLXEngineError: it cannot be loaded. A name that is not served is answered with status 404.
        """
        return await self._server.models.get(name)

    def endpoint(self, path: str, read: Read, *, form: Mapping[str, type] | None = None) -> ASGIApp:
        """An application that answers as the server's own paths do.

        The body is read within bounds, the model is loaded, who leaves frees the place, what runs is bounded
        by key and queue, and errors have their status.

        Args:
            path: what metrics call it.
            read: makes an `Asked` of a body's fields and the request's id; raises a `Refusal`, or an error of
                ours, for what cannot be served. Pure: it may run on any thread.
            form: the body may be a form as well as JSON, and which of its fields are ``int``, ``float`` or
                ``bool``; others are texts, and files are bytes.
        """
        return Endpoint(self._server, path, read, form)


@define(eq=False)
class PluginRoute:
    """An ASGI application that imports the plugin's when it is first asked."""

    _record: PluginRecord
    _route: Route
    _door: Door
    _app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["mlxengine_serve.route"] = self._route.path
        if self._app is None:
            self._app = self._made()
        await self._app(scope, receive, send)

    def _made(self) -> ASGIApp:
        module, _, name = self._route.target.partition(":")
        try:
            made: ASGIApp = getattr(importlib.import_module(module), name)(self._door)
        except Exception as error:
            raise PluginError(
                f"The route {self._route.path} of the plugin {self._record.name!r} cannot be made: {error}.",
                plugin=self._record.name,
                hook="list_routes",
            ) from error
        return made


def plugin_routes(door: Door) -> list[tuple[Route, PluginRoute]]:
    """The routes of the installed plugins; a list that is broken is left out."""
    found = []
    for record in door.engine.sync.plugins:
        function = record.hooks.get("list_routes") if record.error is None else None
        if function is None:
            continue
        try:
            routes = list(function({}))
            for route in routes:
                if not isinstance(route, Route):
                    raise PluginContractError(
                        f"list_routes of {record.name!r} lists a {type(route).__name__}.",
                        plugin=record.name,
                        hook="list_routes",
                    )
        except Exception as error:
            log.warning("list_routes of the plugin %s is left out: %s", record.where, error)
            continue
        found += [(route, PluginRoute(record, route, door)) for route in routes]
    return found


__all__ = ["Door", "PluginRoute", "plugin_routes"]
