"""The application: an engine behind the routes."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from attrs import define
from starlette.routing import Route, Router

from ._answers import Dialect, Endpoint, Refused
from ._guard import Guard
from ._http import ASGIApp, Receive, Scope, Send, header
from ._listing import ListModels
from ._manage import Manage
from ._models import Models
from ._observe import Health, Metrics, Ready
from ._page import Page
from ._refusals import encoded
from ._server import Server
from .options import ServerOptions
from .routes import Door, plugin_routes

if TYPE_CHECKING:
    import mlxengine
    from mlxengine import AsyncInferenceEngine

DIALECTS = {
    "/v1/chat/completions": "openai_chat:DIALECT",
    "/v1/completions": "openai_completions:DIALECT",
    "/v1/responses": "openai_responses:DIALECT",
    "/v1/embeddings": "openai_embeddings:DIALECT",
    "/v1/messages": "anthropic_messages:DIALECT",
    "/v1/messages/count_tokens": "anthropic_messages:COUNT",
    "/v1/images/generations": "openai_images:DIALECT",
    "/v1/images/edits": "openai_edits:DIALECT",
    "/v1/rerank": "rerank:DIALECT",
}
"""Where the dialect of each path is at home."""
_VARIATIONS = "Nothing here varies a picture by itself; send it to /v1/images/edits, with a prompt."


def dialect(path: str) -> Dialect:
    """The dialect of a path, imported now."""
    module, _, name = DIALECTS[path].partition(":")
    found: Dialect = getattr(importlib.import_module(f"{__package__}.{module}"), name)
    return found


@define(eq=False)
class _Late:
    """What is made, and imported, when it is first asked for: the server starts sooner."""

    make: Callable[[], ASGIApp]
    _app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None:
            self._app = self.make()
        await self._app(scope, receive, send)


def _endpoint(server: Server, path: str) -> ASGIApp:
    found = dialect(path)
    return Endpoint(server, path, found.read, found.form, found.table.told)


def _openapi(server: Server, plugins: list[mlxengine.Route]) -> ASGIApp:
    from ._openapi import OpenAPI, document

    options = server.options
    return OpenAPI(encoded(document(manage=options.manage, keys=bool(options.keys), plugins=plugins)))


def _any_kind(server: Server) -> ASGIApp:
    from ._any_kind import AnyKind

    return AnyKind(server)


def create_app(
    engine: AsyncInferenceEngine,
    options: ServerOptions | None = None,
    *,
    failed: Callable[[BaseException], None] | None = None,
) -> ASGIApp:
    """An ASGI application that serves an engine's models.

    The engine stays its owner's: whoever made it closes it, after the application's lifespan has ended.

    Args:
        engine: what runs the models.
        options: which models, who may come, how much of anything.
        failed: called when a model that the options name cannot be loaded, with the error.
    """
    options = options or ServerOptions()
    server = Server(engine, options, Models(engine, options), failed)

    @asynccontextmanager
    async def lifespan(_app: object) -> AsyncIterator[None]:
        server.start()
        yield
        await server.close()

    router = Router(_routes(server), lifespan=lifespan, redirect_slashes=False)

    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        if server.relays is not None and scope["type"] == "http":
            last = header(scope, b"last-event-id")
            if last is not None:
                await server.relays.resume(scope, receive, send, last)
                return
        scope["app"] = router  # then what it does not find is raised, for the guard to say in form
        await router(scope, receive, send)

    return Guard(routed, options, server.counts)


def _routes(server: Server) -> list[Route]:
    listing, page = ListModels(server), Page()
    plugins = plugin_routes(Door(engine=server.engine, server=server))
    said = _Late(partial(_openapi, server, [route for route, _ in plugins]))
    return [
        *(Route(path, _Late(partial(_endpoint, server, path)), methods=["POST"]) for path in DIALECTS),
        Route("/v1/images/variations", Refused(_VARIATIONS), methods=["POST"]),
        Route("/", page, methods=["GET"]),
        Route("/page/{name}", page, methods=["GET"]),
        Route("/health", Health(server), methods=["GET"]),
        Route("/ready", Ready(server), methods=["GET"]),
        Route("/openapi.json", said, methods=["GET"]),
        Route("/metrics", Metrics(server), methods=["GET"]),
        Route("/v1/engine/{type}", _Late(partial(_any_kind, server)), methods=["POST"]),
        Route("/v1/models/load", Manage(server, unload=False), methods=["POST"]),
        Route("/v1/models/unload", Manage(server, unload=True), methods=["POST"]),
        Route("/v1/models", listing, methods=["GET"]),
        Route("/v1/models/{name:path}", listing, methods=["GET"]),
        *(Route(route.path, app, methods=list(route.methods)) for route, app in plugins),
    ]


__all__ = ["DIALECTS", "create_app", "dialect"]
