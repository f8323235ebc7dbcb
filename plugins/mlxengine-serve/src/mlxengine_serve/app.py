"""The application: an engine behind the routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.routing import Route, Router

from . import (
    anthropic_messages,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_images,
    openai_responses,
    rerank,
)
from ._answers import Endpoint, Read
from ._any_kind import AnyKind
from ._fields import Table
from ._guard import Guard
from ._http import ASGIApp, Receive, Scope, Send, header
from ._listing import ListModels
from ._manage import Manage
from ._models import Models
from ._observe import Health, Metrics, Ready
from ._page import Page
from ._server import Server
from .options import ServerOptions
from .routes import Door, plugin_routes

if TYPE_CHECKING:
    from mlxengine import AsyncInferenceEngine

DIALECTS: tuple[tuple[Table, Read], ...] = (
    (openai_chat.TABLE, openai_chat.read),
    (openai_completions.TABLE, openai_completions.read),
    (openai_responses.TABLE, openai_responses.read),
    (openai_embeddings.TABLE, openai_embeddings.read),
    (anthropic_messages.TABLE, anthropic_messages.read),
    (anthropic_messages.COUNT_TABLE, anthropic_messages.read_count),
    (openai_images.TABLE, openai_images.read),
    (rerank.TABLE, rerank.read),
)
"""What is read by a table: its fields, and how."""


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
    return [
        *(
            Route(table.path, Endpoint(server, table.path, read), methods=["POST"])
            for table, read in DIALECTS
        ),
        Route("/", page, methods=["GET"]),
        Route("/page/{name}", page, methods=["GET"]),
        Route("/health", Health(server), methods=["GET"]),
        Route("/ready", Ready(server), methods=["GET"]),
        Route("/metrics", Metrics(server), methods=["GET"]),
        Route("/v1/engine/{type}", AnyKind(server), methods=["POST"]),
        Route("/v1/models/load", Manage(server, unload=False), methods=["POST"]),
        Route("/v1/models/unload", Manage(server, unload=True), methods=["POST"]),
        Route("/v1/models", listing, methods=["GET"]),
        Route("/v1/models/{name:path}", listing, methods=["GET"]),
        *(
            Route(route.path, app, methods=list(route.methods))
            for route, app in plugin_routes(Door(engine=server.engine, models=server.models))
        ),
    ]


__all__ = ["create_app"]
